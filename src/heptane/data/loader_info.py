"""What kind of loader it is: how many batches it has, whether these are the user's own memory, what its readers read."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, inputs_and_targets, length, tree_copy, tree_map
from heptane.data.skipped_samples import DataError


class DuplicateDetector:
    """Sees whether several readers of an ``IterableDataset`` give the same samples, each all of them."""

    def __init__(self, loader: Any, name: str) -> None:
        iterable = isinstance(loader.dataset, torch.utils.data.IterableDataset)
        self.count = loader.num_workers if iterable and loader.num_workers > 1 else 0
        self.name, self.most, self.seen, self.given = name, length(loader.dataset) if self.count else None, 0, 0
        self.first: Any = None

    def look(self, batch: Any) -> None:
        """At one more batch of a pass.

        Raises:
            DataError: the readers' first batches are the same, or they gave more samples than the data set has.
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
                f"the {self.name} IterableDataset gives {what}: each of its {self.count} readers goes through all of it. "
                "Split it in __iter__ by torch.utils.data.get_worker_info(), or set num_workers to 0 or 1"
            )
        if self.seen >= self.count:
            self.first = None


def _alike(one: Any, other: Any) -> bool:
    tensors: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for found, data in zip(tensors, (one, other), strict=True):
        tree_map(lambda t, found=found: found.append(t) or t, data)  # type: ignore[misc]
    return len(tensors[0]) == len(tensors[1]) > 0 and all(map(torch.equal, *tensors))


def count_batches(loader: Any) -> int | None:
    """How many batches a pass has, or None where nobody knows. Several readers of an ``IterableDataset`` that share its
    samples have a last batch each, which PyTorch's own length leaves out."""
    size, readers = loader.batch_size, loader.num_workers
    iterable = isinstance(loader.dataset, torch.utils.data.IterableDataset)
    own_length = type(loader).__len__ is not torch.utils.data.DataLoader.__len__
    samples = length(loader.dataset) if iterable and readers > 1 and size and not own_length else None
    if samples is None:
        return length(loader)
    shares = [(samples + at) // readers for at in range(readers)]
    held: list[int] = [share // size if loader.drop_last else -(-share // size) for share in shares]
    return sum(held)


def has_fixed_sizes(loader: Any) -> bool:
    """Whether a batch has as many samples as indices are dealt out for it: PyTorch makes it, of single samples."""
    own_iter = type(loader).__iter__ is not torch.utils.data.DataLoader.__iter__
    batches = loader.batch_size is not None or loader.batch_sampler is not None
    return batches and not own_iter and loader.collate_fn is torch.utils.data.default_collate


def may_share_memory(loader: Any) -> bool:
    """Whether a batch may be the user's own memory: a data set's tensor as it is, or a buffer that is filled again."""
    own_iter = type(loader).__iter__ is not torch.utils.data.DataLoader.__iter__
    return own_iter or (loader.num_workers == 0 and not has_fixed_sizes(loader))
