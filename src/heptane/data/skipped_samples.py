"""Samples that cannot be read, or are not like the others: named by index and file, and left out where that is wished.

Reading happens in a loader's own processes, whose errors arrive as text; so what went wrong travels beside the batch.
"""

from __future__ import annotations

import copy
import numbers
import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, in_memory, inputs_and_targets, select_rows, tree_map
from heptane.data.cast import to_tensors

MAX_NAMED = 5
READER_REMEDY = "for want of memory? lower num_workers or the size of a batch"


class DataError(InputError):
    """Data went bad while training; what was trained until then is not lost."""


Index: TypeAlias = "int | str"


class Collated(NamedTuple):
    """A batch on its way from a loader's process: the samples that it holds, and those that it does not, with the reason.
    ``indices`` is None where the loader's ``collate_fn`` adds or leaves out samples, so that nobody knows."""

    data: Any
    indices: list[Index] | None
    bad: list[tuple[Index, str]]


class _Bad(NamedTuple):
    reason: str


class _Guarded:
    """A data set whose samples come with their index, or with what reading them raised."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        try:
            return index, self.dataset[index]
        except Exception as error:
            return index, _Bad(f"{file_of(self.dataset, index)}{type(error).__name__}: {one_line(error)}")


class _Whole(NamedTuple):
    """What a data set that reads several samples at once gave for them, where that is no list of samples."""

    data: Any


class _GuardedMany(_Guarded):
    """The same for one that reads several samples at once."""

    def __getitems__(self, indices: list[Any]) -> list[tuple[Any, Any]] | _Whole:
        try:
            found = self.dataset.__getitems__(indices)
        except Exception:
            return [self[index] for index in indices]
        if not isinstance(found, list) or len(found) != len(indices):
            return _Whole(found)
        return list(zip(indices, found, strict=True))


class _Start:
    """A reader's start: ``get_worker_info().dataset`` is the user's own object, there and in all that it calls later."""

    def __init__(self, own: Callable[[int], Any] | None) -> None:
        self.own = own

    def __call__(self, reader: int) -> None:
        info: Any = torch.utils.data.get_worker_info()
        if isinstance(info.dataset, _Guarded):
            object.__setattr__(info, "dataset", info.dataset.dataset)  # it refuses to be assigned to
        if self.own is not None:
            self.own(reader)


class _Collate:
    """A loader's own ``collate_fn`` on the samples that were read; those that do not fit the others are left out of it."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate
        self._stacks = collate is torch.utils.data.default_collate
        self._kinds: Any = None

    def __call__(self, fetched: list[tuple[Any, Any]] | _Whole) -> Collated:
        if isinstance(fetched, _Whole):
            return Collated(to_tensors(self.collate(fetched.data)), None, [])
        bad = [(index, item.reason) for index, item in fetched if isinstance(item, _Bad)]
        good = [(index, item) for index, item in fetched if not isinstance(item, _Bad)]
        try:
            data = self._joined(good)
        except Exception as error:
            usual = Counter(map(_form, (item for _, item in good))).most_common(1)[0][0]
            odd = [(index, _form(item)) for index, item in good if _form(item) != usual]
            if not odd:
                raise
            bad += [(index, f"it is {form}, and others are {usual}") for index, form in odd]
            good = [(index, item) for index, item in good if _form(item) == usual]
            try:
                data = self._joined(good)
            except Exception:
                raise error from None
        known = data is None or batch_size(data) == len(good)
        indices = [_name(index) for index, _ in good] if known else None
        return Collated(data, indices, [(_name(index), reason) for index, reason in bad])

    def _joined(self, good: list[tuple[Any, Any]]) -> Any:
        if not good:
            return None
        if not self._stacks:
            return to_tensors(self.collate([item for _, item in good]))
        if self._kinds is None and len(types := {_types(item) for _, item in good}) > 1:
            raise TypeError(f"samples of {' and of '.join(sorted(types))}")
        data = self.collate([item for _, item in good])
        kinds = _kinds(data)
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:  # a sample of another dtype makes all of its batch so
            raise TypeError(f"a batch of {kinds}, after one of {self._kinds}")
        return data


def safe_loader(loader: Any) -> Any:
    """A copy of a ``DataLoader`` that yields :class:`Collated`; the loader itself where its samples have no index, or where
    a subclass makes its batches in an ``__iter__`` of its own, which expects those of its ``collate_fn``."""
    indexed = not isinstance(loader.dataset, torch.utils.data.IterableDataset) and loader.batch_sampler is not None
    own_iter = type(loader).__iter__ is not torch.utils.data.DataLoader.__iter__
    if not indexed or own_iter or isinstance(loader.dataset, _Guarded):
        return loader
    made = copy.copy(loader)
    kind = _GuardedMany if hasattr(loader.dataset, "__getitems__") else _Guarded
    guards = {"dataset": kind(loader.dataset), "collate_fn": _Collate(loader.collate_fn)}
    made.__dict__.update(guards, worker_init_fn=_Start(loader.worker_init_fn), _iterator=None)
    return made


