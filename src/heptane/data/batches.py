"""Global batches in an order that is a function of (seed, epoch); a worker or a micro-batch takes its positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.randomness import generator
from heptane.base.tree import (
    Positions,
    copy_rows,
    detached,
    first_tensor,
    length,
    num_bytes,
    select_rows,
    tree_copy,
    tree_map,
)
from heptane.data.augment import Augment, CallableAugment
from heptane.data.cast import Cast, check_real
from heptane.data.resize import resized

if TYPE_CHECKING:
    pass

PART = 64  # samples that are probed at once
SHARE_OF_GPU = 0.25  # of its free memory, which data may take


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The shuffle of epoch ``epoch``: (num_samples,) indices, the same wherever it is computed.

    Example:
        >>> sorted(order(5, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4]
    """
    return torch.from_numpy(generator(seed, "order", epoch).permutation(num_samples))


def count_samples(data: tuple[Any, Any]) -> int:
    """The number of samples in a pair of inputs and targets, which must be the same for every tensor in it."""
    num_inputs, num_targets = (length(first_tensor(part)) for part in data)
    if num_inputs is None or num_targets is None:
        raise InputError(f"{'inputs' if num_inputs is None else 'targets'} of one number: expected a row per sample")
    if num_inputs != num_targets:
        raise InputError(f"{num_inputs} inputs and {num_targets} targets: expected as many of one as of the other")

    def check(tensor: torch.Tensor) -> torch.Tensor:
        if length(tensor) != num_inputs:
            found = f"a tensor of shape {tuple(tensor.shape)} beside {num_inputs} samples"
            raise InputError(f"{found}: expected one row per sample in each tensor")
        return tensor

    tree_map(check, data)
    return num_inputs


class Batch:
    """One global batch, not yet gathered: ``take`` gathers, augments and moves the positions asked for."""

    def __init__(
        self,
        data: tuple[Any, Any],
        indices: torch.Tensor | None,
        size: int,
        place: BatchTransform,
        step: int,
        samples: list[int] | None = None,
    ) -> None:
        self._data, self._indices, self.size, self._samples = data, indices, size, samples
        self._place, self._step = place, step
        self._draws: torch.Tensor | None = None
        self._augmented: Any = None

    @property
    def indices(self) -> list[int] | None:
        """Which samples of the training data these are; None where only a loader knows."""
        return self._samples if self._indices is None else self._indices.tolist()

    def take(self, positions: Positions) -> tuple[Any, Any]:
        """Inputs and targets at ``positions`` of the global batch, on the device."""
        targets = self._place.targets(self._gather(self._data[1], positions))
        if isinstance(
            self._place.augment, CallableAugment
        ):  # which is given what the data hold, as it would be in any other loop
            called = self._place.cast.inputs(self._called(self._place.augment, positions))
            return self._place.formed(called, self._step), targets
        inputs = self._gather(self._data[0], positions)
        return self._place.inputs(inputs, self._draw(positions), self._step), targets

    def _called(self, augment: CallableAugment, positions: Positions) -> Any:
        """A function of the user's is given the whole global batch, so that no worker or micro-batch changes its draws."""
        if self._augmented is None:
            whole = self._place.move(self._gather(self._data[0], slice(None)))
            self._augmented = augment(whole, self._place.seed, self._step)
        return select_rows(self._augmented, positions)

    def targets(self) -> Any:
        """The targets of the whole global batch, on the device."""
        return self._place.targets(self._gather(self._data[1], slice(None)))

    def _gather(self, data: Any, positions: Positions) -> Any:
        whole = isinstance(positions, slice) and positions == slice(None)
        if self._indices is None:  # copies: the step may be tried again after a model that works in place
            return (tree_copy(data) if self._place.device.type == "cpu" else data) if whole else copy_rows(data, positions)
        chosen = self._indices if whole else self._indices[positions]
        return tree_map(lambda t: t.index_select(0, chosen.to(t.device)), data)

    def _draw(self, positions: Positions) -> torch.Tensor | None:
        augment = self._place.augment
        if augment is None or isinstance(augment, CallableAugment):
            return None
        if self._draws is None:
            self._draws = augment.draw(generator(self._place.seed, "augment", self._step), self.size)
        return self._draws[positions]


