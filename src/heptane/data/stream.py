"""Data without a length, such as an ``IterableDataset``: as many steps as were asked for, pass after pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.randomness import generator
from heptane.base.tree import first_tensor
from heptane.data.batches import Batch, BatchTransform
from heptane.data.consistency import check_same_batch
from heptane.data.loader import LoaderSource, check_sampler, loader_generators, seed_all
from heptane.data.loader_info import may_share_memory
from heptane.data.skipped_samples import safe_loader

EPOCHS = 10  # a run over a stream is taken to have: where evaluations and schedules count in epochs


class StreamSource(LoaderSource):
    """A ``DataLoader`` of the user's that does not know its length: ``steps`` of it, a tenth of which is called an epoch.

    A pass that ends is followed by the next. What the data draw from the global generators is a function of (seed, step),
    as in :class:`LoaderSource`. A resumed run reads again what came before its step.
    """

    def __init__(self, loader: torch.utils.data.DataLoader, window: int, seed: int, steps: int) -> None:  # type: ignore[type-arg]
        self.steps = steps
        super().__init__(loader, window, seed)

    def __post_init__(self) -> None:
        self._own, self.loader = self.loader, safe_loader(self.loader)
        check_sampler(self.loader)
        self._leaves_rest = False
        self._shares = may_share_memory(self._own)
        self._generators = loader_generators(self.loader)
        self._states = [own.get_state() for own in self._generators]
        self.steps_per_epoch = max(1, -(-self.steps // EPOCHS))
        self.batch_size = max(1, round((self._measured() or self.loader.batch_size) * self.window))
        self.num_samples = self.steps_per_epoch * self.batch_size

    def batches(self, start: int, stop: int, place: BatchTransform) -> Iterator[tuple[int, Batch]]:
        """The batches of steps ``start`` to ``stop``, each with its step; all that came before are read too."""
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
                        check_same_batch(data, indices, step, self.worker, self.bad.say)
                    size = len(first_tensor(data)) if data is not None else 0
                    yield step, Batch(data, None, size, place, step, indices)
                step += 1
                if step >= stop:
                    return
            if step == first:
                raise InputError(
                    "the training data gave no batch in a pass over them: is the stream used up after one pass?"
                )
