"""Evaluation: loss, accuracy and metrics of a model on data, each sample once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.base.tree import first_tensor, in_memory, inputs_and_targets, select_rows
from heptane.core.criterion import model_output
from heptane.core.custom_losses import ModelLoss
from heptane.core.custom_metrics import MetricSet
from heptane.core.eval_batch import BatchSplitter
from heptane.core.metrics import EvalMeter
from heptane.core.precision.step import Precision, evaluation
from heptane.data.batches import BatchTransform
from heptane.data.consistency import SameBatches
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.data.sources import as_loader
from heptane.distributed.replicas import broadcast_buffers, is_sharded
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather, all_reduce
from heptane.model.modes import eval_mode


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
