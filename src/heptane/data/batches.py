"""Global batches in an order that is a function of (seed, epoch); a worker or a micro-batch takes a slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
from heptane.data.balance import balanced_order, class_labels
from heptane.data.cast import Cast, check_real
from heptane.data.images.stored_images import Images
from heptane.data.length_order import length_order
from heptane.data.resize import resized
from heptane.distributed.workers import SINGLE_WORKER, Worker

AHEAD = 4  # batches that are read ahead, if images are read as they are needed
PART = 64  # samples per batch of ``TensorSource.sample_batches``
SHARE_OF_GPU = 0.25  # of the free GPU memory that training data may take


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the shuffled order of an epoch: int64 indices (num_samples,), the same on every machine.

    Example:
        >>> sorted(epoch_order(5, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4]
    """
    return torch.from_numpy(generator(seed, "order", epoch).permutation(num_samples))


def count_samples(data: tuple[Any, Any]) -> int:
    """Number of samples in a pair (inputs, targets); every tensor in it must have as many rows."""
    num_inputs, num_targets = (length(first_tensor(part)) for part in data)
    if num_inputs is None or num_targets is None:
        raise InputError(f"{'inputs' if num_inputs is None else 'targets'} are a single number: expected one row per sample")
    if num_inputs != num_targets:
        raise InputError(f"{num_inputs} inputs and {num_targets} targets: expected equal numbers")

    def check(tensor: torch.Tensor) -> torch.Tensor:
        if length(tensor) != num_inputs:
            found = f"a tensor of shape {tuple(tensor.shape)} beside {num_inputs} samples"
            raise InputError(f"{found}: expected one row per sample in each tensor")
        return tensor

    tree_map(check, data)
    return num_inputs


class Batch:
    """One global batch, gathered lazily: ``take`` gathers, augments and moves the requested positions."""

    def __init__(
        self,
        data: tuple[Any, Any],
        indices: torch.Tensor | None,
        size: int,
        transform: BatchTransform,
        step: int,
        samples: list[int] | None = None,
    ) -> None:
        self._data, self._indices, self.size, self._samples = data, indices, size, samples
        self._transform, self._step = transform, step
        self._draws: torch.Tensor | None = None
        self._augmented: Any = None

    @property
    def indices(self) -> list[int] | None:
        """Indices of these samples in the training data; None if only a DataLoader knows."""
        return self._samples if self._indices is None else self._indices.tolist()

    def take(self, positions: Positions) -> tuple[Any, Any]:
        """Inputs and targets at ``positions`` of the global batch, on the device."""
        targets = self._transform.targets(self._gather(self._data[1], positions))
        if isinstance(self._transform.augment, CallableAugment):  # a user's function gets the raw inputs
            augmented = self._transform.cast.inputs(self._augment_all(self._transform.augment, positions))
            return self._transform.format(augmented, self._step), targets
        images = self._data[0] if isinstance(self._data[0], Images) else None
        inputs = self._gather(self._data[0], positions)
        return self._transform.inputs(inputs, self._draw(positions), self._step, images), targets

    def _augment_all(self, augment: CallableAugment, positions: Positions) -> Any:
        """Augment the whole global batch, so that the draws do not depend on workers or micro-batches."""
        if self._augmented is None:
            whole = self._transform.move(self._gather(self._data[0], slice(None)))
            whole = self._data[0].finish(whole) if isinstance(self._data[0], Images) else whole
            self._augmented = augment(whole, self._transform.seed, self._step)
        return select_rows(self._augmented, positions)

    def targets(self) -> Any:
        """The targets of the whole global batch, on the device."""
        return self._transform.targets(self._gather(self._data[1], slice(None)))

    def _gather(self, data: Any, positions: Positions) -> Any:
        whole = isinstance(positions, slice) and positions == slice(None)
        if self._indices is None:  # copies: the step may be retried after an in-place model has changed its inputs
            on_cpu = self._transform.device.type == "cpu"
            return (tree_copy(data) if on_cpu else data) if whole else copy_rows(data, positions)
        chosen = self._indices if whole else self._indices[positions]
        if isinstance(data, Images):
            return data.pixels(chosen)
        return tree_map(lambda t: t.index_select(0, chosen.to(t.device)), data)

    def _draw(self, positions: Positions) -> torch.Tensor | None:
        augment = self._transform.augment
        if augment is None or isinstance(augment, CallableAugment):
            return None
        if self._draws is None:
            self._draws = augment.draw(generator(self._transform.seed, "augment", self._step), self.size)
        return self._draws[positions]


