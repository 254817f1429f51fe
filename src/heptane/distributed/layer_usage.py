"""Observe how a model uses its layers before it is distributed: which it may skip, and which parameters it uses outside
their own layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heptane.base.randomness import manual_seed
from heptane.base.tree import copy_rows, first_tensor
from heptane.model.modes import enable_gradients
from heptane.model.outputs import autograd_graph
from heptane.model.snapshot import preserved_model

# Functions that read a tensor's values, on which control flow can depend; functions that read metadata only; and attributes
# that give values (others, such as shape, are metadata).
READS_VALUES = frozenset(("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy"))
METADATA = frozenset(("size", "dim", "numel", "element_size", "is_floating_point", "is_complex", "get_device", "type"))
VALUE_ATTRIBUTES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
TRIALS = 8  # forward passes to see whether layers are skipped


@dataclass
class LayerUsage:
    """How a model used its layers in a training step."""

    unused: list[str] = field(default_factory=list)
    """trainable parameters that got no gradient"""
    is_dynamic: bool = False
    """whether control flow depends on values or random numbers, so that other steps may use other layers"""
    outside: set[nn.Module] = field(default_factory=set)
    """units whose parameters are used outside the unit's forward pass"""
    varies: bool = False
    """whether the order of units differs between samples, or may differ"""
    reentrant: bool = False
    """whether activation checkpointing has ``use_reentrant=True``"""

    @property
    def may_skip_layers(self) -> bool:
        """Whether a step may leave trainable parameters without a gradient."""
        return bool(self.unused) or self.is_dynamic

    def notes(self) -> list[str]:
        """Return a note on why DDP looks for unused parameters, if it does."""
        if not self.may_skip_layers:
            return []
        why = (
            f"no gradient reaches {', '.join(self.unused[:3])}" if self.unused else "forward depends on values or on chance"
        )
        return [f"{why}: the workers look for unused parameters in each step"]


class _Watch(TorchFunctionMode):
    """Records which parameters a forward pass uses, and whether it reads values."""

    def __init__(self, units: list[nn.Module]) -> None:
        super().__init__()
        self.owner = {id(p): unit for unit in units for p in unit.parameters()}
        self.running: list[nn.Module] = []
        self.calls: list[int] = []
        self.outside: set[nn.Module] = set()
        self.looks = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.looks |= name in READS_VALUES
        attribute = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else None
        is_metadata = name in METADATA or (attribute is not None and attribute not in VALUE_ATTRIBUTES)
        if not is_metadata:
            self._note(args)
            self._note((kwargs or {}).values())
        return func(*args, **(kwargs or {}))

    def _note(self, values: Any) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self._note(value)
            elif (unit := self.owner.get(id(value))) is not None and unit not in self.running:
                self.outside.add(unit)


@contextmanager
def _watched(units: list[nn.Module]) -> Iterator[_Watch]:
    """Record what forward passes inside do, including draws from Python's and NumPy's generators."""
    watch = _Watch(units)
    python, numpy = random.getstate(), _of_numpy()

    def enter(unit: nn.Module, at: int) -> None:
        watch.running.append(unit)
        watch.calls.append(at)

    with ExitStack() as hooks:
        for at, unit in enumerate(units):
            hooks.callback(unit.register_forward_pre_hook(lambda unit, _, at=at: enter(unit, at)).remove)
            hooks.callback(unit.register_forward_hook(lambda *_: watch.running.pop() and None).remove)
        with watch:
            yield watch
    watch.looks |= python != random.getstate() or numpy != _of_numpy()


def _of_numpy() -> tuple[bytes, int]:
    """The state of NumPy's generator."""
    state: Any = np.random.get_state()
    return state[1].tobytes(), state[2]


def observe_usage(
    model: nn.Module,
    forward: Callable[[Any, Any], Any],
    mean: Callable[[Any, Any], Tensor],
    sample: tuple[Any, Any],
    units: list[nn.Module],
    seed: int,
) -> LayerUsage:
    """Run ``model`` on a few samples and observe its layers; the model and the random states are left unchanged.

    Args:
        model: on its device, not yet distributed.
        forward: from inputs and targets to the model's output.
        mean: from an output and targets to the loss.
        sample: inputs and targets. Two samples are used; more if there are ``units`` and the control flow may vary.
        units: layers that could be sharded separately.
        seed: of the random states inside, so that all workers observe the same.
    """
    use = LayerUsage()
    with preserved_model(model), enable_gradients():
        manual_seed(seed)
        _train_mode(model, len(first_tensor(sample[0])))
        inputs, targets = copy_rows(sample, slice(2))
        with _watched(units) as watch:
            output = forward(inputs, targets)
        loss = mean(output, targets)
        use.is_dynamic, use.outside = watch.looks, watch.outside
        if units:
            use.reentrant = any(type(node).__name__ == "CheckpointFunctionBackward" for node in autograd_graph(loss))
            orders = [watch.calls, *(_orders(forward, sample, units) if use.is_dynamic else ())]
            alone = {at for at, unit in enumerate(units) if unit not in use.outside}  # sharded separately
            orders = [[at for at in order if at in alone] for order in orders]
            use.varies = any(order != orders[0] for order in orders) or (use.is_dynamic and {*orders[0]} != alone)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            use.unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    return use


def _train_mode(model: nn.Module, samples: int) -> None:
    """Use train mode as in a step, except: BatchNorm cannot train on one sample; cuDNN RNNs need train mode for backward."""
    model.train(samples > 1)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.train()


def _orders(forward: Callable[[Any, Any], Any], sample: tuple[Any, Any], units: list[nn.Module]) -> Iterator[list[int]]:
    """Yield the order in which the units run, for two samples at a time."""
    size = len(first_tensor(sample[0]))
    for at in range(TRIALS):
        start = max(0, min(at, size - 2))
        with _watched(units) as watch, torch.no_grad():
            forward(*copy_rows(sample, slice(start, start + 2)))
        yield watch.calls
