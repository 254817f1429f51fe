"""A user's ``DataLoader`` as steps: windows of its batches, an epoch that can be entered in the middle, no trace left."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.base.randomness import epoch_seed, generator
from heptane.base.tree import (
    detached,
    first_tensor,
    inputs_and_targets,
    is_text,
    length,
    rebuild,
    select_rows,
    tree_copy,
    tree_map,
)
from heptane.data.batches import Batch, BatchTransform, short_batch_message
from heptane.data.cast import check_real, to_tensors
from heptane.data.consistency import check_same_batch
from heptane.data.loader_info import DuplicateDetector, count_batches, has_fixed_sizes, may_share_memory
from heptane.data.skipped_samples import READER_REMEDY, Collated, DataError, SkippedSamples, drop_samples, safe_loader
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather, any_rank

MEASURED = 16  # batches, at most, that are read to see how large they are


@dataclass
class LoaderSource:
    """A ``DataLoader`` of the user's: ``window`` of its batches make one global batch, one step.

    Its order is its own. A loader without a generator shuffles by PyTorch's global one, which is seeded for each epoch; a
    generator of its own is played forward to the epoch asked for. What a data set draws from PyTorch's, Python's or NumPy's
    global generator is a function of (seed, step) from an epoch's second batch on, so that a resumed run sees the same
    samples. Only the random states inside persistent workers are out of reach.
    """

    loader: Any
    window: int
    seed: int
    steps_per_epoch: int = field(init=False)
    bad: SkippedSamples = field(default_factory=SkippedSamples)
    """the samples that were left out"""
    worker: Worker = SINGLE_WORKER
    """of those that must leave out the same"""

    def __post_init__(self) -> None:
        self._own, self.loader = self.loader, safe_loader(self.loader)
        num_batches = count_batches(self.loader)
        if num_batches is None:
            raise InputError(
                "a DataLoader without a length cannot be planned (schedules need the number of steps): "
                "give its dataset a __len__, or pass steps in place of epochs"
            )
        if num_batches == 0:
            raise InputError("the training DataLoader is empty: it has no batch (is drop_last on and the data too small?)")
        if self.window > num_batches:
            raise InputError(
                f"accumulate={self.window} is more than the {num_batches} batches of the training DataLoader: lower it"
            )
        check_sampler(self.loader)
        self._leaves_rest = False
        self._shares = may_share_memory(self._own)
        self._generators = loader_generators(self.loader)
        self._states = [own.get_state() for own in self._generators]
        self._num_batches, self.steps_per_epoch = num_batches, math.ceil(num_batches / self.window)
        each_holds, self.num_samples = self._sizes(num_batches)
        self.batch_size = min(max(1, round(each_holds * self.window)), self.num_samples)

    def _sizes(self, num_batches: int) -> tuple[float, int]:
        """Samples per batch and in all: as the loader or its ``batch_sampler`` deals them out, or as the batches have them
        where they are made otherwise."""
        loader = self.loader
        if (held := self._measured()) is not None:
            return held, round(num_batches * held)
        samples = length(loader.sampler) or length(loader.dataset)
        each = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        if each:
            return each, samples or num_batches * each
        with preserved_loader(loader):
            seed_all(epoch_seed(self.seed, 0))
            sizes = [length(indices) or 1 for indices in loader.batch_sampler]
        return sum(sizes) / max(1, len(sizes)), max(1, sum(sizes))

    def _measured(self) -> float | None:
        """Samples per batch by the first ones; None where each index that the loader deals out is a sample."""
        loader, sizes = self.loader, list[int]()
        if has_fixed_sizes(self._own):
            return None
        with preserved_loader(loader):
            seed_all(epoch_seed(self.seed, 0))
            for batch in map(_next, itertools.repeat(iter(loader), MEASURED)):
                if isinstance(batch, Collated):
                    if batch.indices is not None:
                        return None
                    batch = batch.data
                sizes.append(len(first_tensor(inputs_and_targets(batch))))
                if len(sizes) > 1 and len(set(sizes)) == 1:
                    break
        rest = 1 < len(sizes) < MEASURED and sizes[-1] < min(sizes[:-1])  # the last batch of a pass
        usual = sizes[:-1] if rest else sizes
        return sum(usual) / max(1, len(usual))

    def drop_short_batch(self, least: int) -> str:
        """Leave out an epoch's last batch where it is known to have less than ``least`` samples; says so, or nothing."""
        size, total = self.loader.batch_size, length(self.loader.sampler)
        if size is None or total is None or self.loader.drop_last or size * self.window != self.batch_size:
            return ""
        rest = total - (self.steps_per_epoch - 1) * size * self.window
        if not 0 < rest < least or self.steps_per_epoch == 1:
            return ""
        self.steps_per_epoch, self._leaves_rest = self.steps_per_epoch - 1, True
        return short_batch_message(rest, least)

    def batches(self, start: int, stop: int, place: BatchTransform) -> Iterator[tuple[int, Batch]]:
        """The batches of steps ``start`` to ``stop``, each with its step; earlier ones of the epoch are read too."""
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
                if last and not self._leaves_rest and next(windows, None) is not None:
                    raise self._wrong_length(f"more than the {self._num_batches} batches")
                data, indices = window
                if self.worker.size > 1 and (index == skip or last):
                    check_same_batch(data, indices, fetched, self.worker, self.bad.say)
                size = len(first_tensor(data)) if data is not None else 0
                yield fetched, Batch(data, None, size, place, fetched, indices)
                step += 1
                if step >= stop:
                    return

    def sample(self, size: int) -> tuple[Any, Any]:
        """The first samples of a batch, at most ``size`` of them; the loader and all random states stay as they were."""
        found = self.some(1)
        if not found:
            raise InputError("the training data have no sample that can be used")
        check_real("training inputs", found[0][0])
        return select_rows(found[0], slice(size))  # type: ignore[no-any-return]

    def some(self, count: int) -> list[tuple[Any, Any]]:
        """The first batches that hold ``count`` samples, or all; the loader and all random states stay as they were."""
        found, size = [], 0
        with preserved_loader(self.loader), contextlib.suppress(StopIteration):
            seed_all(epoch_seed(self.seed, 0))
            batches = iter(self.loader)
            while size < count:
                data, _ = self._sound(_next(batches))
                if data is not None:
                    found.append(data)
                    size += len(first_tensor(data))
        return found

    def _windows(self) -> Iterator[tuple[Any, list[int] | None]]:
        """Inputs and targets of a step, or None where no sample is left; and which samples they are, where it is known."""
        waiting: list[tuple[Any, list[int] | None]] = []
        batches, readers = iter(self.loader), DuplicateDetector(self._own, "training")
        while True:
            try:
                batch = _next(batches)
            except StopIteration:
                break
            readers.look(batch)
            waiting.append(self._sound(batch))
            if len(waiting) == self.window:
                yield self._joined(waiting)
                waiting = []
        if waiting:
            yield self._joined(waiting)

    def _joined(self, waiting: list[tuple[Any, list[int] | None]]) -> tuple[Any, list[int] | None]:
        left = [data for data, _ in waiting if data is not None]
        indices = [index for _, some in waiting for index in some or ()]
        return (concat_batches(left) if left else None), (None if waiting[0][1] is None else indices)

    def _sound(self, batch: Any) -> tuple[Any, list[int] | None]:
        """The samples of a batch that can be used, the same on every worker."""
        if not isinstance(batch, Collated):
            self.bad.labels_in(batch)
            return owned_copy(inputs_and_targets(batch), self._shares), None
        bad = list(batch.bad)
        bad += self.bad.labels_in(batch)
        if self.bad.limit and any_rank([bool(bad)], self.worker)[0]:
            bad = sorted(dict(entry for some in all_gather(bad, self.worker) for entry in some).items())
        self.bad.add("training", bad)
        batch = drop_samples(batch, {index for index, _ in bad})
        return (None if batch.data is None else owned_copy(inputs_and_targets(batch.data), self._shares)), batch.indices

    def _set_epoch(self, epoch: int) -> None:
        for name in ("sampler", "batch_sampler"):
            set_epoch = getattr(getattr(self.loader, name), "set_epoch", None)
            if set_epoch:
                set_epoch(epoch)

    def _rewind(self, epoch: int) -> None:
        """Bring the loader's own generators to where ``epoch`` passes over it leave them."""
        loader = self.loader
        if loader.persistent_workers and epoch == 0:
            loader._iterator = None  # workers that started earlier would begin this epoch with other draws
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
        for own, state in zip(self._generators, self._states, strict=True):
            own.set_state(state)

    def _wrong_length(self, found: str) -> InputError:
        count = DuplicateDetector(self._own, "training").count
        shared = f"; its {count} readers are taken to share the samples evenly" if count else ""
        return InputError(
            f"the training DataLoader gave {found} that its length promises, and the schedules rely on it: "
            f"correct the __len__ of its dataset or sampler{shared}"
        )


