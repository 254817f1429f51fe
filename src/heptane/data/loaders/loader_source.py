"""Training data from a user's ``DataLoader``: global batches by step, resumable in the middle of an epoch."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.randomness import epoch_seed, generator, preserved_rng, seed_all
from heptane.base.tree import first_tensor, inputs_and_targets, length, select_rows
from heptane.data.batches import Batch, BatchTransform, short_batch_message
from heptane.data.cast import check_real
from heptane.data.consistency import check_same_batch
from heptane.data.loaders.loader_info import (
    DuplicateDetector,
    check_sampler,
    count_batches,
    has_fixed_sizes,
    may_share_memory,
)
from heptane.data.loaders.read_batches import concat_batches, next_batch, open_loader, owned_copy
from heptane.data.loaders.safe_loader import Collated, drop_samples, safe_loader
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather, any_rank

MEASURED = 16  # read at most so many batches to find the batch size


@dataclass
class LoaderSource:
    """A user's ``DataLoader``; ``window`` of its batches make one global batch, which is one step.

    The loader keeps its own order. If it has no generator, it shuffles with PyTorch's global one, which is seeded per
    epoch; if it has one, the generator is advanced to the requested epoch. What a dataset draws from the global generators
    of PyTorch, Python or NumPy is a function of (seed, step) from an epoch's second batch on, so a resumed run sees the same
    samples. The random states inside persistent workers cannot be restored.
    """

    loader: Any
    window: int
    seed: int
    steps_per_epoch: int = field(init=False)
    skipped: SkippedSamples = field(default_factory=SkippedSamples)
    worker: Worker = SINGLE_WORKER
    """all workers skip the same samples"""

    def __post_init__(self) -> None:
        self._prepare()
        num_batches = count_batches(self.loader)
        if num_batches is None:
            raise InputError(
                "the training DataLoader has no length, but schedules need the number of steps: "
                "give its dataset a __len__, or pass steps instead of epochs"
            )
        if num_batches == 0:
            raise InputError("the training DataLoader is empty: is drop_last set and the dataset too small?")
        if self.window > num_batches:
            raise InputError(
                f"accumulate={self.window} exceeds the {num_batches} batches of the training DataLoader: lower it"
            )
        self._num_batches, self.steps_per_epoch = num_batches, math.ceil(num_batches / self.window)
        loader_batch_size, self.num_samples = self._sizes(num_batches)
        self.batch_size = min(max(1, round(loader_batch_size * self.window)), self.num_samples)

    def _prepare(self) -> None:
        self._original, self.loader = self.loader, safe_loader(self.loader)
        check_sampler(self.loader)
        self._drops_short_batch = False
        self._shares = may_share_memory(self._original)
        self._generators = loader_generators(self.loader)
        self._states = [each.get_state() for each in self._generators]

    def _sizes(self, num_batches: int) -> tuple[float, int]:
        """Samples per batch and per epoch, from the loader's sampler if batches follow it, else from its first batches."""
        loader = self.loader
        if (measured := self._measured()) is not None:
            return measured, round(num_batches * measured)
        samples = length(loader.sampler) or length(loader.dataset)
        each = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        if each:
            return each, samples or num_batches * each
        with preserved_loader(loader):
            seed_all(epoch_seed(self.seed, 0))
            sizes = [length(indices) or 1 for indices in loader.batch_sampler]
        return sum(sizes) / max(1, len(sizes)), max(1, sum(sizes))

    def _measured(self) -> float | None:
        """Mean samples per batch over the first batches; None if the sampler's indices tell."""
        loader, sizes = self.loader, list[int]()
        if has_fixed_sizes(self._original):
            return None
        with preserved_loader(loader):
            seed_all(epoch_seed(self.seed, 0))
            with open_loader(loader) as batches:
                for batch in map(next_batch, itertools.repeat(batches, MEASURED)):
                    if isinstance(batch, Collated):
                        if batch.indices is not None:
                            return None
                        batch = batch.data
                    sizes.append(len(first_tensor(inputs_and_targets(batch))))
                    if len(sizes) > 1 and len(set(sizes)) == 1:
                        break
        has_short_batch = 1 < len(sizes) < MEASURED and sizes[-1] < min(sizes[:-1])
        full = sizes[:-1] if has_short_batch else sizes
        return sum(full) / max(1, len(full))

    def drop_short_batch(self, least: int) -> str:
        """Drop each epoch's last batch if it is known to have fewer than ``least`` samples; return a message or ''."""
        size, total = self.loader.batch_size, length(self.loader.sampler)
        if size is None or total is None or self.loader.drop_last or size * self.window != self.batch_size:
            return ""
        rest = total - (self.steps_per_epoch - 1) * size * self.window
        if not 0 < rest < least or self.steps_per_epoch == 1:
            return ""
        self.steps_per_epoch, self._drops_short_batch = self.steps_per_epoch - 1, True
        return short_batch_message(rest, least)

    def batches(self, start: int, stop: int, transform: BatchTransform) -> Iterator[tuple[int, Batch]]:
        """Yield the steps from ``start`` to ``stop`` with their batches; earlier ones of the epoch are read and dropped."""
        if start < stop:
            self._rewind(start // self.steps_per_epoch)
        step = start
        while step < stop:
            epoch, skip = divmod(step, self.steps_per_epoch)
            self._set_epoch(epoch)
            windows = self._windows()
            for index in range(self.steps_per_epoch):
                fetched = epoch * self.steps_per_epoch + index
                draw = generator(self.seed, "fetch", fetched).integers(1 << 63)
                seed_all(int(draw) if index else epoch_seed(self.seed, epoch))
                window = next(windows, None)
                if window is None:
                    raise self._wrong_length(f"fewer than the {self._num_batches} batches")
                if index < skip:
                    continue
                last = index + 1 == self.steps_per_epoch
                if last and not self._drops_short_batch and next(windows, None) is not None:
                    raise self._wrong_length(f"more than the {self._num_batches} batches")
                data, indices = window
                if self.worker.size > 1 and (index == skip or last):
                    check_same_batch(data, indices, fetched, self.worker, self.skipped.say)
                size = len(first_tensor(data)) if data is not None else 0
                yield fetched, Batch(data, None, size, transform, fetched, indices)
                step += 1
                if step >= stop:
                    return

    def sample(self, size: int) -> tuple[Any, Any]:
        """The first samples of a batch, at most ``size``; the loader and all random states stay unchanged."""
        found = self.sample_batches(1)
        if not found:
            raise InputError("the training data has no usable sample: see the skipped samples above, and repair them")
        check_real("training inputs", found[0][0])
        return select_rows(found[0], slice(size))  # type: ignore[no-any-return]

    def sample_batches(self, count: int) -> list[tuple[Any, Any]]:
        """The first batches with ``count`` samples in all, or all batches; the loader and random states stay unchanged."""
        found, size = [], 0
        with preserved_loader(self.loader), contextlib.suppress(StopIteration):
            seed_all(epoch_seed(self.seed, 0))
            with open_loader(self.loader) as batches:
                while size < count:
                    data, _ = self._readable(next_batch(batches))
                    if data is not None:
                        found.append(data)
                        size += len(first_tensor(data))
        return found

    def _windows(self) -> Iterator[tuple[Any, list[int] | None]]:
        """Yield each step's inputs and targets, or None if all samples were skipped; with their indices, if known."""
        window: list[tuple[Any, list[int] | None]] = []
        duplicates = DuplicateDetector(self._original, "training")
        with open_loader(self.loader) as batches:
            while True:
                try:
                    batch = next_batch(batches)
                except StopIteration:
                    break
                duplicates.look(batch)
                window.append(self._readable(batch))
                if len(window) == self.window:
                    yield self._concat(window)
                    window = []
        if window:
            yield self._concat(window)

    def _concat(self, window: list[tuple[Any, list[int] | None]]) -> tuple[Any, list[int] | None]:
        batches = [data for data, _ in window if data is not None]
        indices = [index for _, some in window for index in some or ()]
        return (concat_batches(batches) if batches else None), (None if window[0][1] is None else indices)

    def _readable(self, batch: Any) -> tuple[Any, list[int] | None]:
        """The usable samples of a batch, the same on every worker, and their indices, if known."""
        if not isinstance(batch, Collated):
            self.skipped.invalid_labels(batch)
            return owned_copy(inputs_and_targets(batch), self._shares), None
        bad = list(batch.bad)
        bad += self.skipped.invalid_labels(batch)
        if self.skipped.limit and any_rank([bool(bad)], self.worker)[0]:
            bad = sorted(dict(entry for some in all_gather(bad, self.worker) for entry in some).items())
        self.skipped.add("training", bad)
        batch = drop_samples(batch, {index for index, _ in bad})
        return (None if batch.data is None else owned_copy(inputs_and_targets(batch.data), self._shares)), batch.indices

    def _set_epoch(self, epoch: int) -> None:
        for name in ("sampler", "batch_sampler"):
            set_epoch = getattr(getattr(self.loader, name), "set_epoch", None)
            if set_epoch:
                set_epoch(epoch)

    def _rewind(self, epoch: int) -> None:
        """Put the loader's own generators into their states at the start of ``epoch``."""
        loader = self.loader
        if loader.persistent_workers and epoch == 0:
            loader._iterator = None  # workers that started earlier would draw other numbers in this epoch
        elif loader.persistent_workers and loader._iterator is None:
            self._restore()
            torch.manual_seed(epoch_seed(self.seed, 0))
            iter(loader)  # starts the workers as epoch 0 does
        self._restore()
        for index in range(epoch if self._generators else 0):
            indices = iter(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
            if loader.generator is not None and (index == 0 or not loader.persistent_workers):
                torch.empty((), dtype=torch.int64, device="cpu").random_(
                    generator=loader.generator
                )  # the seed of a pass's workers
            if not isinstance(loader.dataset, torch.utils.data.IterableDataset):
                for _ in indices:
                    pass

    def _restore(self) -> None:
        for each, state in zip(self._generators, self._states, strict=True):
            each.set_state(state)

    def _wrong_length(self, found: str) -> InputError:
        count = DuplicateDetector(self._original, "training").count
        shared = f"; its {count} DataLoader workers are assumed to share the samples evenly" if count else ""
        return InputError(
            f"the training DataLoader yielded {found} of its length, which the schedules rely on: "
            f"correct the __len__ of its dataset or sampler{shared}"
        )


def loader_generators(loader: Any) -> list[torch.Generator]:
    """The random generators of a loader and its samplers, without duplicates."""
    owners = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


@contextlib.contextmanager
def preserved_loader(loader: Any) -> Iterator[None]:
    """Restore the global random states and the loader's own at the end, so that looking at a batch changes no later one."""
    states = [(each, each.get_state()) for each in loader_generators(loader)]
    workers = loader._iterator
    with preserved_rng():
        try:
            yield
        finally:
            loader._iterator = workers
            for each, state in states:
                each.set_state(state)
