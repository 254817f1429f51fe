"""Copy a model's state from a worker's copy: weights, buffers that the state dict lacks, and plain attributes."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from heptane.model.buffers import module_attributes
from heptane.model.saved_values import FOREIGN

PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, torch.Tensor, torch.dtype, torch.device, type(None))


def copy_state(theirs: torch.nn.Module, mine: torch.nn.Module) -> None:
    """Copy all state of ``theirs``, a trained copy of the model, to ``mine``: weights, buffers, extra state, and attributes
    of plain types (numbers, text, tensors, and lists or dicts of them), also inside the user's own objects."""
    mine.load_state_dict(theirs.state_dict())
    copy_extra_state(theirs, mine)


def copy_extra_state(theirs: torch.nn.Module, mine: torch.nn.Module) -> None:
    """Copy the state that ``state_dict`` does not contain."""
    for name, other in theirs.named_modules():
        try:
            module = mine.get_submodule(name)
        except AttributeError:
            continue
        for key, value in other._buffers.items():
            own = module._buffers.get(key)
            if own is not None and value is not None and (own.shape, own.dtype) == (value.shape, value.dtype):
                own.detach().copy_(value.detach())
            else:
                module._buffers[key] = value
        found = {k: v for k, v in vars(other).items() if k not in module_attributes() and (k in vars(module) or is_plain(v))}
        _take_attributes(found, module.__dict__, set())


def is_plain(value: Any) -> bool:
    """Whether ``value`` is a number, text, tensor or array, or a list, tuple, set, deque or dict of these."""
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN) and not isinstance(value, torch.nn.Parameter)


def _take_attributes(theirs: dict[str, Any], mine: dict[str, Any], seen: set[int]) -> None:
    """Copy plain values from the attributes ``theirs`` to ``mine``, recursively in the user's own objects."""
    for key, value in theirs.items():
        mine[key] = _taken(mine.get(key), value, seen)


def _taken(own: Any, value: Any, seen: set[int]) -> Any:
    """The new value for ``own``: ``value`` if that is plain, else ``own`` with the plain values inside it copied."""
    if is_plain(value):
        return _kept_in(own, value)
    if id(value) in seen:
        return own
    seen.add(id(value))
    if _is_object(value) and _is_object(own) and type(own).__qualname__ == type(value).__qualname__:
        _take_attributes(vars(value), vars(own), seen)
    elif isinstance(value, dict) and isinstance(own, dict):
        _take_attributes({key: item for key, item in value.items() if key in own or is_plain(item)}, own, seen)
    elif isinstance(value, list) and isinstance(own, list) and len(own) == len(value):
        own[:] = [_taken(mine, theirs, seen) for mine, theirs in zip(own, value, strict=True)]
    return own


def _is_object(value: Any) -> bool:
    """Whether it is an object with attributes, of the user's own class."""
    foreign = type(value).__module__.partition(".")[0] in (*FOREIGN, "builtins", "functools")
    return hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module)) and not foreign


def _kept_in(own: Any, value: Any) -> Any:
    """``value``, copied into the container or array ``own`` if types match, since other objects may refer to ``own``."""
    if own is value or type(own) is not type(value):
        return value
    if isinstance(own, (dict, set)):
        own.clear()
        own.update(value)
    elif isinstance(own, (list, deque)):
        own.clear()
        own.extend(value)
    elif isinstance(own, np.ndarray) and (own.shape, own.dtype) == (value.shape, value.dtype) and own.flags.writeable:
        np.copyto(own, value)
    else:
        return value
    return own
