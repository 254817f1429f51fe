"""One run of one arm with one seed: what came of it, also when it failed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from heptane._lazy import torch
from heptane.data.batches import as_source
from heptane.errors import InputError, one_line
from heptane.fit import fit
from heptane.history import lower_is_better
from heptane.race.arms import Arm
from heptane.result import Result
from heptane.run import OptimizerFactory

REACHED, MISSED, STOPPED, FAILED, REFUSED, NOT_RUN = "reached", "missed", "stopped", "failed", "refused", "not run"
DRAWN = 60  # points of a schedule that are kept
DONE = "done"  # of a race for accuracy: it trained for its time


@dataclass
class Attempt:
    """What came of one run.

    ``seconds`` is the training clock at the target, None where the target was not reached: then the run counts as
    infinitely long, and ``clocks["train"]`` says for how long it tried. ``best`` is the best validation value it saw.
    """

    seed: int
    status: str
    seconds: float | None = None
    best: float | None = None
    epochs: float = 0.0
    clocks: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    schedule: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def record(self) -> dict[str, Any]:
        """As ``race.json`` holds it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Attempt:
        """What :meth:`record` gave."""
        return cls(**record)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What all arms of a race share: model, data, and how a run is made of them.

    ``target`` is a metric and a value; None in a race for accuracy, where every run has ``seconds`` of training.
    ``settings`` are further arguments of :func:`heptane.fit`.
    """

    model: Callable[[], Any]
    train: Any
    valid: Any
    test: Any
    optimizer: OptimizerFactory
    metric: str
    target: float | None
    seconds: float | None
    settings: dict[str, Any]

    @property
    def goal(self) -> tuple[str, float] | None:
        """The target as :func:`heptane.fit` takes it."""
        return None if self.target is None else (self.metric, self.target)

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is a loss or an error."""
        return lower_is_better(self.metric)

    def run(
        self,
        arm: Arm,
        seed: int,
        *,
        rate: float,
        epochs: float,
        max_seconds: float | None = None,
        raised: float = 0.0,
        final: bool = True,
        progress: Any = False,
    ) -> Attempt:
        """Train once; what it raises is recorded, but for an interruption.

        Args:
            arm: whose tricks are on.
            seed: of the initial weights, the order and every random draw; the same in all arms.
            rate: factor on every learning rate of the user's optimizer.
            epochs: the planned length: what a cycle is laid out over, and the most a run may take.
            max_seconds: stop after so much training.
            raised: demand so much more than the target (in tuning).
            final: evaluate the test set at the end.
            progress: a display, as :func:`heptane.fit` takes it.
        """
        limit = min(filter(None, (max_seconds, self.seconds)), default=None)
        goal = self.goal
        if goal and raised:
            goal = (goal[0], min(goal[1] + raised, 1.0))
        try:
            torch.manual_seed(seed)
            result = fit(
                self.model(),
                self.train,
                self.valid,
                test=self.test if final else None,
                optimizer=_at_rate(self.optimizer, rate),
                epochs=epochs,
                tricks=arm.tricks,
                target=goal,
                max_seconds=limit,
                seed=seed,
                progress=progress,
                **{"weights": "last", **self.settings},  # a race keeps no weights: it pays for no copy of the best ones
            )
        except InputError as error:
            return Attempt(seed, REFUSED, note=one_line(error))
        except Exception as error:
            return Attempt(seed, FAILED, note=f"{type(error).__name__}: {one_line(error)}")
        finally:
            gc.collect()  # a model in a reference cycle would make the next arm pay for this one's memory
        return self._attempt(result, seed)

    def _attempt(self, result: Result, seed: int) -> Attempt:
        curve = [
            {"seconds": r["train_seconds"], "epoch": r["epoch"], "value": r[self.metric]}
            for r in result.history
            if self.metric in r and math.isfinite(r[self.metric])
        ]
        pick = min if self.lower_is_better else max
        finished = result.steps["applied"] + result.steps["skipped"] >= result.steps["planned"]
        status = DONE if self.target is None else REACHED if result.reached is not None else MISSED if finished else STOPPED
        return Attempt(
            seed,
            status,
            seconds=result.reached,
            best=pick((point["value"] for point in curve), default=None),
            epochs=result.history[-1]["epoch"] if result.history else 0.0,
            clocks=dict(result.seconds),
            metrics=dict(result.metrics),
            steps=dict(result.steps),
            curve=curve,
            schedule={key: values and values[:: max(1, len(values) // DRAWN)] for key, values in result.schedule.items()},
            why=dict(result.why),
        )

    def rank(self, attempt: Attempt) -> tuple[float, float]:
        """Lower is better: sooner at the target; of two that missed it, nearer."""
        best = math.inf if attempt.best is None else attempt.best if self.lower_is_better else -attempt.best
        return (math.inf if attempt.seconds is None else attempt.seconds, best)

    @property
    def margin(self) -> float:
        """What a length of a cycle must reach beyond the target, so that other seeds arrive too: the standard error of an
        accuracy on this many validation samples."""
        if self.target is None or self.metric != "valid_accuracy":
            return 0.0
        targets = self.valid[1] if isinstance(self.valid, (tuple, list)) else getattr(self.valid, "dataset", self.valid)
        return math.sqrt(self.target * (1 - self.target) / max(len(targets), 1))

    def seconds_per_epoch(self, arm: Arm, few: int = 2, more: int = 8) -> tuple[float, float]:
        """Seconds before the first step, and per epoch, from two short runs; their weights are thrown away.

        Returns:
            (seconds before the first step, seconds per epoch).

        Raises:
            InputError: what :func:`heptane.fit` refuses.
            RuntimeError: the arm fails, as its runs will.
        """
        quiet = replace(self, valid=None, target=None, seconds=None)
        length = self.steps_per_epoch
        first, second = (quiet.run(arm, 0, rate=1.0, epochs=min(n, length) / length, final=False) for n in (few, more))
        for attempt in (first, second):
            if attempt.status == REFUSED:
                raise InputError(f"arm {arm.name}: {attempt.note}")
            if attempt.status == FAILED:
                raise RuntimeError(attempt.note)
        steps = second.steps["planned"] - first.steps["planned"]
        per_step = (second.clocks["train"] - first.clocks["train"]) / max(steps, 1)
        if steps < 1 or per_step <= 0:
            per_step = second.clocks["train"] / max(second.steps["planned"], 1)
        before = max(first.clocks["train"] - first.steps["planned"] * per_step, 0.0)
        return before, per_step * length

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""
        return as_source(self.train, self.settings.get("batch_size"), 0, self.settings.get("accumulate", 1)).steps_per_epoch


def _at_rate(optimizer: OptimizerFactory, factor: float) -> OptimizerFactory:
    """The user's factory, with every learning rate multiplied."""

    def build(params: Any) -> Any:
        built = optimizer(params)
        for group in built.param_groups:
            group["lr"] = group["lr"] * factor
        return built

    return optimizer if factor == 1 else build
