"""Batches of samples of similar length."""

from __future__ import annotations

from heptane.base.lazy import torch
from heptane.base.randomness import generator

WINDOW = 50  # sort samples within so many batches: enough to reduce padding, few enough to keep the order random


def length_batches(shuffled: torch.Tensor, lengths: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut shuffled samples into batches of similar length: sorted within each window of ``WINDOW`` batches."""
    batches: list[torch.Tensor] = []
    for window in torch.split(shuffled, WINDOW * batch_size):
        batches += torch.split(window[lengths[window].argsort(stable=True)], batch_size)
    return batches


def length_order(shuffled: torch.Tensor, lengths: torch.Tensor, batch_size: int, seed: int, epoch: int) -> torch.Tensor:
    """Order samples so that each ``batch_size`` of them in a row are of similar length; a short batch is the last.

    Args:
        shuffled: the samples of the epoch, int64 (N,).
        lengths: of each sample of the data.
        batch_size: samples per batch.
        seed, epoch: the order of the batches is a function of both.

    Example:
        >>> length_order(torch.arange(5), torch.tensor([3, 9, 3, 9, 5]), 2, seed=0, epoch=0)
        tensor([4, 1, 0, 2, 3])
    """
    batches = length_batches(shuffled, lengths, batch_size)
    full = len(shuffled) // batch_size
    order = generator(seed, "batches", epoch).permutation(full).tolist()
    return torch.cat([*(batches[at] for at in order), *batches[full:]])
