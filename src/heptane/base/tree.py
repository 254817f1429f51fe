"""Trees of tensors: a tensor, or nested tuples, lists and dicts of tensors."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeAlias

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch

Path: TypeAlias = tuple[Any, ...]
Positions: TypeAlias = "slice | torch.Tensor"

LABELS = "labels"  # key of the targets in a batch that is one dict, as in transformers
TEXT_REMEDY = "convert text to numbers, for example with a tokenizer, or remove it from the data"


class Rows(ABC):
    """Samples that are read when they are indexed, such as images in a file; in a tree they are a leaf, like a tensor."""

    shape: tuple[int, ...]
    """(N, ...)"""
    device: torch.device
    dtype: torch.dtype
    """of the samples once read"""
    nbytes: int
    """as stored"""
    lengths: torch.Tensor | None = None
    """of each sample, if they differ: samples read together are padded to the longest"""

    @abstractmethod
    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Read the samples at ``positions``, int64 (M,) from 0 to N - 1."""

    def __getitem__(self, positions: Any) -> torch.Tensor:
        """Read samples, as a tensor is indexed.

        Raises:
            IndexError: there is no such sample.
        """
        if isinstance(positions, tuple):
            first, rest = (positions[0], positions[1:]) if positions else (slice(None), ())
            found = self[first]
            if any(isinstance(one, (list, torch.Tensor)) for one in rest):
                raise IndexError("a list or tensor may only choose samples: index the tensor of these samples")
            return found[rest if found.ndim < self.ndim else (slice(None), *rest)]
        if isinstance(positions, slice):
            return self.take(torch.from_numpy(np.arange(len(self))[positions].copy()))
        positions = torch.as_tensor(positions)
        if positions.dtype is torch.bool:
            if positions.shape != self.shape[:1]:
                raise IndexError(f"a mask of shape {tuple(positions.shape)} for {len(self)} samples")
            return self.take(positions.nonzero()[:, 0])
        chosen = torch.where(positions < 0, positions + len(self), positions).long()
        if bool(((chosen < 0) | (chosen >= len(self))).any()):
            raise IndexError(f"index {positions.flatten()[:5].tolist()} is out of range for {len(self)} samples")
        return self.take(chosen) if chosen.ndim else self.take(chosen[None])[0]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[at] for at in range(len(self)))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """A function of PyTorch gets all samples, as a tensor."""

        def read(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(read, value))
            return value[:] if isinstance(value, Rows) else value

        return function(*map(read, args), **{name: read(value) for name, value in (kwargs or {}).items()})

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """As of a tensor; ``dim`` is 0."""
        return self[index]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Rows:
        """The same samples, read to this device."""
        return self


def tree_leaves(data: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each leaf of nested dicts, tuples and lists with its path of keys; text is one leaf."""
    if isinstance(data, MutableMapping):
        for name, value in data.items():
            yield from tree_leaves(value, (*path, name))
    elif isinstance(data, (tuple, list)) and not is_text(data):
        for at, value in enumerate(data):
            yield from tree_leaves(value, (*path, at))
    else:
        yield path, data


def is_text(data: Any) -> bool:
    """Whether ``data`` is a string, or a list of strings."""
    return isinstance(data, (str, bytes)) or (
        isinstance(data, (tuple, list)) and bool(data) and isinstance(data[0], (str, bytes))
    )


def tree_map(function: Callable[[torch.Tensor], torch.Tensor], data: Any) -> Any:
    """Apply ``function`` to every tensor in a tree; container types are kept."""
    if isinstance(data, (torch.Tensor, Rows)):
        return function(data)  # type: ignore[arg-type]
    if isinstance(data, MutableMapping):
        mapped = copy.copy(data)
        mapped.update({key: tree_map(function, value) for key, value in data.items()})
        return mapped
    if isinstance(data, (tuple, list)):
        return rebuild(data, [tree_map(function, value) for value in data])
    return data


def rebuild(sequence: Any, items: list[Any]) -> Any:
    """Return ``items`` as the same type of list, tuple or named tuple as ``sequence``."""
    return sequence._make(items) if hasattr(sequence, "_make") else type(sequence)(items)


def select_rows(data: Any, positions: Positions) -> Any:
    """Select the samples at ``positions``; 0-d tensors are shared by all samples."""
    return tree_map(lambda t: t[positions] if t.ndim else t, data)


def copy_rows(data: Any, positions: Positions) -> Any:
    """Select the samples at ``positions`` as contiguous copies: an in-place model must not change the user's data, and
    ``view`` needs contiguous tensors."""
    return tree_copy(select_rows(data, positions))


def tree_copy(data: Any) -> Any:
    """Copy every tensor in a tree: detached and contiguous."""
    return tree_map(_copied, data)


def detached(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, detached if it requires a gradient."""
    return tensor.detach() if not isinstance(tensor, Rows) and tensor.requires_grad else tensor


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_nested:
        return tensor.clone()
    return tensor.clone(memory_format=torch.contiguous_format)


def local_part(tensor: Any) -> torch.Tensor:
    """This worker's part of a sharded tensor; any other tensor is returned unchanged."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def num_bytes(data: Any) -> int:
    """Memory of all tensors in ``data``, in bytes."""
    sizes: list[int] = []
    tree_map(lambda t: sizes.append(t.nbytes) or t, data)  # type: ignore[func-returns-value]
    return sum(sizes)


def first_tensor(data: Any) -> torch.Tensor:
    """Return the first tensor in ``data``; its length is the number of samples."""
    if isinstance(data, (torch.Tensor, Rows)):
        return data  # type: ignore[return-value]
    others = []
    for _, leaf in tree_leaves(data):
        if isinstance(leaf, (torch.Tensor, Rows)):
            return leaf  # type: ignore[return-value]
        others.append(leaf)
    if others and is_text(others[0]):
        raise InputError(f"data is text: expected a torch.Tensor, or a tuple, list or dict of tensors; {TEXT_REMEDY}")
    kind = type(others[0] if others else data).__name__
    raise InputError(f"data of type {kind}: expected a torch.Tensor, or a tuple, list or dict of tensors")


def in_memory(data: Any) -> bool:
    """Whether ``data`` holds the tensors themselves: (inputs, targets), or a dict with ``labels``."""
    return isinstance(data, (tuple, list)) or (isinstance(data, MutableMapping) and LABELS in data)


def inputs_and_targets(data: Any) -> tuple[Any, Any]:
    """Split a pair (inputs, targets), or a dict with ``labels``, into inputs and targets."""
    if isinstance(data, MutableMapping) and LABELS in data:
        return {key: value for key, value in data.items() if key != LABELS}, data[LABELS]
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        found = f"{len(data)} items" if isinstance(data, (tuple, list)) else type(data).__name__
        raise InputError(f"data of {found}: expected a pair (inputs, targets), or a dict with the key {LABELS!r}")
    return data[0], data[1]


def length(data: Any) -> int | None:
    """``len(data)``, or None if it has no length."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
