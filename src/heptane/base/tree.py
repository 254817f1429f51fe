"""Trees of tensors (a tensor, or tuples, lists and dicts of them): mapped, cut into rows, copied, measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeAlias

from heptane.base.errors import InputError
from heptane.base.lazy import torch

Path: TypeAlias = tuple[Any, ...]


TEXT_REMEDY = "turn text into numbers, as a tokenizer does, or leave it out of the data"


def leaves(data: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What is inside dicts, tuples and lists, each with its keys; text is one leaf."""
    if isinstance(data, MutableMapping):
        for name, value in data.items():
            yield from leaves(value, (*path, name))
    elif isinstance(data, (tuple, list)) and not is_text(data):
        for at, value in enumerate(data):
            yield from leaves(value, (*path, at))
    else:
        yield path, data


def is_text(data: Any) -> bool:
    """Whether it is a string, or a column of them."""
    return isinstance(data, (str, bytes)) or (
        isinstance(data, (tuple, list)) and bool(data) and isinstance(data[0], (str, bytes))
    )


LABELS = "labels"  # of a batch that is one dict, as in transformers


Positions: TypeAlias = "slice | torch.Tensor"


def tree_map(function: Callable[[torch.Tensor], torch.Tensor], data: Any) -> Any:
    """Apply ``function`` to every tensor of a tensor, tuple, list or dict of them; the kinds of the containers stay."""
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, MutableMapping):
        mapped = copy.copy(data)
        mapped.update({key: tree_map(function, value) for key, value in data.items()})
        return mapped
    if isinstance(data, (tuple, list)):
        return rebuild(data, [tree_map(function, value) for value in data])
    return data


def rebuild(sequence: Any, items: list[Any]) -> Any:
    """``items`` as the kind of tuple (a named one too) or list that ``sequence`` is."""
    return sequence._make(items) if hasattr(sequence, "_make") else type(sequence)(items)


def select_rows(data: Any, positions: Positions) -> Any:
    """The samples at ``positions``; a tensor without dimensions belongs to all of them."""
    return tree_map(lambda t: t[positions] if t.ndim else t, data)


def copy_rows(data: Any, positions: Positions) -> Any:
    """The samples at ``positions`` in memory of their own, contiguous: a slice would share the user's memory, which a model
    that works in place changes, and a slice of a permuted tensor cannot be seen in another shape."""
    return tree_copy(select_rows(data, positions))


def tree_copy(data: Any) -> Any:
    """The same in memory of its own: without a gradient's graph, contiguous, and usable in training."""
    return tree_map(_copied, data)


def without_graph(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or, where a gradient would flow into it, one that shares its memory and has no graph."""
    return tensor.detach() if tensor.requires_grad else tensor


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_nested:
        return tensor.clone()
    return tensor.clone(memory_format=torch.contiguous_format)


def num_bytes(data: Any) -> int:
    """The memory that the tensors inside ``data`` take, in bytes."""
    sizes: list[int] = []
    tree_map(lambda t: sizes.append(t.nbytes) or t, data)  # type: ignore[func-returns-value]
    return sum(sizes)


def first_tensor(data: Any) -> torch.Tensor:
    """The first tensor inside ``data``; its length is the number of samples."""
    if isinstance(data, torch.Tensor):
        return data
    others = []
    for _, leaf in leaves(data):
        if isinstance(leaf, torch.Tensor):
            return leaf
        others.append(leaf)
    if others and is_text(others[0]):
        raise InputError(f"data of text: expected a torch.Tensor, or a tuple, list or dict of them; {TEXT_REMEDY}")
    kind = type(others[0] if others else data).__name__
    raise InputError(f"data of type {kind}: expected a torch.Tensor, or a tuple, list or dict of them")


def in_memory(data: Any) -> bool:
    """Whether ``data`` are the tensors themselves: inputs and targets, or a dict with ``labels``."""
    return isinstance(data, (tuple, list)) or (isinstance(data, MutableMapping) and LABELS in data)


def inputs_and_targets(data: Any) -> tuple[Any, Any]:
    """Inputs and targets: of two things the first and the second, of a dict with ``labels`` the rest and these."""
    if isinstance(data, MutableMapping) and LABELS in data:
        return {key: value for key, value in data.items() if key != LABELS}, data[LABELS]
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        found = f"{len(data)} items" if isinstance(data, (tuple, list)) else type(data).__name__
        raise InputError(f"data of {found}: expected two things, inputs and targets, or a dict with {LABELS!r} in it")
    return data[0], data[1]


def length(data: Any) -> int | None:
    """``len(data)``, or None where it has none."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
