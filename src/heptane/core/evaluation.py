"""Evaluation: loss, accuracy and metrics of a model on data, each sample once.

The batch size is chosen so that it needs no more memory than training; batches that still do not fit are split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.base.tree import copy_rows, first_tensor, in_memory, inputs_and_targets, num_bytes, select_rows
from heptane.core.criterion import model_output
from heptane.core.custom_losses import ModelLoss
from heptane.core.custom_metrics import MetricSet
from heptane.core.metrics import EvalMeter
from heptane.core.precision.step import Precision, evaluation
from heptane.data.batches import BatchTransform
from heptane.data.consistency import SameBatches
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.data.sources import as_loader
from heptane.distributed.replicas import broadcast_buffers, is_sharded
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather, all_reduce
from heptane.model.forward import unwrapped
from heptane.model.modes import eval_mode
from heptane.model.probe import probe_output

if TYPE_CHECKING:
    from heptane.core.run import Run


MAX_BATCH = 512  # larger batches are no faster
MAX_BYTES = 128 << 20  # of the largest tensor of a forward pass, inputs included
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def eval_batch_size(model: torch.nn.Module, inputs: Any, least: int, *, tries: bool = True) -> int:
    """The evaluation batch size: 512, or fewer if the largest tensor of a forward pass would exceed 128 MiB; at least
    ``least``.

    Args:
        model: tried on two samples and restored.
        inputs: a few samples, on its device.
        least: samples per forward pass in training, 1 or more.
        tries: False if the model cannot be run; then only the inputs count.
    """
    if least >= MAX_BATCH:
        return MAX_BATCH
    few = copy_rows(inputs, slice(2))
    largest = num_bytes(few)
    handles = []

    def look(module: Any, given: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, num_bytes(output))

    if tries:
        eager = unwrapped(model)
        try:
            handles = [module.register_forward_hook(look) for module in eager.modules()]
            with suppress(Exception):  # the evaluation itself reports errors
                probe_output(eager, few)
        finally:
            for handle in handles:
                handle.remove()
    each_takes = max(1, largest // max(1, len(first_tensor(few))))
    return min(MAX_BATCH, max(least, MAX_BYTES // each_takes))


def run_eval_batch_size(run: Run) -> int:
    """The evaluation batch size of a run; computed once."""
    if run.at_once is None:
        least = max(1, run.source.batch_size // (run.worker.size * run.accumulate))
        run.at_once = eval_batch_size(run.model, run.sample, least, tries=run.meta_copy is None)
    return run.at_once


class BatchSplitter:
    """Compute batches, halving them while memory is exhausted; later batches are no larger than what succeeded.

    Args:
        compute: from inputs and targets to an output.
        splits: False if all workers must call it equally often.
    """

    def __init__(self, compute: Callable[[Any, Any], Any], splits: bool = True) -> None:
        self.compute, self.splits, self.most = compute, splits, 0

    def of(self, inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
        """Output and targets, in several parts if the batch was split."""
        size = len(first_tensor(inputs))
        if not self.most or size <= self.most:
            try:
                output = self.compute(inputs, targets)
            except RuntimeError as error:
                if not self.splits or size < 2 or not is_out_of_memory(error):
                    raise
                error.__traceback__ = None  # it keeps the failed tensors alive
                self.most = size // 2
            else:
                yield output, targets
                return
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for half in (slice(-(-size // 2)), slice(-(-size // 2), size)):
            yield from self.of(*select_rows((inputs, targets), half))


@dataclass(kw_only=True)
class Evaluation:
    """How to evaluate. ``Evaluation(criterion=..., place=...).of(model, data)`` gives the figures by name."""

    criterion: Any
    place: BatchTransform
    precision: Precision = field(default_factory=Precision)
    metrics: dict[str, Any] | None = None
    batch_size: int = 512
    worker: Worker = SINGLE_WORKER
    bad: SkippedSamples | None = None
    """collects samples that cannot be read, under ``name``; None: the first one is an error"""
    name: str = "evaluation"
    say: Callable[[str], None] = lambda text: None
    """is told of types that only these data have"""

    def of(self, model: torch.nn.Module, data: Any) -> dict[str, float]:
        """Loss, accuracy and metrics of ``model`` on ``data``; its training and eval modes are put back."""
        worker, bad, name = self.worker, self.bad, self.name
        meter, measures = EvalMeter(self.criterion, worker), MetricSet(self.metrics, self.place.device, worker)
        if worker.size > 1:
            broadcast_buffers(model)
        count = len(first_tensor(inputs_and_targets(data)[1])) if in_memory(data) and worker.size == 1 else None
        sharded = is_sharded(model)
        halves = BatchSplitter(lambda inputs, targets: self._outputs(model, inputs, targets), splits=not sharded)
        doing = working("evaluating" if count is None else f"evaluating {count:,} samples", count)
        with eval_mode(model), evaluation(self.precision), doing as advance:
            same = SameBatches(name, worker)
            look = same.add if worker.size > 1 else lambda batch: None
            batches = as_loader(data, self.batch_size, worker.share, bad, name, look)
            for inputs, targets in batches if not sharded else together(batches, data, worker, self.place):
                advance(len(first_tensor(inputs)))
                inputs, targets = self._moved(model, inputs, targets, tries=not sharded)
                for output, shown in halves.of(inputs, self.place.targets(targets)):
                    if shown is not None:
                        measures.add(output, shown)
                        meter.add(output, shown)  # after it: a loss of the user's may work in place on the output
            same.check()
            if bad is not None and bad.limit and worker.size > 1:
                bad.merge(all_gather(dict(bad.found), worker))
            found, nonfinite = measures.read(model, data)
        if nonfinite and bad is not None:
            bad.say_once(name, nonfinite)
        return {**meter.read(), **found}

    def _outputs(self, model: torch.nn.Module, inputs: Any, targets: Any) -> Any:
        return self.precision.to_fp32(model_output(self.criterion, model, self.place.inputs(inputs), targets))

    def _moved(self, model: torch.nn.Module, inputs: Any, targets: Any, *, tries: bool) -> tuple[Any, Any]:
        """A batch on the device; conversions of types that are new are noted."""
        inputs, targets = self.place.move(inputs), self.place.move(targets)
        if targets is not None:
            own = isinstance(self.criterion, ModelLoss)
            for text in self.place.cast.learn(model, inputs, targets, labels=own, tries=tries):
                self.say(f"{self.name}: {text}")
        return inputs, targets


def together(batches: Iterator[Any], data: Any, worker: Worker, place: BatchTransform) -> Iterator[tuple[Any, Any]]:
    """``batches``, then one sample's inputs without targets until every worker is done: all workers must run a sharded model
    equally often."""
    spare = None
    while True:
        batch = next(batches, None)
        if not all_reduce(torch.tensor(float(batch is not None), device=place.device), worker):
            return
        if batch is not None:
            spare = select_rows(batch[0], slice(0, 1))
            yield batch
        else:
            if spare is None:
                spare = select_rows(next(as_loader(data, 1, SINGLE_WORKER.share))[0], slice(0, 1))
            yield spare, None
