"""How a step is computed: fp32, autocast to bf16, or fp16 with a loss scale; including clipping and the optimizer step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from heptane.base.device import find_device
from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch
from heptane.base.tree import local_part
from heptane.model.modes import no_gradients
from heptane.model.outputs import outputs_to_fp32

DTYPES = ("auto", "bf16", "fp16", "fp32")
MIN_SCALE = 1.0  # of the loss scale of fp16, by default


class PrecisionSettings(Protocol):
    """The requested precision and memory format, each by name or "auto"."""

    @property
    def dtype(self) -> str: ...
    @property
    def channels_last(self) -> str: ...
    def build(self, dtype: str, device: str) -> Precision:
        """The :class:`Precision` for a ``dtype`` other than "auto"."""


class Precision:
    """Fills the slot ``precision``; this base class is plain fp32 and adds nothing to a hand-written loop."""

    name = "fp32"
    retries = False  # whether a step may be skipped and repeated
    exhausted = False  # whether the last step was skipped and a lower scale cannot help
    guard = False  # whether to check the gradients for inf and NaN before the step

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the forward pass."""
        return nullcontext()

    def to_fp32(self, output: Any) -> Any:
        """The model's output with 16-bit tensors converted to fp32, for the loss."""
        return output

    def full(self, output: Any) -> Any:
        """The name of :meth:`to_fp32` in an earlier release, with a warning."""
        warnings.warn("Precision.full is now Precision.to_fp32", FutureWarning, stacklevel=2)
        return self.to_fp32(output)

    def backward(self, loss: torch.Tensor) -> None:
        """Run backward, on the scaled loss where there is a loss scale."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
        parameters: Iterable[torch.Tensor] | None = None,
    ) -> bool:
        """Unscale, clip and step; return False if the step was skipped because a gradient is not finite.

        Args:
            optimizer: holds the parameters.
            clip_norm: maximum norm of all gradients together, above 0; None does not clip.
            parameters: the optimizer's parameters, in the order in which their norms are summed; None: its own order.
        """
        held = parameters or _parameters(optimizer)
        self.exhausted = self.guard and not all_finite([p.grad for p in held if p.grad is not None])
        if self.exhausted:
            return False
        _clip(optimizer, clip_norm, parameters)
        optimizer.step()
        return True

    def state(self) -> dict[str, float]:
        """State for a checkpoint: the loss scale and the number of steps since it last changed."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Restore a state from :meth:`state`."""


class Autocast(Precision):
    """bf16: fp32 under autocast. Master weights, gradients and optimizer state stay in fp32."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.name = "bf16" if dtype is torch.bfloat16 else "fp16"
        self._device, self._dtype = device, dtype

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, self._dtype)  # a new context each time: one entered twice never exits

    def to_fp32(self, output: Any) -> Any:
        return outputs_to_fp32(output)


class Scaled(Autocast):
    """fp16: autocast with a dynamic loss scale that has a lower bound."""

    retries = True

    def __init__(self, dtype: torch.dtype, device: str, scale: float, growth_steps: int, floor: float) -> None:
        super().__init__(dtype, device)
        self.scale, self.growth_steps, self.floor = scale, growth_steps, floor
        self.steps_held = 0

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.scale).backward()  # type: ignore[no-untyped-call]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
        parameters: Iterable[torch.Tensor] | None = None,
    ) -> bool:
        gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(1 / self.scale)
        # The only synchronization per step. Gradients are already reduced, so all workers decide alike.
        if not all_finite(gradients):
            self.exhausted = self.scale <= self.floor
            self.scale, self.steps_held = max(self.scale / 2, self.floor), 0
            return False
        _clip(optimizer, clip_norm, parameters)
        optimizer.step()
        self.exhausted = False
        self.steps_held += 1
        if self.steps_held >= self.growth_steps:
            self.scale, self.steps_held = self.scale * 2, 0
        return True

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "steps_held": self.steps_held}

    def load_state(self, state: dict[str, float]) -> None:
        self.scale, self.steps_held = state["scale"], int(state["steps_held"])


def precision(
    dtype: str = "bf16",
    device: str = "cpu",
    *,
    scale: float = 2.0**16,
    growth_steps: int = 2000,
    floor: float = MIN_SCALE,
) -> Precision:
    """The precision for a loop of your own: autocast, backward and step in ``dtype``.

    Args:
        dtype: "bf16", "fp16" or "fp32".
        device: "cpu" or "cuda".
        scale, growth_steps, floor: of the loss scale; fp16 only.

    Returns:
        A :class:`Precision`: ``with p.autocast(): output = model(x)``; ``p.backward(loss(p.to_fp32(output), y))``; ``applied
        = p.step(optimizer, clip_norm=1.0)``.

    Raises:
        InputError: an unknown dtype or device, fp16 on a CPU, or a number out of range.

    Example:
        >>> precision("bf16").name
        'bf16'

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.
    """
    check_choice("dtype", dtype, DTYPES[1:])
    check_scale("", scale, growth_steps, floor)
    kind = find_device(device).type
    if dtype == "fp32":
        return Precision()
    if dtype == "bf16":
        return Autocast(torch.bfloat16, kind)
    if kind == "cpu":
        raise InputError(f"mixed_precision.dtype='fp16' is refused on a CPU: {measure_fp16()}; use 'bf16', 'fp32' or 'auto'")
    return Scaled(torch.float16, kind, scale, growth_steps, floor)


@contextmanager
def evaluation(precision: Precision) -> Iterator[None]:
    """Autocast without gradients; see :func:`heptane.model.modes.no_gradients`."""
    with no_gradients(precision.autocast()):
        yield


def check_master_weights(model: torch.nn.Module) -> None:
    """Refuse 16-bit master weights: small updates would round to nothing."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise InputError(
                f"mixed_precision with parameter {name!r} of type {parameter.dtype}: master weights must be 32-bit; "
                "pass model.float(), autocast makes the 16-bit copies"
            )


