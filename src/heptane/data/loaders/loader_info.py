"""Properties of a ``DataLoader``: its number of batches, whether they share memory, whether its workers repeat samples."""

from __future__ import annotations

from typing import Any

from heptane.base.errors import DataError, InputError
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, inputs_and_targets, length, tree_copy, tree_map


class DuplicateDetector:
    """Detects DataLoader workers that each yield all samples of an ``IterableDataset``."""

    def __init__(self, loader: Any, name: str) -> None:
        iterable = isinstance(loader.dataset, torch.utils.data.IterableDataset)
        self.count = loader.num_workers if iterable and loader.num_workers > 1 else 0
        self.name, self.most, self.seen, self.given = name, length(loader.dataset) if self.count else None, 0, 0
        self.first: Any = None

    def look(self, batch: Any) -> None:
        """Check one more batch of a pass.

        Raises:
            DataError: the workers' first batches are equal, or they yielded more samples than the dataset's length.
        """
        if not self.count:
            return
        rows_of = first_tensor(inputs_and_targets(batch))
        self.given, self.seen = self.given + len(rows_of), self.seen + 1
        if self.seen == 1:
            self.first = tree_copy(batch)
        same = 1 < self.seen <= self.count and _alike(self.first, batch)
        if same or (self.most is not None and self.given > self.most):
            what = "the same samples" if same else f"more samples than the {self.most} of its length"
            raise DataError(
                f"the {self.name} IterableDataset yields {what}: each of its {self.count} DataLoader workers reads it all. "
                "Split it in __iter__ with torch.utils.data.get_worker_info(), or set num_workers to 0 or 1"
            )
        if self.seen >= self.count:
            self.first = None


def _alike(one: Any, other: Any) -> bool:
    tensors: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for found, data in zip(tensors, (one, other), strict=True):
        tree_map(lambda t, found=found: found.append(t) or t, data)  # type: ignore[misc]
    return len(tensors[0]) == len(tensors[1]) > 0 and all(map(torch.equal, *tensors))


def count_batches(loader: Any) -> int | None:
    """Number of batches in a pass, or None if unknown. Each DataLoader worker of an ``IterableDataset`` has a last batch of
    its own, which PyTorch's length ignores."""
    size, workers = loader.batch_size, loader.num_workers
    iterable = isinstance(loader.dataset, torch.utils.data.IterableDataset)
    own_length = type(loader).__len__ is not torch.utils.data.DataLoader.__len__
    samples = length(loader.dataset) if iterable and workers > 1 and size and not own_length else None
    if samples is None:
        return length(loader)
    shares = [(samples + at) // workers for at in range(workers)]
    batches: list[int] = [share // size if loader.drop_last else -(-share // size) for share in shares]
    return sum(batches)


def has_fixed_sizes(loader: Any) -> bool:
    """Whether each batch has one sample per index of its sampler: PyTorch itself collates single samples."""
    own_iter = type(loader).__iter__ is not torch.utils.data.DataLoader.__iter__
    batches = loader.batch_size is not None or loader.batch_sampler is not None
    return batches and not own_iter and loader.collate_fn is torch.utils.data.default_collate


def may_share_memory(loader: Any) -> bool:
    """Whether a batch may share memory with the dataset, or with a buffer that is reused."""
    own_iter = type(loader).__iter__ is not torch.utils.data.DataLoader.__iter__
    return own_iter or (loader.num_workers == 0 and not has_fixed_sizes(loader))


def check_sampler(loader: Any) -> None:
    """Reject a ``DistributedSampler``: heptane already splits each batch over the workers, so samples would be missed."""
    if getattr(loader.sampler, "num_replicas", 1) > 1:
        raise InputError(
            f"the DataLoader has a {type(loader.sampler).__name__} for {loader.sampler.num_replicas} replicas, but heptane "
            "itself splits each batch over the workers: pass the DataLoader without it"
        )
