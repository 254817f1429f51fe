"""Check that all workers read the same data, since each takes its share of the same global batch.

Under ``torchrun`` every process builds its own dataset and loader. A sampler with its own generator, or a list of files made
from a ``set``, can differ between processes; then samples are used twice, never, or with wrong labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.tree import in_memory, inputs_and_targets, length, select_rows, tree_map
from heptane.data.batches import Source, TensorSource, dataset_tensors
from heptane.data.spaced_samples import READ, spaced_samples
from heptane.distributed.workers import Worker, all_gather

ENDS = 64  # inputs compared at each end of data in memory; all targets are compared
REMEDY = (
    "make them equal: call torch.manual_seed before drawing random data, sort lists of files, and give a sampler a "
    "generator with the same seed in all workers"
)


def checksum(data: Any) -> int:
    """CRC-32 of the bits, shapes and dtypes of all tensors in ``data``."""
    found = 0

    def add(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal found
        found = zlib.crc32(str((tuple(tensor.shape), tensor.dtype)).encode(), found)
        if tensor.layout is torch.strided and not tensor.is_meta:
            found = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), found)
        return tensor

    tree_map(add, data)
    return found


def check_same_data(source: Source, others: list[tuple[str, Any]], worker: Worker) -> None:
    """Raise :class:`InputError` if data differs between workers: its length and, if in memory, its targets and both ends.

    Args:
        source: the training data.
        others: (name, data) of each evaluation dataset.
        worker: this worker.
    """
    if worker.size == 1:
        return
    mine: list[tuple[str, Any]] = [("training", (source.num_samples, source.steps_per_epoch))]
    if isinstance(source, TensorSource):
        mine.append(("training", _ends((source.inputs, source.targets))))
    for name, data in others:
        data = dataset_tensors(data)
        if in_memory(data):
            mine.append((name, _ends(inputs_and_targets(data))))
        else:  # a loader's batches are compared as they are read, since its sampler may be random
            few = spaced_samples(data, READ) if not isinstance(data, torch.utils.data.DataLoader) else None
            mine.append((name, (length(data), None if few is None else checksum(few[1]))))
    for rank, theirs in enumerate(all_gather(mine, worker)):
        for (name, here), (_, there) in zip(mine, theirs, strict=False):
            if here != there:
                raise InputError(f"the {name} data of workers {rank} and {worker.rank} differs: {REMEDY}")


class SameBatches:
    """Checks, by their targets, that all workers read the same evaluation batches; each uses its share of them."""

    def __init__(self, name: str, worker: Worker) -> None:
        self.name, self.worker, self._found = name, worker, 0

    def add(self, batch: tuple[Any, Any]) -> None:
        """Add a batch."""
        self._found = zlib.crc32(str(checksum(batch[1])).encode(), self._found)

    def check(self) -> None:
        """Raise :class:`InputError` if batches differed; all workers must call this."""
        found = all_gather(self._found, self.worker)
        for rank, theirs in enumerate(found):
            if theirs != found[0]:
                raise InputError(f"the {self.name} data of workers {rank} and 0 differs: {REMEDY}")


def check_same_batch(data: Any, indices: list[Any] | None, step: int, worker: Worker, say: Callable[[str], None]) -> None:
    """Raise :class:`InputError` if a global batch differs between workers in samples or targets; if in inputs, warn."""
    inputs, targets = (None, None) if data is None else data
    found = all_gather((indices, checksum(targets), checksum(inputs)), worker)
    for rank, (theirs, target_sum, _) in enumerate(found):
        first = found[0]
        if theirs != first[0]:
            shown = " and ".join(f"{_few(samples)} in worker {at}" for at, samples in ((0, first[0]), (rank, theirs)))
            raise InputError(f"step {step}: the workers read different samples, {shown}: {REMEDY}")
        if target_sum != first[1]:
            raise InputError(f"step {step}: the same samples have different targets in workers {rank} and 0: {REMEDY}")
    if len({input_sum for *_, input_sum in found}) > 1:
        say(
            f"step {step}: the same samples have different inputs in each worker, so the result depends on the number of "
            "workers; causes are augmentation with its own random generator, or files in a different order"
        )


def _ends(data: tuple[Any, Any]) -> tuple[int, int, int]:
    inputs, targets = data
    return checksum(targets), checksum(select_rows(inputs, slice(ENDS))), checksum(select_rows(inputs, slice(-ENDS, None)))


def _few(samples: list[Any] | None) -> str:
    return "unknown" if samples is None else ", ".join(map(str, samples[:5])) + (", ..." if len(samples) > 5 else "")