def measure_fp16() -> str:
    """The measured speed of fp16 on this CPU: a matrix product in fp32 and in fp16, in GFLOP/s."""
    from heptane.base.clock import median_seconds

    rates = {}
    for dtype in (torch.float32, torch.float16):
        a = torch.randn(192, 192).to(dtype)
        rates[dtype] = 2 * 192**3 / median_seconds(lambda a=a: a @ a, repeats=3) / 1e9  # type: ignore[misc]
    return (
        f"a matrix product runs at {rates[torch.float16]:.2g} GFLOP/s in fp16 "
        f"and {rates[torch.float32]:.3g} in fp32 on this machine"
    )


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def all_finite(gradients: list[torch.Tensor]) -> bool:
    """Whether all gradients are finite, on every worker. Workers hold the same gradients, or shards of them."""
    kinds = {(g.dtype, g.device, type(g), g.layout) for g in gradients}
    dense = [kind for kind in kinds if kind[0].is_floating_point and kind[2:] == (torch.Tensor, torch.strided)]
    if len(dense) == len(kinds) == 1:
        # GradScaler's fused check, with a scale of 1: it changes no bit and is 15 times as fast as norms
        found = torch.zeros(1, dtype=torch.float32, device=gradients[0].device)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, torch.ones_like(found))
        return found.item() == 0
    # The maximum norm: the Euclidean norm may overflow although every element is finite.
    stored = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    sharded = any(hasattr(g, "to_local") for g in stored)
    stored = [local_part(g) for g in stored]
    device = stored[0].device if stored else torch.device("cpu")
    finite = all(bool(torch.linalg.vector_norm(g, math.inf).isfinite()) for g in stored if g.numel())
    if sharded:  # each worker sees its shard, and all must decide alike
        agreed = torch.tensor(float(finite), device=device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
        finite = bool(agreed)
    return finite


def _clip(
    optimizer: torch.optim.Optimizer, clip_norm: float | None, parameters: Iterable[torch.Tensor] | None = None
) -> None:
    if clip_norm is None:
        return
    held = list(_parameters(optimizer) if parameters is None else parameters)
    kinds = {type(p.grad) for p in held if p.grad is not None}
    if len(kinds) > 1 or any(p.grad is not None and p.grad.is_sparse for p in held):
        _clip_by_hand([p for p in held if p.grad is not None], clip_norm)
    else:
        torch.nn.utils.clip_grad_norm_(held, clip_norm)


def _clip_by_hand(parameters: list[torch.Tensor], clip_norm: float) -> None:
    """``clip_grad_norm_`` for what PyTorch's function refuses: sparse gradients, or sharded gradients beside others.

    Sparse gradients are coalesced first; elements that are not stored are 0, so the norm is that of the dense gradients.
    """
    whole, shards = [], []
    for parameter in parameters:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            whole.append(parameter.grad.values())
        elif hasattr(parameter.grad, "to_local"):
            shards.append(parameter.grad.to_local())
        else:
            whole.append(parameter.grad)
    norms = [torch.linalg.vector_norm(values) for values in whole]
    if shards:
        squares = torch.stack([torch.linalg.vector_norm(values).square() for values in shards]).sum()
        torch.distributed.all_reduce(squares)
        norms.append(squares.sqrt())
    norm = torch.linalg.vector_norm(torch.stack(norms))
    scale = torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
    for values in (*whole, *shards):
        values.mul_(scale)


def disable_foreach(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer step parameter by parameter: foreach kernels do not take sharded and other parameters together."""
    for group in optimizer.param_groups:
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = False


def check_scale(owner: str, scale: float, growth_steps: int, floor: float) -> None:
    check_range(f"{owner}scale", scale, 0, low_open=True)
    check_range(f"{owner}growth_steps", growth_steps, 1, whole=True)
    check_range(f"{owner}floor", floor, 0, scale, low_open=True)
