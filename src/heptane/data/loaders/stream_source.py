"""Training data without a length, such as an ``IterableDataset``, for a given number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.randomness import generator, seed_all
from heptane.base.tree import first_tensor
from heptane.data.batches import Batch, BatchTransform
from heptane.data.consistency import check_same_batch
from heptane.data.loaders.loader_source import LoaderSource

EPOCHS = 10  # nominal number of epochs in a run, for evaluations and schedules that count in epochs


class StreamSource(LoaderSource):
    """A user's ``DataLoader`` without a length, run for ``steps`` steps; a tenth of them counts as an epoch.

    When a pass over the data ends, the next begins. What the dataset draws from the global generators is a function of
    (seed, step), as in :class:`LoaderSource`. A resumed run re-reads the data before its step.
    """

    def __init__(self, loader: torch.utils.data.DataLoader, window: int, seed: int, steps: int) -> None:  # type: ignore[type-arg]
        self.steps = steps
        super().__init__(loader, window, seed)

    def __post_init__(self) -> None:
        self._prepare()
        self.steps_per_epoch = max(1, -(-self.steps // EPOCHS))
        self.batch_size = max(1, round((self._measured() or self.loader.batch_size) * self.window))
        self.num_samples = self.steps_per_epoch * self.batch_size

    def batches(self, start: int, stop: int, transform: BatchTransform) -> Iterator[tuple[int, Batch]]:
        """Yield the steps from ``start`` to ``stop`` with their batches; all earlier batches are read and dropped."""
        if start >= stop:
            return
        self._rewind(0)
        step = 0
        for turn in count():
            self._set_epoch(turn)
            windows, first = self._windows(), step
            while True:
                seed_all(int(generator(self.seed, "pass" if step == first else "fetch", step).integers(1 << 63)))
                window = next(windows, None)
                if window is None:
                    break
                if step >= start:
                    data, indices = window
                    if self.worker.size > 1 and step in (start, stop - 1):
                        check_same_batch(data, indices, step, self.worker, self.skipped.say)
                    size = len(first_tensor(data)) if data is not None else 0
                    yield step, Batch(data, None, size, transform, step, indices)
                step += 1
                if step >= stop:
                    return
            if step == first:
                raise InputError("the training data yielded no batch in a pass: can the stream be iterated only once?")
