"""Global batches in an order that is a function of (seed, epoch); a worker or a micro-batch takes its positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from heptane._lazy import torch
from heptane.data.augment import Augment
from heptane.errors import InputError, check_range
from heptane.randomness import generator

Positions: TypeAlias = "slice | torch.Tensor"


def order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The shuffle of epoch ``epoch``: (num_samples,) indices, the same wherever it is computed.

    Example:
        >>> sorted(order(5, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4]
    """
    return torch.from_numpy(generator(seed, "order", epoch).permutation(num_samples))


def each(function: Callable[[torch.Tensor], torch.Tensor], data: Any) -> Any:
    """Apply ``function`` to every tensor of a tensor, tuple, list or dict of them."""
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, dict):
        return {key: each(function, value) for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        return tuple(each(function, value) for value in data)
    return data


def first_tensor(data: Any) -> torch.Tensor:
    """The first tensor inside ``data``; its length is the number of samples."""
    while not isinstance(data, torch.Tensor):
        if not isinstance(data, (tuple, list, dict)) or not data:
            raise InputError(f"data of type {type(data).__name__}: expected a tensor, or a tuple, list or dict of tensors")
        data = next(iter(data.values())) if isinstance(data, dict) else data[0]
    return data


class Batch:
    """One global batch, not yet gathered: ``take`` gathers, augments and moves the positions asked for."""

    def __init__(self, data: tuple[Any, Any], indices: torch.Tensor | None, size: int, place: Place, step: int) -> None:
        self._data, self._indices, self.size = data, indices, size
        self._place, self._step = place, step
        self._draws: torch.Tensor | None = None

    def take(self, positions: Positions) -> tuple[Any, Any]:
        """Inputs and targets at ``positions`` of the global batch, on the device."""
        inputs, targets = self._gather(self._data, positions)
        return self._place.inputs(inputs, self._draw(positions)), self._place.move(targets)

    def targets(self) -> Any:
        """The targets of the whole global batch, on the device."""
        return self._place.move(self._gather(self._data[1], slice(None)))

    def _gather(self, data: Any, positions: Positions) -> Any:
        if self._indices is None:
            whole = isinstance(positions, slice) and positions == slice(None)
            return data if whole else each(lambda t: t[positions], data)
        rows = self._indices[positions]
        return each(lambda t: t.index_select(0, rows.to(t.device)), data)

    def _draw(self, positions: Positions) -> torch.Tensor | None:
        augment = self._place.augment
        if augment is None:
            return None
        if self._draws is None:
            self._draws = augment.draw(generator(self._place.seed, "augment", self._step), self.size)
        return self._draws[positions]


@dataclass
class Place:
    """Where batches go, and in what form: device, memory format, augmentation."""

    device: torch.device
    seed: int = 0
    augment: Augment | None = None
    channels_last: bool = False

    def inputs(self, inputs: Any, draws: torch.Tensor | None) -> Any:
        """The inputs on the device, augmented and in the memory format."""
        inputs = self.move(inputs)
        if draws is not None:
            assert self.augment is not None
            inputs = self.augment.apply(inputs, draws)
        if self.channels_last and isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def move(self, data: Any) -> Any:
        """``data`` on the device."""
        if self.device.type == "cpu":
            return data
        return each(lambda t: t.to(self.device, non_blocking=True), data)


class Source(Protocol):
    """Training data as global batches, by step."""

    steps_per_epoch: int
    batch_size: int
    num_samples: int

    def batches(self, start: int, stop: int, place: Place) -> Iterator[tuple[int, Batch]]:
        """The batches of steps ``start`` to ``stop``, each with its step."""

    def sample(self, size: int) -> tuple[Any, Any]:
        """The first ``size`` samples, for probes."""


@dataclass
class Tensors:
    """A pair of tensors (or structures of them) in memory, shuffled by (seed, epoch); the last batch may be short."""

    inputs: Any
    targets: Any
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self.num_samples = len(first_tensor(self.inputs))
        num_targets = len(first_tensor(self.targets))
        if self.num_samples != num_targets:
            raise InputError(f"{self.num_samples} inputs and {num_targets} targets: expected as many of one as of the other")
        check_batch(self.batch_size, self.num_samples)
        self.steps_per_epoch = math.ceil(self.num_samples / self.batch_size)

    def batches(self, start: int, stop: int, place: Place) -> Iterator[tuple[int, Batch]]:
        indices, data = torch.empty(0, dtype=torch.long), (self.inputs, self.targets)
        for step in range(start, stop):
            epoch, at = divmod(step, self.steps_per_epoch)
            if at == 0 or step == start:
                indices = order(self.num_samples, self.seed, epoch)
            rows = indices[at * self.batch_size : (at + 1) * self.batch_size]
            yield step, Batch(data, rows, len(rows), place, step)

    def sample(self, size: int) -> tuple[Any, Any]:
        return each(lambda t: t[:size], (self.inputs, self.targets))  # type: ignore[no-any-return]


@dataclass
class Loader:
    """A ``DataLoader`` of the user's: ``window`` of its batches make one global batch, one step.

    Its order is its own. A loader without a generator shuffles by PyTorch's global one, which is seeded for each epoch.
    """

    loader: Any
    window: int
    seed: int
    steps_per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        try:
            num_batches = len(self.loader)
        except TypeError:
            raise InputError(
                "a DataLoader without a length cannot be planned (schedules need the number of steps): "
                "give its dataset a __len__"
            ) from None
        if num_batches == 0:
            raise InputError("the training DataLoader is empty: it has no batch (is drop_last on and the data too small?)")
        self.steps_per_epoch = math.ceil(num_batches / self.window)
        self.batch_size = (getattr(self.loader, "batch_size", None) or self._measure()) * self.window
        self.num_samples = _length(getattr(self.loader, "dataset", None)) or num_batches * self.batch_size // self.window

    def batches(self, start: int, stop: int, place: Place) -> Iterator[tuple[int, Batch]]:
        epoch, skip = divmod(start, self.steps_per_epoch)
        step = start
        while step < stop:
            torch.manual_seed(self.seed + epoch)
            set_epoch = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
            if set_epoch:
                set_epoch(epoch)
            for index, data in enumerate(self._windows()):
                if index < skip:
                    continue
                if step >= stop:
                    return
                yield step, Batch(data, None, len(first_tensor(data)), place, step)
                step += 1
            epoch, skip = epoch + 1, 0

    def sample(self, size: int) -> tuple[Any, Any]:
        state = torch.random.get_rng_state()
        inputs, targets = pair(next(iter(self.loader)))
        torch.random.set_rng_state(state)
        return each(lambda t: t[:size], (inputs, targets))  # type: ignore[no-any-return]

    def _windows(self) -> Iterator[tuple[Any, Any]]:
        waiting: list[tuple[Any, Any]] = []
        for data in self.loader:
            waiting.append(pair(data))
            if len(waiting) == self.window:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)

    def _measure(self) -> int:
        return len(first_tensor(self.sample(1 << 30)[0]))


