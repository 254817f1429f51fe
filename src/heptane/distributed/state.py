"""What a model holds beside its weights, brought back from a worker: buffers that no file has, and plain attributes."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

PLAIN = (bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device, type(None))
OWN = frozenset(vars(torch.nn.Module()))  # attributes that every module has


def take_state(theirs: torch.nn.Module, mine: torch.nn.Module) -> None:
    """Give ``mine`` all that ``theirs``, a copy of it that was trained elsewhere, holds: weights, buffers, extra state, and
    attributes of plain kinds (numbers, text, tensors, and lists or dicts of them)."""
    mine.load_state_dict(theirs.state_dict())
    take_rest(theirs, mine)


def take_rest(theirs: torch.nn.Module, mine: torch.nn.Module) -> None:
    """The same without what ``state_dict`` has."""
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
        for key, value in vars(other).items():
            if key not in OWN and is_plain(value):
                module.__dict__[key] = value


def is_plain(value: Any) -> bool:
    """Whether ``value`` is a number, a text, a tensor, or a list, tuple, set, deque or dict of such."""
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN) and not isinstance(value, torch.nn.Parameter)
