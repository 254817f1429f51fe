"""Convert user data of any accepted kind to batches for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.base.tree import (
    LABELS,
    copy_rows,
    first_tensor,
    in_memory,
    inputs_and_targets,
    length,
    select_rows,
)
from heptane.data.batches import Source, TensorSource, check_batch, count_samples, dataset_tensors, epoch_order
from heptane.data.cast import check_real
from heptane.data.loaders.loader_source import LoaderSource
from heptane.data.loaders.read_batches import eval_batches, readable_batches
from heptane.data.loaders.stream_source import StreamSource

if TYPE_CHECKING:
    from heptane.data.loaders.skipped_samples import SkippedSamples


def as_source(data: Any, batch_size: int | None, seed: int, accumulate: int, steps: int | None = None) -> Source:
    """Convert training data to a :class:`Source`.

    Args:
        data: a pair of tensors, a ``Dataset`` of pairs, or a ``DataLoader``.
        batch_size: samples per optimizer step; None for a ``DataLoader``, which has its own.
        seed: of the order.
        accumulate: micro-batches per step; this many batches of a ``DataLoader`` make one step.
        steps: number of steps of the run, if given instead of epochs; required for data without a length.
    """
    utils = torch.utils.data
    if isinstance(data, utils.DataLoader):
        if batch_size not in (None, data.batch_size):
            raise InputError(
                f"batch_size={batch_size}, but the DataLoader has batch_size={data.batch_size}: "
                "omit batch_size, or make them equal"
            )
        if length(data) is None and steps is not None:
            return StreamSource(data, accumulate, seed, steps)
        return LoaderSource(data, accumulate, seed)
    if batch_size is None:
        raise InputError("batch_size=None: only a DataLoader has its own; pass batch_size")
    check_range("batch_size", batch_size, 1, whole=True)
    if isinstance(data, utils.IterableDataset):
        return as_source(utils.DataLoader(data, batch_size), None, seed, accumulate, steps)
    data = dataset_tensors(data)
    if in_memory(data):
        inputs, targets = inputs_and_targets(data)
        return TensorSource(inputs, targets, batch_size, seed)
    num_samples = check_dataset(data)
    check_batch(batch_size, num_samples)
    loader = utils.DataLoader(data, batch_size, sampler=_Shuffled(num_samples, seed))
    return LoaderSource(loader, 1, seed)


def as_loader(
    data: Any,
    batch_size: int,
    part: Callable[[int], slice],
    skipped: SkippedSamples | None = None,
    name: str = "evaluation",
    look: Callable[[Any], None] = lambda batch: None,
) -> Iterator[tuple[Any, Any]]:
    """Yield evaluation data in batches, in order: this worker's part, so that each sample is used by one worker.

    Args:
        data: as for :func:`as_source`; a ``DataLoader`` need not have a length.
        batch_size: samples per batch; ignored for a ``DataLoader``.
        part: from a number of samples to this worker's slice of them.
        skipped: records unreadable samples; None: they are an error.
        name: of the data, for messages.
        look: called with each whole batch of a ``DataLoader``.

    Raises:
        InputError: ``data`` has an unsupported type, or its inputs and targets do not match.
    """
    check_range("batch_size", batch_size, 1, whole=True)
    utils = torch.utils.data
    if isinstance(data, utils.IterableDataset):
        data = utils.DataLoader(data, batch_size)
    if isinstance(data, utils.DataLoader):
        for batch in eval_batches(data, skipped, name):
            size = len(first_tensor(batch))
            mine = part(size)
            look(batch)
            if mine == slice(0, size):
                yield batch
            elif mine.stop > mine.start:
                yield select_rows(batch, mine)
        return
    data = dataset_tensors(data)
    if in_memory(data):
        data = inputs_and_targets(data)
        check_real(f"{name} inputs", data[0])
        mine = part(count_samples(data))
        for start in range(mine.start, mine.stop, batch_size):
            yield copy_rows(data, slice(start, min(start + batch_size, mine.stop)))
        return
    mine = part(check_dataset(data))
    own = torch.Generator()  # so that reading does not draw from PyTorch's global generator
    yield from readable_batches(
        utils.DataLoader(data, batch_size, sampler=range(mine.start, mine.stop), generator=own), skipped, name
    )


def check_dataset(data: Any) -> int:
    """Return the length of a map-style ``Dataset``; raise :class:`InputError` for anything else."""
    kinds = (str, bytes, MutableMapping, torch.Tensor, torch.utils.data.IterableDataset)
    num_samples = length(data)
    if num_samples is None or isinstance(data, kinds) or not hasattr(data, "__getitem__"):
        raise InputError(
            f"data of type {type(data).__name__}: expected a pair of tensors (inputs, targets), "
            f"a dict of tensors with the key {LABELS!r}, a map-style Dataset, or a DataLoader"
        )
    return num_samples


class _Shuffled:
    """A sampler whose order is a function of (seed, epoch)."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.num_samples, self.seed, self.epoch).tolist())