def file_of(dataset: Any, index: Any) -> str:
    """``'photo.jpg': `` where a data set says from which file a sample comes, as torchvision's folders do; or nothing."""
    try:
        while isinstance(dataset, torch.utils.data.Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        for name in ("samples", "imgs", "files", "paths"):
            entry = getattr(dataset, name, None)
            if entry is not None:
                path = entry[index]
                path = path[0] if isinstance(path, (tuple, list)) else path
                return f"{str(path)!r}: "
    except Exception:  # whatever a stranger's attribute does
        return ""
    return ""


@dataclass
class SkippedSamples:
    """The samples that were left out of a run so far, at most ``limit``; by part of the data and index, with the reason."""

    limit: int = 0
    labels: tuple[int, int] | None = None
    """where targets are classes: how many there are, and the number that is ignored"""
    binary: bool = False
    """targets are labels, each in [0, 1]"""
    distributions: bool = False
    """targets were taken for distributions over the classes by the first batch"""
    found: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = lambda message: None
    said: set[str] = field(default_factory=set)

    def say_once(self, part: str, message: str) -> None:
        """Say something of a part of the data, unless something was said of it before."""
        if part not in self.said:
            self.said.add(part)
            self.say(f"{part} data: {message}")

    def labels_in(self, batch: Any) -> list[tuple[Index, str]]:
        """The samples of a batch whose label is no class.

        Raises:
            DataError: there is one, and nobody knows its index.
        """
        data = batch.data if isinstance(batch, Collated) else batch
        if not in_memory(data) or (isinstance(data, (tuple, list)) and len(data) != 2):
            return []
        if self.binary:
            check_binary(inputs_and_targets(data)[1])
        if self.distributions:
            check_distributions(inputs_and_targets(data)[1])
        if self.labels is None:
            return []
        num_classes, ignored = self.labels
        found = []
        for row, label in labels_beyond(inputs_and_targets(data)[1], num_classes, ignored):
            reason = f"label {label} is out of range: labels are 0 to {num_classes - 1}"
            if not isinstance(batch, Collated) or batch.indices is None:
                raise DataError(f"{reason}; it is in row {row} of a batch, whose samples have no index: look there")
            found.append((batch.indices[row], reason))
        return found

    def add(self, part: str, bad: list[tuple[Index, str]]) -> None:
        """Take note of more.

        Raises:
            DataError: they are too many.
        """
        for index, reason in bad:
            self._note(f"{part} sample {index}", reason)

    def _note(self, name: str, reason: str) -> None:
        if name in self.found:
            return
        if len(self.found) >= self.limit:
            remedy = "repair or remove it, or leave such samples out with skip_bad"
            if self.limit:
                named = ", ".join(list(self.found)[:MAX_NAMED])
                remedy = f"it is one more than skip_bad={self.limit} allows, after {named}"
            raise DataError(f"{name} cannot be used ({reason}): {remedy}")
        self.found[name] = reason
        self.say(skip_message(name, reason))

    def of_all_workers(self, found: list[dict[str, str]]) -> None:
        """Take note of what each worker found in its share of an evaluation.

        Raises:
            DataError: they are too many together.
        """
        for entries in found:
            for name, reason in entries.items():
                self._note(name, reason)


def check_binary(targets: Any) -> None:
    """Refuse what is no label: the loss was chosen by the first batch, and this one is of another kind.

    Raises:
        DataError: some are not in [0, 1].
    """
    if not isinstance(targets, torch.Tensor) or targets.dtype is torch.bool or not targets.numel():
        return
    low, high = (float(value) for value in torch.aminmax(targets))
    if not (low >= 0 and high <= 1):
        value = high if high > 1 else low
        raise DataError(
            f"a target of {value:g}, and by the first batch each was taken for a label in [0, 1]: for real numbers pass "
            "loss='mse', for -1 and 1 (targets > 0).float()"
        )


def check_distributions(targets: Any) -> None:
    """Refuse rows that do not sum to 1: by the first batch, whose rows did, the targets were taken for distributions.

    Raises:
        DataError: some do not.
    """
    if not isinstance(targets, torch.Tensor) or not targets.is_floating_point() or targets.ndim < 2:
        return
    sums = targets.sum(1).double()
    wrong = (sums - 1).abs() > 1e-3
    if bool(wrong.any()):
        raise DataError(
            f"a row of targets that sums to {float(sums[wrong].flatten()[0]):g}, and by the first batch each row was taken "
            "for a distribution over the classes: pass loss='binary_cross_entropy' for labels of which several may be true, "
            "loss='mse' for real numbers"
        )


def skip_message(name: str, reason: str) -> str:
    """What a report says of it."""
    return f"{name} was left out: {reason}"


def drop_samples(collated: Collated, unwanted: set[Index]) -> Collated:
    """The batch without those samples."""
    if collated.indices is None or not unwanted & set(collated.indices):
        return collated
    keep = [at for at, index in enumerate(collated.indices) if index not in unwanted]
    data = select_rows(collated.data, torch.tensor(keep, device="cpu")) if keep else None
    return Collated(data, [collated.indices[at] for at in keep], collated.bad)


def labels_beyond(targets: Any, num_classes: int, ignore_index: int) -> list[tuple[int, int]]:
    """Which rows of integer targets are no class, and what they hold."""
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or not targets.numel():
        return []
    low, high = (int(value) for value in torch.aminmax(targets))
    if low >= 0 and high < num_classes:
        return []
    wrong = ((targets < 0) | (targets >= num_classes)) & (targets != ignore_index)
    where = wrong.reshape(len(targets), -1).any(1).nonzero().flatten().tolist()
    return [(row, int(targets[row][wrong[row]].flatten()[0])) for row in where]


def _form(item: Any) -> str:
    """Shapes and types of a sample, in words that can be compared."""
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
    """Rows of a collated batch; -1 where it has no tensor."""
    try:
        return len(first_tensor(data))
    except (InputError, TypeError):
        return -1


def _name(index: Any) -> Index:
    """A sampler's index, as a report can name it."""
    try:
        return operator.index(index)
    except TypeError:
        return str(index)


def _types(item: Any) -> str:
    """The same without the shapes, which may differ where a loader pads."""
    return re.sub(r"(?<=\w) \([\d, ]*\)", "", _form(item))


def _kinds(data: Any) -> list[torch.dtype]:
    found: list[torch.dtype] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.dtype)
        return tensor

    tree_map(look, data)
    return found
