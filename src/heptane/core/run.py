"""A run: everything the loop works on, filled in by ``assemble``; and the phases of it in which other parameters train."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from heptane.base.clock import Clock
from heptane.base.events import Events
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor
from heptane.core.fit_options import Plan
from heptane.core.losses import Criterion
from heptane.core.metrics import TrainMeter
from heptane.core.nonfinite import Faults
from heptane.core.precision.step import Precision
from heptane.core.schedule import Rates, base_rates
from heptane.data.batches import Batch, BatchTransform, Source
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.distributed.heartbeat import Heartbeat
from heptane.distributed.replicas import check_replicas
from heptane.distributed.workers import Worker
from heptane.model.averaging import Average
from heptane.model.buffers import BufferSnapshot
from heptane.model.forward import compiled


class BatchMixer:
    """The slot that mixup fills: what the model is given of a batch. By itself it gives batches as they are."""

    blends = False
    """whether samples are blended at all"""
    layer: str | None = None
    """the module whose output is blended; None for the inputs"""

    def take(self, batch: Batch, part: slice, step: int) -> tuple[Any, Any]:
        """Inputs and targets of ``part`` of the global batch."""
        return batch.take(part)

    def targets(self, batch: Batch, step: int) -> Any:
        """The targets of the whole global batch."""
        return batch.targets()


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with the same parameters trainable; ``frozen`` counts groups, None leaves the user's choice."""

    start: int
    stop: int
    frozen: int | None = None


class Features(Protocol):
    """What the frozen part of a model gives, computed once, and the part after it that trains on that."""

    @property
    def tail(self) -> torch.nn.Module: ...
    @property
    def source(self) -> Source: ...
    def of(self, data: Any) -> tuple[Any, Any]:
        """Features and targets of other data in memory."""


class Stages(Protocol):
    """The slot that transfer fills: what of the model trains in a phase."""

    @property
    def mode(self) -> str | None:
        """What trains, by the name that transfer gives it; for the records."""

    def settle(self, run: Run, phase: Phase) -> Features | None:
        """Freeze what ``phase`` freezes and set the modes; features, where the frozen part can be computed once."""

    def phases(self, model: torch.nn.Module, total_steps: int, steps_per_epoch: int) -> list[Phase]:
        """The phases of a run, in order."""

    def as_in_last(self, model: torch.nn.Module, phases: list[Phase]) -> AbstractContextManager[None]:
        """While it lasts, what is frozen in the last phase is frozen; then again what is in the first."""

    def modes(self, model: torch.nn.Module) -> None:
        """Train mode, and eval mode for what is frozen."""

    def leave(self, model: torch.nn.Module) -> None:
        """Make it an ordinary model again."""


class Replicas(Protocol):
    """The slot that data parallel fills: how the workers' copies of the model work together."""

    @property
    def shards(self) -> bool: ...
    @property
    def find_unused(self) -> bool: ...
    @property
    def timeout_seconds(self) -> float: ...
    @property
    def keep(self) -> str: ...
    @property
    def bucket_mib(self) -> float: ...
    def wrap(self, model: torch.nn.Module, *, find_unused: bool = False) -> torch.nn.Module:
        """The module that the loop calls."""


@dataclass
class Run:
    """Everything the loop works on: the slots, filled."""

    plan: Plan
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    place: BatchTransform
    rates: Rates
    mix: BatchMixer
    criterion: Criterion
    precision: Precision
    phases: list[Phase]
    clock: Clock
    worker: Worker
    replicas: Replicas
    find_unused: bool
    events: Events
    why: dict[str, str]
    bad: SkippedSamples
    stages: Stages
    meta_copy: torch.nn.Module | None = None
    """a sharded model's, to gather it in"""
    sample: Any = None
    """inputs that the model was tried on"""
    least_samples: int = 1
    """that a batch must have over all workers: 2 for each where BatchNorm sees one value per sample"""
    loss: torch.nn.Module | None = None
    """the user's loss, where it is a module that holds something"""
    of_loss: list[torch.nn.Parameter] = field(default_factory=list)
    """its parameters that train"""
    apart: list[torch.nn.Parameter] = field(default_factory=list)
    """those whose gradients nobody else averages over the workers: the loss's, and of a sharded model those that are not"""
    written: list[str] = field(default_factory=list)
    """names of the parameters that a forward pass writes to by itself"""
    skipped: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """what it is begun with, for its checkpoints: :mod:`heptane.session.checkpoints.settings`"""
    at_once: int | None = None
    """samples that are evaluated at once; None until the first evaluation"""
    base_rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.first = {"workers": self.worker.size, "batch_size": self.source.batch_size}  # of the run, before any resume
        self.accumulate = self.plan.accumulate
        self.faults = Faults(self.plan.extras.on_nan, self.plan.extras.nan_limit, self.events, bad=self.bad)
        self.heartbeat = Heartbeat(self.worker, self.replicas.timeout_seconds)
        self.meter = TrainMeter(self.criterion, self.worker)
        self.base_rates = base_rates(self.optimizer)
        mine = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        # In the model's order, whatever the groups: a norm is a sum, and its last bit depends on the order.
        decay = self.plan.extras.average_decay
        self.average = Average(self.model, decay, self.of_loss) if decay is not None else None
        both = self.model if self.loss is None else torch.nn.ModuleList([self.model, self.loss])
        self.buffers = BufferSnapshot(both, [p for name, p in both.named_parameters() if name in self.written])
        self.trained: torch.nn.Module = self.model
        self.feature_cache: Features | None = None
        self.parameters = [mine.pop(id(p)) for p in self.model.parameters() if id(p) in mine] + list(mine.values())

    @property
    def notes(self) -> list[str]:
        """What the user should know of how the run was put together."""
        return self.events.notes

    def gathered(self) -> torch.nn.Module:
        """The model as an ordinary one: itself, or, where it is sharded, its parts together; then all workers must ask."""
        whole = self.model
        if self.meta_copy is not None:
            from heptane.distributed.sharding import gather_model

            whole = gather_model(self.model, self.meta_copy)
        self.stages.leave(whole)
        return whole

    @property
    def total_steps(self) -> int:
        """Planned optimizer steps."""
        return self.phases[-1].stop

    def phase_before(self, step: int) -> Phase:
        """The one in which the model became what it is after ``step`` steps, 1 or more."""
        return next(phase for phase in self.phases if phase.stop >= step)

    def settle(self, phase: Phase) -> None:
        """Freeze what this phase freezes, set the modes, and see whether the frozen part can be computed once."""
        self.feature_cache = self.stages.settle(self, phase)

    def enter(self, phase: Phase) -> tuple[torch.nn.Module, Source]:
        """Settle in ``phase``, and wrap: the module that the loop calls, and its batches.

        Where the frozen part was computed once, these are the model's tail, and features.
        """
        self.settle(phase)
        self.trained, source = (
            (self.feature_cache.tail, self.feature_cache.source) if self.feature_cache else (self.model, self.source)
        )
        shown = source.sample(1)[0] if self.feature_cache else self.sample  # a loader would read a whole batch for it
        self.sample_shape = tuple(first_tensor(shown).shape[1:])
        wrapped = self.trained
        if self.worker.size > 1:
            check_replicas(self.model)
            wrapped = self.replicas.wrap(self.trained, find_unused=self.find_unused)
        return compiled(wrapped, self.plan.extras.compile), source
