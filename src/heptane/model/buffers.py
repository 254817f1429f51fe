"""Save a model's buffers and module attributes before a step, and restore them if the step is not applied."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from heptane.base.lazy import torch
from heptane.model.saved_values import SavedValue, save_value


class BufferSnapshot:
    """The state that a forward pass changes, such as BatchNorm's statistics or a recurrent network's hidden state.

    This is the buffers of all modules, and other attributes of the user's own modules. It is saved by name as well as by
    value, since ``forward`` may rebind a name.

    Args:
        model: the model.
        written: parameters that ``forward`` itself writes to, such as a running average.
    """

    def __init__(self, model: torch.nn.Module, written: Sequence[torch.Tensor] = ()) -> None:
        self.written = list(written)
        modules = list(model.modules())
        self._attributes = [vars(m) for m in modules if _is_own(m)]
        self._buffers = [m._buffers for m in modules if m._buffers or _is_own(m)]
        self._named: list[tuple[Any, dict[str, Any]]] = []
        self._values: list[SavedValue] = []
        self._tensors: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []
        self._constant: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def save(self) -> None:
        """Save the current state."""
        self._named = [(names, dict(names)) for names in self._buffers]
        tensors = [b for _, held in self._named for b in held.values() if b is not None and b.numel()]
        tensors += self.written
        if len(tensors) != len(self._tensors) or any(a is not b for a, b in zip(tensors, self._tensors, strict=True)):
            self._tensors, self._before = tensors, [torch.empty_like(b, requires_grad=False) for b in tensors]
        if tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._before, tensors)
        self._save_attributes()

    def restore(self) -> None:
        """Restore the saved state."""
        for names, held in self._named:
            if len(names) != len(held) or any(names.get(name) is not b for name, b in held.items()):
                names.clear()
                names.update(held)
        for saved in self._values:
            saved.restore()
        with torch.no_grad():
            if self._tensors:
                torch._foreach_copy_(self._tensors, self._before)
            for tensor, version, before in self._constant.values():
                if tensor._version != version:
                    tensor.copy_(before)

    def _save_attributes(self) -> None:
        self._values, tensors, seen = [], [], set[int]()
        pending: list[Any] = []
        for attributes in self._attributes:
            found = {
                name: value for name, value in attributes.items() if name not in module_attributes() and not _is_count(value)
            }
            self._values.append(SavedValue(attributes, found, _put_attributes))
            if found:
                pending += found.values()
        while pending:
            value = pending.pop()
            if id(value) in seen or isinstance(value, torch.nn.Module):
                continue
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                tensors += [] if isinstance(value, torch.nn.Parameter) or value.is_inference() else [value]
            elif (saved := save_value(value)) is not None:
                self._values.append(saved)
                pending += saved.children
        known, self._constant = self._constant, {}
        for tensor in tensors:  # a tensor that was not written to since needs no new copy
            old = known.get(id(tensor))
            same = old is not None and old[0] is tensor and old[1] == tensor._version
            self._constant[id(tensor)] = old if same and old else (tensor, tensor._version, tensor.detach().clone())


@cache
def module_attributes() -> frozenset[str]:
    """Names of the attributes that every module has."""
    return frozenset(vars(torch.nn.Module()))


def _is_own(module: torch.nn.Module) -> bool:
    """Whether its class is the user's; PyTorch's modules keep no state but buffers."""
    return type(module).__module__.partition(".")[0] != "torch"


def _is_count(value: Any) -> bool:
    """Whether it is a counter, a flag or a name: these are kept when a step is undone, as they can never be NaN."""
    return isinstance(value, (bool, int, str))


def _put_attributes(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    """Restore a module's extra attributes, and leave those that every module has alone."""
    for name, value in kept.items():
        if attributes.get(name) is not value:
            attributes[name] = value
    for name in [name for name in attributes if name not in kept and name not in module_attributes()]:
        if not _is_count(attributes[name]):
            del attributes[name]