def seed_all(value: int) -> None:
    """The global generators that a data set or a sampler may draw from: PyTorch's, Python's and NumPy's."""
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % (1 << 32))


def owned_copy(data: Any, shares: bool) -> Any:
    """A batch that no gradient leaves, and that is this run's to change: copied where it ``shares`` the user's memory."""
    return tree_copy(data) if shares else tree_map(detached, data)


def check_sampler(loader: Any) -> None:
    """Refuse a ``DistributedSampler``: heptane splits each batch over the workers, and both would leave samples out."""
    if getattr(loader.sampler, "num_replicas", 1) > 1:
        raise InputError(
            f"the DataLoader has a {type(loader.sampler).__name__} for {loader.sampler.num_replicas} replicas, and heptane "
            "splits each batch over the workers by itself: pass the DataLoader without it"
        )


def loader_generators(loader: Any) -> list[torch.Generator]:
    """The random generators that a loader and its samplers hold, each once."""
    holders = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(own): own for own in found if isinstance(own, torch.Generator)}.values())


@contextlib.contextmanager
def preserved_loader(loader: Any) -> Iterator[None]:
    """Put the random states back, and the loader's own, so that looking at a batch changes no later one."""
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    own = [(each_one, each_one.get_state()) for each_one in loader_generators(loader)]
    workers = loader._iterator
    try:
        yield
    finally:
        loader._iterator = workers
        torch.random.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        for each_one, state in own:
            each_one.set_state(state)


