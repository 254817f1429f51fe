"""What a frozen part of a model makes of its inputs, computed once; the rest trains on that.

Where the first layers are frozen and their inputs do not change, neither do their outputs. So a model is cut where the
frozen part ends (:mod:`heptane.pretrained.split`), what comes to the cut is kept, and the tail after it trains on that.
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
SHARE_OF_MEMORY = 0.25  # of what is available, that features may take before they go to the disk
CPU_CHUNK = 8  # samples that go through the frozen part at once on a CPU
TRIED = 4  # samples on which a cut is tried


@dataclass
class FeatureCache:
    """The tail of a model, and what comes to it: features in place of inputs."""

    tail: torch.nn.Module
    source: TensorSource
    note: str
    compute: Callable[[Any], torch.Tensor]
    _known: list[tuple[Any, tuple[Any, Any]]] = field(default_factory=list)

    def of(self, data: Any) -> tuple[Any, Any]:
        """Features and targets of other data in memory; computed at the first call."""
        for known, found in self._known:
            if known is data:
                return found
        inputs, targets = inputs_and_targets(data)
        self._known.append((data, (self.compute(inputs), targets)))
        return self._known[-1][1]


def cache_features(run: Run, phase: Phase, kind: str, dtype: str) -> FeatureCache | str:
    """The shortcut through the frozen part of ``run.model``, in the modes and with the parameters frozen as they are in
    ``phase``; or why there is none.

    Args:
        kind: "auto" (in memory, or on the disk where that is short), "memory" or "disk".
        dtype: of the features: "auto" is what the frozen part gives, or "fp32", "fp16", "bf16".

    Raises:
        InputError: features that ``dtype`` cannot hold.
    """
    from heptane.model.snapshot import preserved_model
    from heptane.pretrained.split import CastCopy, find_split, frozen_outputs

    model, source = run.model, run.source
    if not isinstance(source, TensorSource):
        return "a Dataset or DataLoader may give other inputs in each epoch: pass tensors"
    if run.place.augment is not None or run.place.sizes is not None:
        return "augmentation and progressive resizing change the inputs"
    if phase.stop - phase.start <= source.steps_per_epoch:
        return "it is frozen for no more than an epoch"
    if run.meta_copy is not None:
        return "the model is in parts"
    if isinstance(run.criterion, ModelLoss):
        return "the loss is computed in the model"
    sample = run.place.inputs(copy_rows(source.inputs, slice(TRIED)))
    with evaluation(run.precision):
        cut = find_split(model, sample)
    if isinstance(cut, str):
        return cut
    if run.mix.blends and not _within(model, run.mix.layer, cut):
        return "mixup blends what goes into it"
    began = time.perf_counter()
    batch_size = math.ceil(source.batch_size / run.accumulate)  # as many at a time as in training
    held = FeatureStore(kind, None if dtype == "auto" else getattr(torch, DTYPES[dtype]))

    # Few at once on a CPU: large activations are given back to the system, and cleared again by it, in each call.
    chunk = min(batch_size, CPU_CHUNK) if run.place.device.type == "cpu" else batch_size

    def compute(inputs: Any) -> torch.Tensor:
        worker = run.worker if len(first_tensor(inputs)) >= run.worker.size else SINGLE_WORKER
        with preserved_model(model):
            return held.fill(inputs, frozen_outputs(model, cut, inputs, chunk, run.place, run.precision, worker), worker)

    features = compute(source.inputs)
    said = (
        f"frozen features cached: {len(features)} samples of {features[0].numel()} features, "
        f"{str(features.dtype).removeprefix('torch.')} {held.where}, {features.nbytes / 2**20:.3g} MiB, "
        f"in {time.perf_counter() - began:.3g} s"
    )
    made = TensorSource(features, source.targets, source.batch_size, source.seed)
    made.steps_per_epoch = source.steps_per_epoch  # a last batch may be left out
    made.keep_on(run.place)
    return FeatureCache(torch.nn.Sequential(CastCopy(cut.dtype), *cut.tail), made, said, compute)


@dataclass
class FeatureStore:
    """Where features are kept, and in which dtype; None: the one that they come in."""

    kind: str
    dtype: torch.dtype | None
    where: str = "in memory"

    def fill(self, inputs: Any, parts: Iterator[tuple[slice, torch.Tensor]], worker: Worker) -> torch.Tensor:
        """The features of all samples, from those of this worker's."""
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
    """A tensor of zeros in a file of the folder for temporary files, which is gone with the process however that ends.

    Raises:
        InputError: the disk has no room for it.
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
            f"Transfer.cache: no features in {tempfile.gettempdir()} ({one_line(error)}): set TMPDIR"
        ) from error


def _within(model: torch.nn.Module, layer: str | None, cut: SplitPoint) -> bool:
    """Whether hidden features are blended after the cut."""
    return layer is not None and any(module is model.get_submodule(layer) for m in cut.tail for module in m.modules())
