"""One run of one arm with one seed: what came of it, also when it failed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.core.fit_options import Plan
from heptane.core.metric_direction import lower_is_better
from heptane.data.sources import as_source
from heptane.race.arms import Arm
from heptane.race.target import IN_A_ROW, Reached, standard_error, when_reached
from heptane.session.history import Goal
from heptane.session.request import Request
from heptane.session.result import Result
from heptane.training import train_as_asked

REACHED, MISSED, STOPPED, FAILED, REFUSED, NOT_RUN = "reached", "missed", "stopped", "failed", "refused", "not run"
DRAWN = 60  # points of a schedule that are kept
PROBE_SECONDS = 4.0  # of training, for a first idea of how long an arm takes
DONE = "done"  # of a race for accuracy: it trained for its time


@dataclass
class Trial:
    """What came of one run.

    ``status`` goes by what happened: ``reached`` the target; ``missed`` it, having trained its whole plan; ``stopped`` by
    the clock before either; ``failed`` with an error; ``refused``, since its settings cannot run; ``not run``; or ``done``,
    in a race for accuracy. ``seconds`` is the training clock at the target, known to within ``between`` seconds where it is
    not interpolated; None where the target was not reached, and ``clocks["train"]`` says for how long it tried. ``best`` is
    the best validation value it saw.
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
    between: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RaceSpec:
    """What all arms of a race share: model, data, and how a run is made of them.

    ``target`` is a metric and a value; None in a race for accuracy, where every run has ``seconds`` of training.
    ``plan`` is what :func:`heptane.fit` takes beside data and tricks.
    """

    model: Callable[[], Any]
    train: Any
    valid: Any
    test: Any
    metrics: dict[str, Any] | None
    plan: Plan
    metric: str
    target: float | None
    seconds: float | None
    lower: bool | None = None
    """whether less of the metric is better; None goes by its name"""

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is a loss or an error."""
        return lower_is_better(self.metric, self.lower)

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
    ) -> Trial:
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
        goal = None
        if self.target is not None:
            value = min(self.target + raised, 1.0) if raised else self.target
            goal = Goal(self.metric, value, IN_A_ROW, self.lower)
        try:
            torch.manual_seed(seed)
            optimizer, extras = _at_rate(self.plan.optimizer, rate), replace(self.plan.extras, max_seconds=limit)
            request = Request(
                self.model(),
                self.train,
                replace(self.plan, optimizer=optimizer, epochs=epochs, seed=seed, extras=extras),
                self.valid,
                test=self.test if final else None,
                metrics=self.metrics,
                tricks=arm.tricks,
                target=goal,
                progress=progress,
            )
            result = train_as_asked(request)
        except InputError as error:
            return Trial(seed, REFUSED, note=one_line(error))
        except Exception as error:
            return Trial(seed, FAILED, note=f"{type(error).__name__}: {one_line(error)}")
        finally:
            gc.collect()  # a model in a reference cycle would make the next arm pay for this one's memory
        return self._attempt(result, seed, goal, limit)

    def _attempt(self, result: Result, seed: int, goal: Goal | None, limit: float | None) -> Trial:
        curve = [
            {"seconds": r["train_seconds"], "epoch": r["epoch"], "value": r[self.metric]}
            for r in result.history
            if self.metric in r and math.isfinite(r[self.metric])
        ]
        pick = min if self.lower_is_better else max
        # Steps, not applied steps: one that is passed over is a step of the plan, and one tried twice is still one.
        whole = bool(result.history) and result.history[-1]["step"] >= result.steps["planned"]
        reached = when_reached(result.history, goal, margin=self.margin, whole=whole) if goal else None
        in_time = limit is None or result.seconds["train"] < limit
        status = DONE if goal is None else REACHED if reached else MISSED if whole or in_time else STOPPED
        reached = reached or Reached(0.0)
        return Trial(
            seed,
            status,
            seconds=reached.seconds if status == REACHED else None,
            between=reached.between,
            best=pick((point["value"] for point in curve), default=None),
            epochs=result.history[-1]["epoch"] if result.history else 0.0,
            clocks=dict(result.seconds),
            metrics=dict(result.metrics),
            steps={**result.steps, "done": int(result.history[-1]["step"]) if result.history else 0},
            curve=curve,
            schedule={key: values and values[:: max(1, len(values) // DRAWN)] for key, values in result.schedule.items()},
            why=dict(result.why),
        )

    def rank(self, attempt: Trial) -> tuple[float, float]:
        """Lower is better: sooner at the target; of two that missed it, nearer."""
        best = math.inf if attempt.best is None else attempt.best if self.lower_is_better else -attempt.best
        return (math.inf if attempt.seconds is None else attempt.seconds, best)

    @property
    def target_facts(self) -> dict[str, Any]:
        """The target as ``race.json`` holds it."""
        facts = {"metric": self.metric, "value": self.target, "seconds": self.seconds}
        return facts if self.lower is None else facts | {"lower": self.lower}

    @property
    def num_valid(self) -> int | None:
        """How many validation samples there are, where that is known."""
        targets = self.valid[1] if isinstance(self.valid, (tuple, list)) else getattr(self.valid, "dataset", self.valid)
        try:
            return len(targets)
        except TypeError:
            return None

    @property
    def margin(self) -> float:
        """The standard error of the target: what the last evaluation of a run must have beyond it, and what a length of a
        cycle must reach beyond it in tuning, so that other seeds arrive too."""
        return 0.0 if self.target is None else standard_error(self.metric, self.target, self.num_valid)

    def seconds_per_epoch(self, arm: Arm, few: int = 2, more: int = 8) -> tuple[float, float]:
        """Seconds before the first step, and per epoch, from short runs; their weights are thrown away.

        A run of ``few`` steps, and one of ``more`` where the first was quick; neither goes on past ``PROBE_SECONDS``.

        Returns:
            (seconds before the first step, seconds per epoch).

        Raises:
            InputError: what :func:`heptane.fit` refuses.
            RuntimeError: the arm fails, as its runs will.
        """
        quiet = replace(self, valid=None, target=None, seconds=None)
        length = as_source(self.train, self.plan.batch_size, 0, self.plan.accumulate).steps_per_epoch
        made: list[Trial] = []
        for steps in (few, more):
            if made and made[0].clocks["train"] * steps / max(made[0].steps["done"], 1) > PROBE_SECONDS:
                break
            share = min(steps, length) / length
            attempt = quiet.run(arm, 0, rate=1.0, epochs=share, max_seconds=PROBE_SECONDS, final=False)
            if attempt.status == REFUSED:
                raise InputError(f"arm {arm.name}: {attempt.note}")
            if attempt.status == FAILED:
                raise RuntimeError(attempt.note)
            made.append(attempt)
        first, last = made[0], made[-1]
        steps = last.steps["done"] - first.steps["done"]
        per_step = (last.clocks["train"] - first.clocks["train"]) / max(steps, 1)
        if steps < 1 or per_step <= 0:
            per_step = last.clocks["train"] / max(last.steps["done"], 1)
        before = max(first.clocks["train"] - first.steps["done"] * per_step, 0.0)
        return before, per_step * length


def _at_rate(optimizer: Any, factor: float) -> Any:
    """The user's factory, with every learning rate multiplied."""

    def build(params: Any) -> Any:
        built = optimizer(params)
        for group in built.param_groups:
            group["lr"] = group["lr"] * factor
        return built

    return optimizer if factor == 1 else build
