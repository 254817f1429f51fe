"""Wrap a ``DataLoader`` so that unreadable samples, and samples that do not fit their batch, travel beside it as messages.

A loader's worker processes read the samples; their exceptions would arrive as text, without the index of the sample.
"""

from __future__ import annotations

import copy
import numbers
import operator
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, select_rows, tree_map
from heptane.data.cast import to_tensors

Index: TypeAlias = "int | str"


class Collated(NamedTuple):
    """A batch with the indices of its samples, and the samples it is missing, each with the reason.

    ``indices`` is None if unknown, because the loader's ``collate_fn`` adds or drops samples.
    """

    data: Any
    indices: list[Index] | None
    bad: list[tuple[Index, str]]


class _Unreadable(NamedTuple):
    reason: str


class _SafeDataset:
    """A dataset that returns (index, sample), or (index, error message) if the sample cannot be read."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        try:
            return index, self.dataset[index]
        except Exception as error:
            return index, _Unreadable(f"{file_of(self.dataset, index)}{type(error).__name__}: {one_line(error)}")


class _Whole(NamedTuple):
    """The result of ``__getitems__``, if it is not a list with one sample per index."""

    data: Any


class _SafeBatchDataset(_SafeDataset):
    """:class:`_SafeDataset` for a dataset with ``__getitems__``, which reads several samples at once."""

    def __getitems__(self, indices: list[Any]) -> list[tuple[Any, Any]] | _Whole:
        try:
            found = self.dataset.__getitems__(indices)
        except Exception:
            return [self[index] for index in indices]
        if not isinstance(found, list) or len(found) != len(indices):
            return _Whole(found)
        return list(zip(indices, found, strict=True))


class _WorkerInit:
    """The user's ``worker_init_fn``, after setting ``get_worker_info().dataset`` to the user's own dataset."""

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self.init = init

    def __call__(self, worker: int) -> None:
        info: Any = torch.utils.data.get_worker_info()
        if isinstance(info.dataset, _SafeDataset):
            object.__setattr__(info, "dataset", info.dataset.dataset)  # plain assignment is blocked
        if self.init is not None:
            self.init(worker)


class _SafeCollate:
    """The loader's ``collate_fn`` on the readable samples, without those whose shape or type differs from the others."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate
        self._stacks = collate is torch.utils.data.default_collate
        self._kinds: Any = None

    def __call__(self, fetched: list[tuple[Any, Any]] | _Whole) -> Collated:
        if isinstance(fetched, _Whole):
            return Collated(to_tensors(self.collate(fetched.data)), None, [])
        bad = [(index, item.reason) for index, item in fetched if isinstance(item, _Unreadable)]
        good = [(index, item) for index, item in fetched if not isinstance(item, _Unreadable)]
        try:
            data = self._collated(good)
        except Exception as error:
            usual = Counter(map(_form, (item for _, item in good))).most_common(1)[0][0]
            odd = [(index, _form(item)) for index, item in good if _form(item) != usual]
            if not odd:
                raise
            bad += [(index, f"it is {form}, other samples are {usual}") for index, form in odd]
            good = [(index, item) for index, item in good if _form(item) == usual]
            try:
                data = self._collated(good)
            except Exception:
                raise error from None
        known = data is None or batch_size(data) == len(good)
        indices = [_plain_index(index) for index, _ in good] if known else None
        return Collated(data, indices, [(_plain_index(index), reason) for index, reason in bad])

    def _collated(self, good: list[tuple[Any, Any]]) -> Any:
        if not good:
            return None
        if not self._stacks:
            return to_tensors(self.collate([item for _, item in good]))
        if self._kinds is None and len(types := {_types(item) for _, item in good}) > 1:
            raise TypeError(f"samples of different types: {' and '.join(sorted(types))}")
        data = self.collate([item for _, item in good])
        kinds = _dtypes(data)
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:  # one sample of another dtype changes the whole batch
            raise TypeError(f"a batch of dtypes {kinds} after one of {self._kinds}")
        return data


def safe_loader(loader: Any) -> Any:
    """Return a copy of a ``DataLoader`` that yields :class:`Collated`.

    The loader itself is returned if its samples have no index, or if a subclass overrides ``__iter__``, which expects
    batches of the original ``collate_fn``.
    """
    indexed = not isinstance(loader.dataset, torch.utils.data.IterableDataset) and loader.batch_sampler is not None
    own_iter = type(loader).__iter__ is not torch.utils.data.DataLoader.__iter__
    if not indexed or own_iter or isinstance(loader.dataset, _SafeDataset):
        return loader
    wrapped = copy.copy(loader)
    kind = _SafeBatchDataset if hasattr(loader.dataset, "__getitems__") else _SafeDataset
    parts = {"dataset": kind(loader.dataset), "collate_fn": _SafeCollate(loader.collate_fn)}
    wrapped.__dict__.update(parts, worker_init_fn=_WorkerInit(loader.worker_init_fn), _iterator=None)
    return wrapped


def file_of(dataset: Any, index: Any) -> str:
    """``'photo.jpg': `` if the dataset lists its files, as torchvision's folders do; else an empty string."""
    try:
        while isinstance(dataset, torch.utils.data.Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        for name in ("samples", "imgs", "files", "paths"):
            entry = getattr(dataset, name, None)
            if entry is not None:
                path = entry[index]
                path = path[0] if isinstance(path, (tuple, list)) else path
                return f"{str(path)!r}: "
    except Exception:  # the attribute may be anything
        return ""
    return ""


def drop_samples(collated: Collated, unwanted: set[Index]) -> Collated:
    """Return the batch without the samples of these indices."""
    if collated.indices is None or not unwanted & set(collated.indices):
        return collated
    keep = [at for at, index in enumerate(collated.indices) if index not in unwanted]
    data = select_rows(collated.data, torch.tensor(keep, device="cpu")) if keep else None
    return Collated(data, [collated.indices[at] for at in keep], collated.bad)


def _form(item: Any) -> str:
    """Shapes and dtypes of a sample as comparable text."""
    if isinstance(item, numbers.Integral):
        return "int"
    if isinstance(item, (tuple, list)):
        return f"({', '.join(map(_form, item))})"
    if isinstance(item, dict):
        return "{" + ", ".join(f"{key}: {_form(value)}" for key, value in item.items()) + "}"
    if hasattr(item, "shape") and hasattr(item, "dtype"):
        return f"{str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}"
    return type(item).__name__


def batch_size(data: Any) -> int:
    """Number of samples in a collated batch; -1 if it has no tensor."""
    try:
        return len(first_tensor(data))
    except (InputError, TypeError):
        return -1


def _plain_index(index: Any) -> Index:
    """A sampler's index as an int or a string."""
    try:
        return operator.index(index)
    except TypeError:
        return str(index)


def _types(item: Any) -> str:
    """:func:`_form` without shapes, which may differ if the loader pads."""
    return re.sub(r"(?<=\w) \([\d, ]*\)", "", _form(item))


def _dtypes(data: Any) -> list[torch.dtype]:
    found: list[torch.dtype] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.dtype)
        return tensor

    tree_map(look, data)
    return found
