"""The tensors in what a model gives, whatever holds them: tuples, dicts, dataclasses, objects of a class of one's own."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from heptane.base.lazy import torch

_CLOSED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def in_32_bits(output: Any) -> Any:
    """``output`` with its 16-bit tensors in 32 bits, in the same structure; what holds none is returned as it is.

    Args:
        output: a tensor, or tensors in tuples (named ones too), lists, dicts and other mappings, dataclasses (frozen ones
            too), and objects with attributes, such as a ``torch.distributions.Normal``; in any depth.

    Example:
        >>> in_32_bits((torch.ones(1, dtype=torch.bfloat16), "text"))
        (tensor([1.]), 'text')
    """
    return changed(output, _in_32_bits)


def changed(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``output`` with ``change`` made to each of its tensors, in the same structure; as it is where none is changed."""
    return _changed(output, change, set())


def tensors_in(output: Any) -> list[torch.Tensor]:
    """All tensors in an output, whatever holds them.

    Example:
        >>> tensors_in({"a": [torch.ones(1)], "b": "text"})
        [tensor([1.])]
    """
    found: list[torch.Tensor] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _changed(output, look, set())
    return found


def _in_32_bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor], within: set[int]) -> Any:
    """``value`` with its tensors changed: itself if none is, else a copy; an object inside itself is left alone."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)) or id(value) in within:
        return value
    within = within | {id(value)}
    if isinstance(value, Mapping):
        return _mapping(value, {key: _changed(held, change, within) for key, held in value.items()})
    if isinstance(value, (tuple, list, deque)):
        items = [_changed(held, change, within) for held in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        if isinstance(value, deque):
            return deque(items, value.maxlen)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (*_CLOSED, torch.nn.Module)):
        return value
    return _attributes(value, {name: _changed(held, change, within) for name, held in _held(value).items()})


def _mapping(value: Any, found: dict[Any, Any]) -> Any:
    new = {key: held for key, held in found.items() if held is not value[key]}
    if not new:
        return value
    if not isinstance(value, MutableMapping):
        return type(value)(found)
    made = copy.copy(value)  # of its own class, with its own attributes
    for key, held in new.items():
        made[key] = held
    return made


def _held(value: Any) -> dict[str, Any]:
    """An object's attributes, those in slots too."""
    found = dict(getattr(value, "__dict__", None) or {})
    slots = [name for base in type(value).__mro__ for name in _names(base.__dict__.get("__slots__", ()))]
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for name in [*slots, *fields]:
        if name not in found and not name.startswith("__") and hasattr(value, name):
            found[name] = getattr(value, name)
    return found


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(name for name in slots if isinstance(name, str))


def _attributes(value: Any, found: dict[str, Any]) -> Any:
    own = _held(value)
    new = {name: held for name, held in found.items() if held is not own[name]}
    if not new:
        return value
    made = copy.copy(value)
    for name, held in new.items():
        object.__setattr__(made, name, held)  # frozen ones too
    return made
