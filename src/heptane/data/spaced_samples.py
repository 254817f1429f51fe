"""Evenly spaced samples of a dataset, which may be sorted."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, first_tensor, in_memory, inputs_and_targets, length
from heptane.data.batches import dataset_tensors

READ = 32  # samples at most from a Dataset, which may be slow to read


def spaced_samples(data: Any, count: int) -> tuple[Any, Any] | None:
    """Return copies of ``count`` evenly spaced samples; None if the data has no index or cannot be read."""
    data, loader = dataset_tensors(data), torch.utils.data.DataLoader
    if not in_memory(data):
        dataset = data.dataset if isinstance(data, loader) else data
        collate = data.collate_fn if isinstance(data, loader) else torch.utils.data.default_collate
        size = length(dataset)
        if not size or isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        with suppress(Exception):  # training reports unreadable samples
            chosen = torch.linspace(0, size - 1, min(count, size, READ)).long().tolist()
            read: tuple[Any, Any] = inputs_and_targets(collate([dataset[index] for index in chosen]))
            return read
        return None
    inputs, targets = inputs_and_targets(data)
    size = length(first_tensor(inputs)) or 0
    spaced = torch.linspace(0, size - 1, min(count, size)).long()
    found: tuple[Any, Any] = copy_rows((inputs, targets), spaced)
    return found
