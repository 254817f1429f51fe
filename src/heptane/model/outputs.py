"""The tensors in a model's output, in any structure: tuples, dicts, dataclasses, custom objects."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from heptane.base.lazy import torch
from heptane.model.saved_values import slot_names

_CLOSED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def outputs_to_fp32(output: Any) -> Any:
    """Convert the 16-bit tensors in ``output`` to float32, keeping its structure; without any, return the same object.

    Args:
        output: tensors nested in tuples, named tuples, lists, mappings, dataclasses (also frozen), or objects with
            attributes, such as a ``torch.distributions.Normal``.

    Example:
        >>> outputs_to_fp32((torch.ones(1, dtype=torch.bfloat16), "text"))
        (tensor([1.]), 'text')
    """
    return map_tensors(output, _to_fp32)


def map_tensors(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply ``change`` to each tensor in ``output``, keeping its structure; if none changes, return the same object."""
    return _changed(output, change, set())


def find_tensors(output: Any) -> list[torch.Tensor]:
    """Return all tensors in an output, in any structure.

    Example:
        >>> find_tensors({"a": [torch.ones(1)], "b": "text"})
        [tensor([1.])]
    """
    found: list[torch.Tensor] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _changed(output, look, set())
    return found


def _to_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor], within: set[int]) -> Any:
    """``value`` with changed tensors: the same object if none changes, else a copy; reference cycles are not followed."""
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
    made = copy.copy(value)  # keeps its class and attributes
    for key, held in new.items():
        made[key] = held
    return made


def _held(value: Any) -> dict[str, Any]:
    """An object's attributes, including slots."""
    found = dict(getattr(value, "__dict__", None) or {})
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for name in [*slot_names(type(value)), *fields]:
        if name not in found and hasattr(value, name):
            found[name] = getattr(value, name)
    return found


def _attributes(value: Any, found: dict[str, Any]) -> Any:
    own = _held(value)
    new = {name: held for name, held in found.items() if held is not own[name]}
    if not new:
        return value
    made = copy.copy(value)
    for name, held in new.items():
        object.__setattr__(made, name, held)  # also sets fields of frozen dataclasses
    return made