@dataclass
class BatchTransform:
    """Where batches go, and in what form: device, type, memory format, augmentation, and the size of a step's images."""

    device: torch.device
    seed: int = 0
    augment: Augment | CallableAugment | None = None
    channels_last: bool = False
    sizes: Callable[[int], int | None] | None = None
    cast: Cast = field(default_factory=Cast)

    def __post_init__(self) -> None:
        self._stays = self.device.type == "cpu"

    def inputs(self, inputs: Any, draws: torch.Tensor | None = None, step: int | None = None) -> Any:
        """The inputs on the device, of the model's type, augmented, in the memory format, and as large as they are to be at
        ``step``."""
        inputs = self.cast.inputs(self.move(inputs))
        if draws is not None:
            assert self.augment is not None
            assert not isinstance(self.augment, CallableAugment)
            if not isinstance(inputs, torch.Tensor):
                kind = type(inputs).__name__
                raise InputError(f"augment with inputs of type {kind}: expected one tensor; augment in the Dataset instead")
            inputs = self.augment.apply(inputs, draws)
            if not self.channels_last:  # models may call view(), and with one channel contiguous() leaves the strides
                inputs = inputs.flatten(1).view(inputs.shape)
        return self.formed(inputs, step)

    def formed(self, inputs: Any, step: int | None = None) -> Any:
        """Inputs on the device in the memory format, and as large as they are to be at ``step``."""
        size = self.sizes(step) if self.sizes is not None and step is not None else None
        if size is not None:
            inputs = resized(inputs, size)
        if self.channels_last and isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def targets(self, targets: Any) -> Any:
        """The targets on the device, in 32 bits where the model is."""
        return self.cast.targets(self.move(targets))

    def move(self, data: Any) -> Any:
        """``data`` on the device."""
        if self._stays:
            return data
        return tree_map(lambda t: t.to(self.device, non_blocking=True), data)


class Source(Protocol):
    """Training data as global batches, by step."""

    steps_per_epoch: int
    batch_size: int
    num_samples: int
    seed: int

    def batches(self, start: int, stop: int, place: BatchTransform) -> Iterator[tuple[int, Batch]]:
        """The batches of steps ``start`` to ``stop``, each with its step."""

    def drop_short_batch(self, least: int) -> str:
        """Leave out an epoch's last batch where it has less than ``least`` samples; says so, or nothing."""

    def sample(self, size: int) -> tuple[Any, Any]:
        """The first ``size`` samples, for probes."""

    def sample_batches(self, count: int) -> list[tuple[Any, Any]]:
        """In parts, ``count`` samples that are like the others, or all there are: random ones, or a loader's first."""


@dataclass
class TensorSource:
    """A pair of tensors (or structures of them) in memory, shuffled by (seed, epoch); the last batch may be short."""

    inputs: Any
    targets: Any
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_real("training inputs", self.inputs)
        check_real("training targets", self.targets)
        self.num_samples = count_samples((self.inputs, self.targets))
        # A graph that ends in the user's data would be run through again and again; it is not this run's to train.
        self.inputs, self.targets = (tree_map(detached, part) for part in (self.inputs, self.targets))
        check_batch(self.batch_size, self.num_samples)
        self.steps_per_epoch = math.ceil(self.num_samples / self.batch_size)

    def keep_on(self, place: BatchTransform) -> None:
        """Keep the tensors on a GPU where they take little of its free memory: then no step has to bring them there."""
        data = self.inputs, self.targets
        if place.device.type == "cuda" and num_bytes(data) <= SHARE_OF_GPU * torch.cuda.mem_get_info(place.device)[0]:
            self.inputs, self.targets = place.move(data)

    def batches(self, start: int, stop: int, place: BatchTransform) -> Iterator[tuple[int, Batch]]:
        data = self.inputs, self.targets
        device = first_tensor(self.inputs).device
        for step in range(start, stop):
            epoch, at = divmod(step, self.steps_per_epoch)
            if at == 0 or step == start:
                chosen = torch.split(epoch_order(self.num_samples, self.seed, epoch).to(device), self.batch_size)
            yield step, Batch(data, chosen[at], len(chosen[at]), place, step)

    def drop_short_batch(self, least: int) -> str:
        rest = self.num_samples % self.batch_size or self.batch_size
        if rest >= least:
            return ""
        self.steps_per_epoch -= 1
        return short_batch_message(rest, least)

    def sample(self, size: int) -> tuple[Any, Any]:
        return copy_rows((self.inputs, self.targets), slice(size))  # type: ignore[no-any-return]

    def sample_batches(self, count: int) -> list[tuple[Any, Any]]:
        parts = torch.split(epoch_order(self.num_samples, self.seed, 0)[:count], min(PART, self.batch_size))
        return [select_rows((self.inputs, self.targets), part) for part in parts]


def check_batch(batch_size: int, num_samples: int) -> None:
    """Refuse a batch larger than the data."""
    if num_samples == 0:
        raise InputError("the training data is empty: 0 samples")
    if batch_size > num_samples:
        raise InputError(f"batch_size={batch_size} is larger than the data: expected at most {num_samples}, its samples")


def short_batch_message(rest: int, least: int) -> str:
    """What is said of an epoch's last batch that is left out."""
    return (
        f"the last batch of an epoch has {rest} sample(s), and BatchNorm needs {least}: it is left out "
        "(of shuffled data other samples in each epoch); choose another batch_size to train on all"
    )


def dataset_tensors(data: Any) -> Any:
    """The pair that a ``TensorDataset`` of two holds; anything else as it is."""
    pairs = isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) == 2
    return data.tensors if pairs else data