@dataclass
class BatchTransform:
    """Moves batches to the device and puts them into their final form.

    Attributes:
        device: of the model.
        seed: of the augmentation.
        augment: the augmentation, or None.
        channels_last: whether to store images channels last.
        sizes: from a step to the size of its square images, None for full size; None: always full size.
        cast: dtype conversions.
    """

    device: torch.device
    seed: int = 0
    augment: Augment | CallableAugment | None = None
    channels_last: bool = False
    sizes: Callable[[int], int | None] | None = None
    cast: Cast = field(default_factory=Cast)

    def __post_init__(self) -> None:
        self._stays = self.device.type == "cpu"

    def inputs(
        self, inputs: Any, draws: torch.Tensor | None = None, step: int | None = None, images: Images | None = None
    ) -> Any:
        """Move, cast, augment, resize and format inputs for ``step``; of ``images`` they are the pixels."""
        inputs = self.move(inputs)
        if images is not None:
            on_pixels = draws is not None and getattr(self.augment, "on_pixels", False)
            given = (self.augment, draws) if on_pixels else ()
            inputs, draws = images.finish(inputs, *given, channels_last=self.channels_last), None if on_pixels else draws
        inputs = self.cast.inputs(inputs)
        if draws is not None:
            assert self.augment is not None
            assert not isinstance(self.augment, CallableAugment)
            if not isinstance(inputs, torch.Tensor):
                kind = type(inputs).__name__
                raise InputError(f"augment with inputs of type {kind}: expected one tensor; augment in the Dataset instead")
            inputs = self.augment.apply(inputs, draws)
            if not self.channels_last:  # models may call view(), and contiguous() keeps the strides of one channel
                inputs = inputs.flatten(1).view(inputs.shape)
        return self.format(inputs, step)

    def fit_augment(self, inputs: Any) -> None:
        """Let an augmentation that crops know the size of the model's images."""
        fit = getattr(self.augment, "for_size", None)
        if fit is not None and getattr(inputs, "ndim", 0) == 4:
            self.augment = fit(*inputs.shape[2:])

    def format(self, inputs: Any, step: int | None = None) -> Any:
        """Resize inputs for ``step`` and apply the memory format."""
        size = self.sizes(step) if self.sizes is not None and step is not None else None
        if size is not None:
            inputs = resized(inputs, size)
        if self.channels_last and isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def targets(self, targets: Any) -> Any:
        """Move and cast targets."""
        return self.cast.targets(self.move(targets))

    def move(self, data: Any) -> Any:
        """Move data to the device."""
        if self._stays:
            return data
        return tree_map(lambda t: t.to(self.device, non_blocking=True), data)


class Source(Protocol):
    """Training data as global batches by step."""

    steps_per_epoch: int
    batch_size: int
    num_samples: int
    seed: int

    def batches(self, start: int, stop: int, transform: BatchTransform) -> Iterator[tuple[int, Batch]]:
        """Yield the steps from ``start`` to ``stop`` with their batches."""

    def drop_short_batch(self, least: int) -> str:
        """Drop each epoch's last batch if it has fewer than ``least`` samples; return a message or ''."""

    def sample(self, size: int) -> tuple[Any, Any]:
        """The first ``size`` samples, for probes."""

    def sample_batches(self, count: int) -> list[tuple[Any, Any]]:
        """Batches with ``count`` samples in all, or all samples: random ones, or a loader's first."""