def eval_batches(loader: Any, bad: SkippedSamples | None = None, name: str = "evaluation") -> Iterator[tuple[Any, Any]]:
    """A loader's batches, shuffled the same way in each worker process if at all; PyTorch's global state is left alone."""
    check_sampler(loader)
    batches: Iterator[Any] | None = None
    index = 0
    while True:
        state = torch.random.get_rng_state()
        torch.manual_seed(index)
        try:
            batches = readable_batches(loader, bad, name) if batches is None else batches
            data = next(batches)
        except StopIteration:
            return
        finally:
            torch.random.set_rng_state(state)
        yield data
        index += 1


def readable_batches(loader: Any, bad: SkippedSamples | None, name: str) -> Iterator[tuple[Any, Any]]:
    """A loader's batches, without the samples that cannot be read: they go to ``bad``, or are an error."""
    bad, shares = bad or SkippedSamples(), may_share_memory(loader)
    batches, readers = iter(safe_loader(loader)), DuplicateDetector(loader, name)
    while True:
        try:
            batch = _next(batches)
        except StopIteration:
            return
        readers.look(batch)
        wrong = bad.labels_in(batch)
        if isinstance(batch, Collated):
            bad.add(name, [*batch.bad, *wrong])
            batch = drop_samples(batch, {index for index, _ in wrong}).data
        if batch is not None:
            yield owned_copy(inputs_and_targets(batch), shares)


def _next(batches: Iterator[Any]) -> Any:
    """The next batch; what else than a sample goes wrong in reading it, as one line."""
    try:
        batch = next(batches)
        return batch if isinstance(batch, Collated) else to_tensors(batch)
    except (StopIteration, InputError):
        raise
    except Exception as error:
        if ("DataLoader worker" in str(error) and "exit" in str(error)) or "killed by signal" in str(error):
            raise DataError(f"a process that reads the data was killed ({one_line(error)}): {READER_REMEDY}") from error
        raise DataError(f"the data cannot be read ({type(error).__name__}: {_last_line(error)})") from error


def _last_line(error: Exception) -> str:
    """What went wrong, of an error that carries the traceback of another process."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(ValueError(lines[-1])) if lines else type(error).__name__


def concat_batches(batches: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Batches as one: their tensors one after another."""
    if len(batches) == 1:
        return batches[0]
    return _cat([b[0] for b in batches]), _cat([b[1] for b in batches])


def _cat(items: list[Any]) -> Any:
    head = items[0]
    if isinstance(head, torch.Tensor):
        if len({item.shape[1:] for item in items}) > 1 or head.ndim == 0:
            shapes = ", ".join(str(tuple(item.shape)) for item in items)
            raise InputError(f"batches of shapes {shapes} cannot be joined into one step: pad them alike, or accumulate=1")
        return torch.cat(items)
    if isinstance(head, MutableMapping):
        whole = copy.copy(head)
        whole.update({key: _cat([item[key] for item in items]) for key in head})
        return whole
    if is_text(head):  # left out later, if it can be
        return [text for item in items for text in item]
    if isinstance(head, (tuple, list)) and head:
        return rebuild(head, [_cat([item[i] for item in items]) for i in range(len(head))])
    raise InputError(
        f"batches that hold {type(head).__name__} cannot be joined into one step: give tensors, or accumulate=1"
    )
