"""Samples of different lengths: batches of similar lengths, and padding."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.base.randomness import generator
from heptane.base.tree import LABELS, rebuild
from heptane.data.batches import check_batch, epoch_order
from heptane.data.length_order import length_batches


class LengthBatches:
    """A ``batch_sampler`` for a ``DataLoader`` that groups samples of similar length.

    The order is a function of (seed, epoch): the samples are shuffled, sorted by length within each window of 50 batches and
    cut into batches, which are shuffled. Each sample occurs once per epoch; one batch may be short.

    Args:
        lengths: of each sample, such as its number of tokens.
        batch_size: samples per batch, from 1 to the number of samples.
        seed: of the order, 0 or more.

    Example:
        >>> batches = LengthBatches([3, 9, 4, 8, 3, 9], batch_size=2)
        >>> sorted(sorted(batch) for batch in batches)
        [[0, 4], [1, 5], [2, 3]]
        >>> loader = torch.utils.data.DataLoader(range(6), batch_sampler=batches)
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        self.lengths = torch.as_tensor(lengths)
        if self.lengths.ndim != 1:
            raise InputError(f"lengths of shape {tuple(self.lengths.shape)}: expected one number per sample")
        check_range("batch_size", batch_size, 1, whole=True)
        check_batch(batch_size, len(self.lengths))
        check_range("seed", seed, 0, whole=True)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = length_batches(epoch_order(len(self.lengths), self.seed, self.epoch), self.lengths, self.batch_size)
        for at in generator(self.seed, "batches", self.epoch).permutation(len(batches)).tolist():
            yield batches[at].tolist()


def pad_batch(samples: Sequence[Any], *, value: float = 0, target_value: float = -100, multiple: int = 1) -> Any:
    """Collate samples into one batch, padded at the end to equal length; a ``collate_fn`` for a ``DataLoader``.

    Args:
        samples: pairs (inputs, targets), or dicts, optionally with ``labels``. Their entries are numbers, tensors or lists
            of numbers whose first dimension may differ between samples, or dicts of these.
        value: pads the inputs. Masks (keys that end in ``mask``) are padded with 0, or with 1 if the key ends in
            ``key_padding_mask``, as in PyTorch.
        target_value: pads the targets; cross-entropy ignores -100.
        multiple: pad to a multiple of this length, 1 or more; 8 suits 16-bit arithmetic.

    Returns:
        The same structure, with tensors of one row per sample.

    Raises:
        InputError: samples differ in their keys, or in dimensions beyond the first.

    Example:
        >>> pad_batch([([5, 6, 7], 0), ([8], 1)])
        (tensor([[5, 6, 7],
                [8, 0, 0]]), tensor([0, 1]))
        >>> pad_batch([{"input_ids": [5, 6], "labels": [1, 2]}, {"input_ids": [7], "labels": [3]}])["labels"]
        tensor([[   1,    2],
                [   3, -100]])
    """
    check_range("multiple", multiple, 1, whole=True)
    if not samples:
        raise InputError("pad_batch got no samples: expected 1 or more")
    if isinstance(samples[0], tuple) and len(samples[0]) == 2:
        inputs, targets = ([sample[at] for sample in samples] for at in (0, 1))
        return _padded(inputs, value, multiple, "inputs"), _padded(targets, target_value, multiple, "targets")
    if isinstance(samples[0], MutableMapping):
        return {
            key: _padded([s[key] for s in samples], target_value if key == LABELS else _of(key, value), multiple, str(key))
            for key in _keys(samples, "samples")
        }
    raise InputError(f"pad_batch got samples of type {type(samples[0]).__name__}: expected pairs (inputs, targets) or dicts")


def _padded(items: list[Any], value: float, multiple: int, name: str) -> Any:
    head = items[0]
    if isinstance(head, MutableMapping):
        keys = _keys(items, name)
        return {key: _padded([item[key] for item in items], _of(key, value), multiple, f"{name}[{key!r}]") for key in keys}
    if isinstance(head, tuple):
        columns = [list(column) for column in zip(*items, strict=True)]
        return rebuild(head, [_padded(column, value, multiple, f"{name}[{at}]") for at, column in enumerate(columns)])
    if isinstance(head, str):  # cannot be padded; training removes or rejects it
        return items
    tensors = [torch.as_tensor(item) for item in items]
    first = tensors[0]
    for other in tensors:
        if (other.ndim, other.shape[1:], other.dtype) != (first.ndim, first.shape[1:], first.dtype):
            two = " and ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (first, other))
            raise InputError(f"{name} are {two} in one batch: only the first dimension may differ")
    if first.ndim == 0:
        return torch.stack(tensors)
    longest = -(-max(map(len, tensors)) // multiple) * multiple
    whole = first.new_full((len(tensors), longest, *first.shape[1:]), value)
    for row, tensor in zip(whole, tensors, strict=True):
        row[: len(tensor)] = tensor
    return whole


def _of(key: Any, value: float) -> float:
    if str(key).endswith("key_padding_mask"):  # PyTorch's convention: true for padding
        return 1
    return 0 if str(key).endswith("mask") else value


def _keys(samples: Sequence[Any], name: str) -> list[Any]:
    for sample in samples:
        if set(sample) != set(samples[0]):
            one, other = (", ".join(sorted(map(str, each))) for each in (samples[0], sample))
            raise InputError(f"{name} have the keys {one} and {other} in one batch: expected the same keys in each sample")
    return list(samples[0])
