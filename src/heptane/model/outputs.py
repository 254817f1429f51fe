"""The tensors in a model's output, in any structure: tuples, dicts, dataclasses, custom objects."""

from __future__ import annotations

import copy
import dataclasses
import operator
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
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
    return map_tensors(output, lambda t: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t)


def find_tensors(output: Any) -> list[torch.Tensor]:
    """Return all tensors in an output, in any structure.

    Example:
        >>> find_tensors({"a": [torch.ones(1)], "b": "text"})
        [tensor([1.])]
    """
    found: list[torch.Tensor] = []
    map_tensors(output, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def autograd_graph(tensor: torch.Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph through which ``tensor`` passes gradients back."""
    left, seen = [tensor.grad_fn], set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            left += [before for before, _ in node.next_functions]


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor], within: frozenset[int] = frozenset()) -> Any:
    """Apply ``change`` to each tensor in ``value``, keeping its structure; if none changes, return the same object.

    Args:
        value: an output; of objects and containers in it that change, copies are made.
        change: from a tensor to a tensor.
        within: ids of the objects around ``value``; reference cycles are not followed.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)) or id(value) in within:
        return value
    within = within | {id(value)}
    if isinstance(value, (tuple, list, deque)):
        items = [map_tensors(held, change, within) for held in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        if isinstance(value, deque):
            return deque(items, value.maxlen)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (*_CLOSED, torch.nn.Module)):
        return value
    inside = value if isinstance(value, Mapping) else _attributes(value)
    found = {name: map_tensors(held, change, within) for name, held in inside.items()}
    if all(held is inside[name] for name, held in found.items()):
        return value
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return type(value)(found)  # type: ignore[call-arg]
    made: Any = copy.copy(value)  # keeps its class and attributes
    put = operator.setitem if isinstance(value, MutableMapping) else object.__setattr__  # also fields of frozen dataclasses
    for name, held in found.items():
        if held is not inside[name]:
            put(made, name, held)
    return made


def _attributes(value: Any) -> dict[str, Any]:
    """An object's attributes, including slots."""
    found = dict(getattr(value, "__dict__", None) or {})
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for name in [*slot_names(type(value)), *fields]:
        if name not in found and hasattr(value, name):
            found[name] = getattr(value, name)
    return found
