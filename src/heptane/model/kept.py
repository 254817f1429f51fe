"""What a step that is not applied must not leave behind: a model's buffers, and the state that its modules keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from heptane.base.lazy import torch
from heptane.model.holders import Holder, holder_of


class BufferSnapshot:
    """A model's buffers and its own modules' state as they were before a step, such as BatchNorm's statistics or the hidden
    state of a recurrent network; by name too, since ``forward`` may assign them anew.

    Args:
        model: its buffers, and the attributes that modules of the user's own hold beside parameters and modules.
        written: parameters that ``forward`` writes to by itself, such as a running average; the optimizer's are its own.
    """

    def __init__(self, model: torch.nn.Module, written: Sequence[torch.Tensor] = ()) -> None:
        self.written = list(written)
        modules = list(model.modules())
        self._attributes = [vars(m) for m in modules if _is_own(m)]
        self._buffers = [m._buffers for m in modules if m._buffers or _is_own(m)]
        self._named: list[tuple[Any, dict[str, Any]]] = []
        self._holders: list[Holder] = []
        self._tensors: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []
        self._constant: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def keep(self) -> None:
        """Remember them."""
        self._named = [(names, dict(names)) for names in self._buffers]
        tensors = [b for _, held in self._named for b in held.values() if b is not None and b.numel()]
        tensors += self.written
        if len(tensors) != len(self._tensors) or any(a is not b for a, b in zip(tensors, self._tensors, strict=True)):
            self._tensors, self._before = tensors, [torch.empty_like(b, requires_grad=False) for b in tensors]
        if tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._before, tensors)
        self._keep_attributes()

    def put_back(self) -> None:
        """Undo what the step did to them."""
        for names, held in self._named:
            if len(names) != len(held) or any(names.get(name) is not b for name, b in held.items()):
                names.clear()
                names.update(held)
        for holder in self._holders:
            holder.restore()
        with torch.no_grad():
            if self._tensors:
                torch._foreach_copy_(self._tensors, self._before)
            for tensor, version, before in self._constant.values():
                if tensor._version != version:
                    tensor.copy_(before)

    def _keep_attributes(self) -> None:
        self._holders, tensors, seen = [], [], set[int]()
        left: list[Any] = []
        for attributes in self._attributes:
            found = {name: value for name, value in attributes.items() if name not in standard() and not _is_count(value)}
            self._holders.append(Holder(attributes, found, _put_attributes))
            if found:
                left += found.values()
        while left:
            value = left.pop()
            if id(value) in seen or isinstance(value, torch.nn.Module):
                continue
            seen.add(id(value))
            if isinstance(value, torch.Tensor):
                tensors += [] if isinstance(value, torch.nn.Parameter) or value.is_inference() else [value]
            elif (holder := holder_of(value)) is not None:
                self._holders.append(holder)
                left += holder.children()
        known, self._constant = self._constant, {}
        for tensor in tensors:  # a copy of what has not been written to since is a copy still
            old = known.get(id(tensor))
            same = old is not None and old[0] is tensor and old[1] == tensor._version
            self._constant[id(tensor)] = old if same and old else (tensor, tensor._version, tensor.detach().clone())


@cache
def standard() -> frozenset[str]:
    """Names of what every module has."""
    return frozenset(vars(torch.nn.Module()))


def _is_own(module: torch.nn.Module) -> bool:
    """Whether its class is not one of PyTorch's, which keep nothing beside buffers."""
    return type(module).__module__.partition(".")[0] != "torch"


def _is_count(value: Any) -> bool:
    """Whether it is a number of calls, a flag or a name: true of each call, applied or not, and never NaN."""
    return isinstance(value, (bool, int, str))


def _put_attributes(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    """What a module held beside what every module has, as it was; nothing else of it is touched."""
    for name, value in kept.items():
        if attributes.get(name) is not value:
            attributes[name] = value
    for name in [name for name in attributes if name not in kept and name not in standard()]:
        if not _is_count(attributes[name]):
            del attributes[name]
