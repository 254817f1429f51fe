"""Feature cache: compute the frozen part of a model once and train the rest on its features.

If the first layers are frozen and their inputs do not change, neither do their outputs. So the model is split where the
frozen part ends (:mod:`heptane.pretrained.split`), the features there are cached, and the tail trains on them.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.memory import available_memory_bytes
from heptane.base.progress import working
from heptane.base.tree import copy_rows, first_tensor, inputs_and_targets
from heptane.core.custom_losses import ModelLoss
from heptane.core.precision.step import evaluation
from heptane.data.batches import TensorSource
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_reduce

if TYPE_CHECKING:
    from heptane.core.run import Phase, Run
    from heptane.pretrained.split import SplitPoint

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SHARE_OF_MEMORY = 0.25  # of the available memory; larger features go to the disk
CPU_CHUNK = 8  # batch size of the frozen part on a CPU
TRIED = 4  # samples on which a split is tried


@dataclass
class FeatureCache:
    """The tail of a model, and the cached features that are its inputs."""

    tail: torch.nn.Module
    source: TensorSource
    note: str
    compute: Callable[[Any], torch.Tensor]
    _known: list[tuple[Any, tuple[Any, Any]]] = field(default_factory=list)

    def of(self, data: Any) -> tuple[Any, Any]:
        """Features and targets of other data in memory, computed at the first call."""
        for known, found in self._known:
            if known is data:
                return found
        inputs, targets = inputs_and_targets(data)
        self._known.append((data, (self.compute(inputs), targets)))
        return self._known[-1][1]


def cache_features(run: Run, phase: Phase, kind: str, dtype: str) -> FeatureCache | str:
    """The feature cache of ``run.model``, with modes and frozen parameters as in ``phase``; or the reason why there is none.

    Args:
        run, phase: the run, settled in this phase.
        kind: "auto" (in memory, or on disk if memory is short), "memory" or "disk".
        dtype: of the features: "auto", as they are computed, or "fp32", "fp16", "bf16".

    Raises:
        InputError: features that ``dtype`` cannot represent.
    """
    from heptane.model.snapshot import preserved_model
    from heptane.pretrained.split import CastCopy, find_split, frozen_outputs

    model, source = run.model, run.source
    if not isinstance(source, TensorSource):
        return "a Dataset or DataLoader may return different inputs in each epoch: pass tensors"
    if run.place.augment is not None or run.place.sizes is not None:
        return "augmentation and progressive resizing change the inputs"
    if phase.stop - phase.start <= source.steps_per_epoch:
        return "it is frozen for an epoch or less"
    if run.meta_copy is not None:
        return "the model is sharded"
    if isinstance(run.criterion, ModelLoss):
        return "the model computes the loss itself"
    sample = run.place.inputs(copy_rows(source.inputs, slice(TRIED)))
    with evaluation(run.precision):
        split = find_split(model, sample)
    if isinstance(split, str):
        return split
    if run.mix.blends and not _blends_in_tail(model, run.mix.layer, split):
        return "mixup blends its inputs"
    began = time.perf_counter()
    batch_size = math.ceil(source.batch_size / run.accumulate)  # as in training
    store = FeatureStore(kind, None if dtype == "auto" else getattr(torch, DTYPES[dtype]))

    # Small batches on a CPU: large activations are returned to the system and zeroed again by it in each call.
    chunk = min(batch_size, CPU_CHUNK) if run.place.device.type == "cpu" else batch_size

    def compute(inputs: Any) -> torch.Tensor:
        worker = run.worker if len(first_tensor(inputs)) >= run.worker.size else SINGLE_WORKER
        with preserved_model(model):
            return store.fill(inputs, frozen_outputs(model, split, inputs, chunk, run.place, run.precision, worker), worker)

    features = compute(source.inputs)
    note = (
        f"frozen features cached: {len(features)} samples of {features[0].numel()} features, "
        f"{str(features.dtype).removeprefix('torch.')} {store.where}, {features.nbytes / 2**20:.3g} MiB, "
        f"in {time.perf_counter() - began:.3g} s"
    )
    made = TensorSource(features, source.targets, source.batch_size, source.seed, sampling=source.sampling)
    made.steps_per_epoch = source.steps_per_epoch  # the last batch may be left out
    made.keep_on(run.place)
    return FeatureCache(torch.nn.Sequential(CastCopy(split.dtype), *split.tail), made, note, compute)


@dataclass
class FeatureStore:
    """Where and in which dtype features are stored; None: the dtype in which they are computed."""

    kind: str
    dtype: torch.dtype | None
    where: str = "in memory"

    def fill(self, inputs: Any, parts: Iterator[tuple[slice, torch.Tensor]], worker: Worker) -> torch.Tensor:
        """The features of all samples, gathered from every worker's share."""
        whole: torch.Tensor | None = None
        num_samples = len(first_tensor(inputs))
        with working(f"computing the features of {num_samples:,} samples, once", num_samples) as advance:
            for at, part in parts:
                advance(len(part))
                if whole is None:
                    whole = self._zeros((num_samples, *part.shape[1:]), self.dtype or part.dtype)
                whole[at] = part.to(whole.dtype)
                if self.dtype is not None and not bool(whole[at].isfinite().all()) and bool(part.isfinite().all()):
                    raise InputError(
                        f"Transfer.cache_dtype={str(self.dtype).removeprefix('torch.')!r} cannot hold features of up to "
                        f"{float(part.abs().max()):.3g}: use 'bf16' or 'auto'"
                    )
        assert whole is not None
        return all_reduce(whole, worker)

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        if self.kind == "disk" or (self.kind == "auto" and size > SHARE_OF_MEMORY * available_memory_bytes()):
            self.where = "on the disk"
            return zeros_on_disk(shape, dtype, size)
        return torch.zeros(shape, dtype=dtype)


def zeros_on_disk(shape: tuple[int, ...], dtype: torch.dtype, size: int) -> torch.Tensor:
    """A zero tensor backed by a temporary file, which is removed when the process ends, however it ends.

    Raises:
        InputError: the disk is too small.
    """
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if size > room:
        raise InputError(
            f"Transfer.cache: {size / 2**30:.3g} GiB of features do not fit into {tempfile.gettempdir()}, which has "
            f"{room / 2**30:.3g} GiB: set TMPDIR to a larger disk, or cache='off'"
        )
    try:
        with tempfile.NamedTemporaryFile(prefix="heptane-") as file:
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"Transfer.cache: cannot write to {tempfile.gettempdir()} ({one_line(error)}): set TMPDIR to another disk"
        ) from error


def _blends_in_tail(model: torch.nn.Module, layer: str | None, split: SplitPoint) -> bool:
    """Whether mixup blends the output of a module in the tail."""
    return layer is not None and any(module is model.get_submodule(layer) for m in split.tail for module in m.modules())