def as_source(data: Any, batch_size: int | None, seed: int, accumulate: int) -> Source:
    """Training data of any accepted kind as a :class:`Source`.

    Args:
        data: a pair of tensors, a ``Dataset`` of pairs, or a ``DataLoader``.
        batch_size: samples per optimizer step; a ``DataLoader`` brings its own.
        seed: of the order.
        accumulate: micro-batches per step; this many batches of a ``DataLoader`` make one step.
    """
    utils = torch.utils.data
    if isinstance(data, utils.DataLoader):
        if batch_size not in (None, data.batch_size):
            raise InputError(
                f"batch_size={batch_size} and a DataLoader with batch_size={data.batch_size}: "
                "leave batch_size out, or give them the same value"
            )
        return Loader(data, accumulate, seed)
    if batch_size is None:
        raise InputError("batch_size=None: only a DataLoader brings its own; pass batch_size")
    check_range("batch_size", batch_size, 1, whole=True)
    if isinstance(data, utils.TensorDataset) and len(data.tensors) == 2:
        return Tensors(data.tensors[0], data.tensors[1], batch_size, seed)
    if isinstance(data, (tuple, list)):
        inputs, targets = pair(data)
        return Tensors(inputs, targets, batch_size, seed)
    if _length(data) is not None and hasattr(data, "__getitem__"):
        check_batch(batch_size, len(data))
        loader = utils.DataLoader(data, batch_size, sampler=_Shuffled(len(data), seed))
        return Loader(loader, 1, seed)
    raise InputError(
        f"training data of type {type(data).__name__}: expected a pair of tensors, a Dataset with a length, or a DataLoader"
    )


def as_loader(data: Any, batch_size: int, part: Callable[[int], slice]) -> Iterator[tuple[Any, Any]]:
    """Evaluation data as batches, in order, this worker's part of it: each sample once over all workers."""
    utils = torch.utils.data
    if isinstance(data, utils.DataLoader):
        for batch in data:
            inputs, targets = pair(batch)
            mine = part(len(first_tensor(inputs)))
            if mine.stop > mine.start:
                yield each(lambda t, mine=mine: t[mine], (inputs, targets))  # type: ignore[misc]
        return
    if isinstance(data, utils.TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, (tuple, list)):
        data = pair(data)
        mine = part(len(first_tensor(data)))
        for start in range(mine.start, mine.stop, batch_size):
            rows = slice(start, min(start + batch_size, mine.stop))
            yield each(lambda t, rows=rows: t[rows], data)  # type: ignore[misc]
        return
    mine = part(len(data))
    for batch in utils.DataLoader(utils.Subset(data, range(mine.start, mine.stop)), batch_size):
        yield pair(batch)


def pair(data: Any) -> tuple[Any, Any]:
    """Inputs and targets; an error where ``data`` is not two things."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        found = f"{len(data)} items" if isinstance(data, (tuple, list)) else type(data).__name__
        raise InputError(f"data of {found}: expected two things, inputs and targets")
    return data[0], data[1]


def check_batch(batch_size: int, num_samples: int) -> None:
    """Refuse a batch larger than the data."""
    if num_samples == 0:
        raise InputError("the training data is empty: 0 samples")
    if batch_size > num_samples:
        raise InputError(f"batch_size={batch_size} is larger than the data: expected at most {num_samples}, its samples")


class _Shuffled:
    """A sampler whose order is a function of (seed, epoch)."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(order(self.num_samples, self.seed, self.epoch).tolist())


def _joined(batches: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    if len(batches) == 1:
        return batches[0]
    return _cat([b[0] for b in batches]), _cat([b[1] for b in batches])


def _cat(items: list[Any]) -> Any:
    head = items[0]
    if isinstance(head, torch.Tensor):
        return torch.cat(items)
    if isinstance(head, dict):
        return {key: _cat([item[key] for item in items]) for key in head}
    return tuple(_cat([item[i] for item in items]) for i in range(len(head)))


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