@dataclass
class TensorSource:
    """Inputs and targets in memory (tensors or trees of them), shuffled by (seed, epoch); the last batch may be short."""

    inputs: Any
    targets: Any
    batch_size: int
    seed: int
    worker: Worker = SINGLE_WORKER
    """of images that are read as they are needed, a worker reads its share ahead"""
    sampling: str = "shuffle"
    """or "balanced": drawn with replacement, each class with the same probability"""

    def __post_init__(self) -> None:
        check_real("training inputs", self.inputs)
        check_real("training targets", self.targets)
        self.num_samples = count_samples((self.inputs, self.targets))
        # Backward passes must not run through a graph behind the user's data.
        self.inputs, self.targets = (tree_map(detached, part) for part in (self.inputs, self.targets))
        check_batch(self.batch_size, self.num_samples)
        self.steps_per_epoch = math.ceil(self.num_samples / self.batch_size)

    def keep_on(self, transform: BatchTransform) -> None:
        """Move the tensors to the GPU once, if they take little of its free memory."""
        data, device = (self.inputs, self.targets), transform.device
        if device.type == "cuda" and num_bytes(data) <= SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
            self.inputs, self.targets = transform.move(data)

    def report_to(self, say: Callable[[str], None]) -> None:
        """Call ``say`` with a message for each sample that cannot be read."""
        if isinstance(self.inputs, Images) and self.inputs.replaced is not None:
            self.inputs.replaced.report_to(say)

    def order(self, epoch: int) -> torch.Tensor:
        """The samples of an epoch, int64 (num_samples,): a function of (seed, epoch)."""
        if self.sampling == "balanced":
            order = balanced_order(class_labels("sampling='balanced'", self.targets), self.seed, epoch)
        else:
            order = epoch_order(self.num_samples, self.seed, epoch)
        lengths = getattr(first_tensor(self.inputs), "lengths", None)
        return order if lengths is None else length_order(order, lengths, self.batch_size, self.seed, epoch)

    def batches(self, start: int, stop: int, transform: BatchTransform) -> Iterator[tuple[int, Batch]]:
        data = self.inputs, self.targets
        device = first_tensor(self.inputs).device
        for step in range(start, stop):
            epoch, at = divmod(step, self.steps_per_epoch)
            if at == 0 or step == start:
                chosen = torch.split(self.order(epoch).to(device), self.batch_size)
            if isinstance(self.inputs, Images):
                self._read_ahead(self.inputs, chosen[at : at + AHEAD])
            yield step, Batch(data, chosen[at], len(chosen[at]), transform, step)
            if isinstance(self.inputs, Images):
                self.inputs.release(chosen[at])

    def _read_ahead(self, images: Images, batches: Sequence[torch.Tensor]) -> None:
        """Begin to read this worker's share of the next batches."""
        for indices in batches:
            images.read_ahead(indices[self.worker.share(len(indices))])

    def drop_short_batch(self, least: int) -> str:
        rest = self.num_samples % self.batch_size or self.batch_size
        if rest >= least:
            return ""
        self.steps_per_epoch -= 1
        return short_batch_message(rest, least)

    def sample(self, size: int) -> tuple[Any, Any]:
        return copy_rows((self.inputs, self.targets), slice(size))  # type: ignore[no-any-return]

    def sample_batches(self, count: int) -> list[tuple[Any, Any]]:
        parts = torch.split(self.order(0)[:count], min(PART, self.batch_size))
        return [select_rows((self.inputs, self.targets), part) for part in parts]


def check_batch(batch_size: int, num_samples: int) -> None:
    """Raise :class:`InputError` if the data is empty or smaller than a batch."""
    if num_samples == 0:
        raise InputError("the training data is empty: 0 samples")
    if batch_size > num_samples:
        raise InputError(f"batch_size={batch_size} is larger than the data: expected at most its {num_samples} samples")


def short_batch_message(rest: int, least: int) -> str:
    """The message about a dropped last batch."""
    return (
        f"the last batch of each epoch has {rest} sample(s), but BatchNorm needs {least}: it is dropped "
        "(with shuffling, other samples in each epoch); choose another batch_size to train on all"
    )


def dataset_tensors(data: Any) -> Any:
    """The two tensors of a ``TensorDataset`` as a pair; anything else unchanged."""
    pairs = isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) == 2
    return data.tensors if pairs else data
