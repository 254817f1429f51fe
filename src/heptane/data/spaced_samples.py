"""Samples from all over the data, which may be sorted."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, first_tensor, in_memory, inputs_and_targets, length
from heptane.data.batches import dataset_tensors

READ = 32  # samples of a data set, which may be slow to read


def spaced_samples(data: Any, count: int) -> tuple[Any, Any] | None:
    """``count`` samples, as far from each other as can be, in memory of their own; None of data without an index."""
    data, loader = dataset_tensors(data), torch.utils.data.DataLoader
    if not in_memory(data):
        dataset = data.dataset if isinstance(data, loader) else data
        collate = data.collate_fn if isinstance(data, loader) else torch.utils.data.default_collate
        size = length(dataset)
        if not size or isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        with suppress(Exception):  # what cannot be read is somebody else's to report
            chosen = torch.linspace(0, size - 1, min(count, size, READ)).long().tolist()
            read: tuple[Any, Any] = inputs_and_targets(collate([dataset[index] for index in chosen]))
            return read
        return None
    inputs, targets = inputs_and_targets(data)
    size = length(first_tensor(inputs)) or 0
    spaced = torch.linspace(0, size - 1, min(count, size)).long()
    found: tuple[Any, Any] = copy_rows((inputs, targets), spaced)
    return found
