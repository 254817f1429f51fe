"""A loaded dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor
from heptane.data.preprocess import Preprocess


class DataUnavailable(InputError):
    """A built-in dataset is not available on this machine; :func:`load_data` then uses its ``fallback``, if given."""


@dataclass(frozen=True, eq=False)
class Data:
    """A loaded dataset.

    Attributes:
        name: a built-in name, or the name of the folder or file.
        train, valid, test: inputs and targets, or None. Inputs are float32 tensors (N, C, H, W) for images and (N, ...) for
            arrays; of image files they are an :class:`Images`, which gives such a tensor when it is indexed: ``inputs[:8]``,
            or ``inputs[:]`` for all; of text they are a dict with ``input_ids`` and ``attention_mask``. Targets are int64
            class numbers (N,), or float32 (N,) or (N, K).
        num_classes: K, or None for regression.
        class_names: K names, or () if there are none.
        notes: messages for the user, such as the number of skipped files.
        source: where the data came from, in words.
        mean, std: per channel, of pixels scaled to [0, 1], measured on ``train`` and applied to all three parts; () if the
            values are unchanged.
        kind: ``images``, ``table``, ``text`` or ``arrays``.
        preprocess: converts raw data to inputs, also new data; None if the data was built by hand.
        files: for each part, the file (or row) name of every sample; absent if samples have no names.
    """

    name: str
    train: tuple[Any, torch.Tensor] = field(repr=False)
    valid: tuple[Any, torch.Tensor] | None = field(repr=False)
    test: tuple[Any, torch.Tensor] | None = field(repr=False)
    num_classes: int | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    source: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    kind: str = "arrays"
    preprocess: Preprocess | None = field(default=None, repr=False)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)

    @property
    def class_counts(self) -> tuple[int, ...] | None:
        """Number of training samples per class; None for regression and multi-label targets."""
        targets = self.train[1]
        if self.num_classes is None or targets.is_floating_point() or targets.ndim != 1:
            return None
        return tuple(torch.bincount(targets, minlength=self.num_classes).tolist())

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch dimension."""
        return tuple(first_tensor(self.train[0]).shape[1:])
