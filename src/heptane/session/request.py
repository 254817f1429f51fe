"""What one call of :func:`heptane.fit` asks for, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.core.custom_metrics import flatten_metrics
from heptane.core.fit_options import Extras, Plan
from heptane.data.cast import to_tensors
from heptane.session.checkpoints.manager import Interval
from heptane.session.history import check_target
from heptane.tricks import Tricks, check_tricks

if TYPE_CHECKING:
    from heptane.base.lazy import torch


@dataclass
class Request:
    """A training run to be done: what to train on what, how, until when, and where its files go.

    ``about``, ``started`` and ``deadline`` are the command's own: facts for the run's record, and ``time.time()`` from which
    the wall clock counts and at which training stops.

    Raises:
        InputError: a value that is not accepted, or two that contradict each other.
    """

    model: torch.nn.Module
    train: Any
    plan: Plan
    valid: Any = None
    test: Any = None
    metrics: Any = None
    tricks: Any = None
    target: Any = None
    run_dir: Any = None
    resume: bool = False
    progress: Any = False
    about: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        self.train, self.valid, self.test = (to_tensors(data) for data in (self.train, self.valid, self.test))
        self.tricks: Tricks = check_tricks(self.tricks)
        self.metrics = flatten_metrics(self.metrics)
        self.goal = check_target(self.target, self.valid, self.metrics)
        extras = self.extras
        self.save_every = Interval.parse(extras.checkpoint_every)
        if extras.patience is not None and self.valid is None:
            raise InputError(
                f"patience={extras.patience} counts evaluations on validation data, and there is none: pass valid"
            )
        if extras.on_nan == "rewind" and self.run_dir is None:
            raise InputError("on_nan='rewind' goes back to a checkpoint, and there is none: pass run_dir")
        if self.resume and self.run_dir is None:
            raise InputError("resume=True goes on from a run_dir, and there is none: pass run_dir")

    @property
    def extras(self) -> Extras:
        """The options beside the everyday ones."""
        return self.plan.extras

    def facts(self) -> dict[str, Any]:
        """What must be the same on all workers, beside the plan and the tricks."""
        extras = self.extras
        named = sorted(self.metrics or {}), self.valid is not None, self.test is not None, self.run_dir is not None
        when = extras.evaluate_every_epochs, extras.checkpoint_every, extras.keep_checkpoints, extras.max_seconds
        return {
            "goal": self.goal,
            "weights": extras.weights,
            "metrics, valid, test, run_dir": named,
            "when": (*when, extras.patience),
        }
