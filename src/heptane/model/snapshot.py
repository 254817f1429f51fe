"""Save and restore everything a model holds: tensors, attributes, modes, gradients, random states.

Small buffers are copied at once. Parameters and large tensors are copied only just before something writes to them, so that
probing a large model does not need memory for a second copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from heptane.base.randomness import preserved_rng
from heptane.model.saved_values import SavedValue, save_value

COPIED_BYTES = 16 << 20  # a larger tensor is copied only before it is written to
MAX_OBJECTS = 1_000_000  # visited: what holds more is data
_BUILT = ("_parameters", "_modules")


@contextmanager
def preserved_model(model: torch.nn.Module, *, guarded: bool = True) -> Iterator[Snapshot]:
    """Restore ``model`` and the random states at the end, whatever is done with the model inside.

    What a first call builds is kept: the parameters of lazy layers, and layers that ``forward`` creates on its first call.

    Args:
        model: any module.
        guarded: watch for writes to parameters, which costs some microseconds per operation. If False, writes to parameters
            are undone only if they happen inside ``with snapshot.guard():``.
    """
    snapshot = Snapshot(model)
    with preserved_rng():
        try:
            with snapshot.guard() if guarded else nullcontext():
                yield snapshot
        finally:
            snapshot.restore()


class Snapshot:
    """The saved state of a model: everything reachable from its modules' attributes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._modules: list[tuple[torch.nn.Module, dict[str, Any], set[str]]] = []
        self._values: list[SavedValue] = []
        self._tensors: list[_Tensor] = []
        self._watched: dict[int, list[_Tensor]] = {}
        self._collect(model)
        self._watch()

    def _collect(self, model: torch.nn.Module) -> None:
        seen: set[int] = set()
        pending: list[Any] = [model]
        sharded = any(hasattr(parameter, "to_local") for parameter in model.parameters())
        while pending and len(seen) < MAX_OBJECTS:
            value = pending.pop()
            if id(value) in seen:
                continue
            if isinstance(value, torch.Tensor):
                seen.add(id(value))
                if not is_lazy(value):
                    self._tensors.append(_Tensor(value))
            elif isinstance(value, torch.nn.Module):
                seen.add(id(value))
                if any(is_lazy(p) for p in value._parameters.values() if p is not None):
                    continue  # a lazy layer: the first call gives it its shape
                kept = dict(vars(value))
                self._modules.append((value, kept, _built(value)))
                # FSDP swaps a sharded model's parameters and tracks which are in place: leave them alone.
                pending += [held for name, held in kept.items() if name != "_parameters" or not sharded]
            elif (saved := save_value(value)) is not None:
                seen.add(id(value))
                self._values.append(saved)
                pending += saved.children

    def _watch(self) -> None:
        self._watched.clear()
        for tensor in self._tensors:
            if tensor.copy is None:
                self._watched.setdefault(tensor.storage, []).append(tensor)

    def follow(self, moved: Iterable[torch.Tensor]) -> None:
        """Accept that these tensors have moved to other memory with the same values."""
        known = {id(tensor.tensor): tensor for tensor in self._tensors}
        for tensor in moved:
            known[id(tensor)].settle()
        self._watch()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Copy each tensor before something inside writes to it, so that it can be restored."""
        with _Guard(self._watched):
            yield

    def written(self) -> list[torch.Tensor]:
        """The parameters that were written to, or whose data was replaced, inside :meth:`guard`."""
        return [
            t.tensor for t in self._tensors if isinstance(t.tensor, torch.nn.Parameter) and (t.copy is not None or t.moved)
        ]

    def restore(self) -> None:
        """Restore everything."""
        grown: set[int] = set()
        for module, kept, built in self._modules:
            if _built(module) - built:  # layers that the first call created would not be created again
                module.__dict__["training"] = kept["training"]
                grown |= {id(value) for value in kept.values()}
            elif not _same(vars(module), kept):
                module.__dict__.clear()
                module.__dict__.update(kept)
        for saved in self._values:
            if id(saved.value) not in grown:
                saved.restore()
        with torch.no_grad():
            for tensor in self._tensors:
                tensor.restore()


class _Tensor:
    """A tensor and its saved content."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) and not tensor.is_meta
        self.dense = self.plain and tensor.layout is torch.strided
        self.trains = tensor.requires_grad
        self.settle()
        self.grad = tensor.grad if tensor.is_leaf else None
        if self.grad is not None:
            tensor.grad = None  # backward would add to it
        self.version = 0 if tensor.is_inference() else tensor._version
        self.copy: torch.Tensor | None = None
        large = tensor.numel() * tensor.element_size() > COPIED_BYTES if self.strides is not None else False
        if not isinstance(tensor, torch.nn.Parameter) and not large and not tensor.is_meta:
            self.copy = self.alias.clone()

    def settle(self) -> None:
        """Record its current memory as the original."""
        self.alias = self.tensor.detach()
        self.strides = self.tensor.stride() if self.tensor.layout is torch.strided else None
        self.storage = self.tensor.untyped_storage()._cdata if self.strides is not None else 0

    @property
    def moved(self) -> bool:
        """Whether its data was replaced."""
        return self.dense and (self.tensor.untyped_storage()._cdata != self.storage or self.tensor.stride() != self.strides)

    def restore(self) -> None:
        tensor = self.tensor
        if tensor.is_leaf:
            if tensor.grad is not self.grad:
                tensor.grad = self.grad
            if tensor.requires_grad != self.trains:
                tensor.requires_grad_(self.trains)
        other = tensor.shape != self.alias.shape or tensor.dtype != self.alias.dtype
        if self.moved or (other and self.dense):
            tensor.data = self.alias
        if self.copy is not None and self._is_changed():
            with torch.inference_mode(tensor.is_inference()):
                self.alias.copy_(self.copy)

    def _is_changed(self) -> bool:
        if self.dense and self.alias.device.type == "cpu":
            return not torch.equal(self.alias, self.copy)  # type: ignore[arg-type]
        return self.plain or self.tensor.is_inference() or self.tensor._version != self.version


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies a watched tensor before an operation writes to it."""

    supports_higher_order_operators = True

    def __init__(self, watched: dict[int, list[_Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched, self._writes = watched, dict[Any, list[tuple[int, str]]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in self._writes:
            arguments = getattr(getattr(function, "_schema", None), "arguments", ())
            writes = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
            self._writes[function] = writes
        for at, name in self._writes[function]:
            given = args[at] if at < len(args) else kwargs.get(name)
            for tensor in given if isinstance(given, (list, tuple)) else (given,):
                if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                    with suppress(RuntimeError, NotImplementedError):  # the model has no tensor without storage
                        for kept in self._watched.pop(tensor.untyped_storage()._cdata, ()):
                            kept.copy = kept.alias.clone()
        with torch._C.DisableTorchFunction():  # other function modes see the model's own calls only
            return function(*args, **kwargs)


def _built(module: torch.nn.Module) -> set[str]:
    """Names of a module's own parameters and submodules."""
    return {name for kind in _BUILT for name, value in vars(module)[kind].items() if value is not None}


def _same(now: dict[str, Any], kept: dict[str, Any]) -> bool:
    return len(now) == len(kept) and all(key in now and now[key] is value for key, value in kept.items())
