"""What comes of a run: a record per evaluation while it goes, the target, and the result."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptane import checkpoint
from heptane._lazy import torch
from heptane.assemble import Run, named_settings
from heptane.clock import Clock
from heptane.errors import InputError, check_choice, check_range
from heptane.loop import Step, evaluate_with, steps
from heptane.report.console import Progress
from heptane.run_folder import RunFolder
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import all_sum, check_replicas

SHOW_SECONDS = 0.25
LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "perplexity")


@dataclass(repr=False)
class Result:
    """What came of a run.

    ``history`` has a record per evaluation (per epoch, unless asked otherwise); ``metrics`` are the final ones;
    ``seconds`` are ``wall``, ``train``, ``cpu`` and ``evaluate``; ``reached`` is the training clock when the target was
    reached, in seconds, or None; ``why`` says for each trick what was decided.
    """

    model: torch.nn.Module
    history: list[dict[str, Any]]
    metrics: dict[str, float]
    seconds: dict[str, float]
    reached: float | None
    target: tuple[str, float] | None
    steps: dict[str, int]
    schedule: dict[str, Any]
    tricks: Tricks
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Result(metrics={self.metrics}, seconds={self.seconds}, reached={self.reached}, steps={self.steps})"


class Recorder:
    """One run's loop body: evaluation, history, target, progress, checkpoints; all of it off the training clock."""

    def __init__(
        self,
        run: Run,
        valid: Any,
        metrics: dict[str, Any] | None,
        goal: tuple[str, float] | None,
        folder: RunFolder | None,
        every_epochs: float,
        progress: bool | Progress,
        max_seconds: float | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        self.run, self.valid, self.metrics, self.goal, self.folder = run, valid, metrics, goal, folder
        self.max_seconds = max_seconds
        self.checkpoints = checkpoints if folder is not None or run.outline is not None else None
        self.every_steps = max(1, round(every_epochs * run.source.steps_per_epoch))
        self.history: list[dict[str, Any]] = []
        self.reached: float | None = None
        self.evaluate_seconds = 0.0
        self.progress: Progress | None = None
        if progress and run.worker.rank == 0:
            self.progress = Progress(run.total_steps) if progress is True else progress
        self._shown_at, self._began_at, self._began_seconds = -math.inf, 0, 0.0

    def go(self, saved: Any) -> None:
        """Train to the end or the target, from a checkpoint where there is one."""
        run, start = self.run, 0
        if saved is not None:
            start, self.history = checkpoint.load(run, saved)
            self.reached = self._reached_in_history()
            self.evaluate_seconds = self.history[-1]["evaluate_seconds"] if self.history else 0.0
            if self.reached is not None:
                return
        self._began_at, self._began_seconds = start, run.clock.train_seconds
        _switch(run.optimizer, "train")
        with self.progress or nullcontext():
            for event in steps(run, start):
                self._show(event)
                planned = event.step % self.every_steps == 0 or event.step == run.total_steps
                out_of_time = self._out_of_time(planned)
                if not (planned or out_of_time):
                    continue
                self._record(event)
                if self.reached is not None or out_of_time:
                    break
        run.clock.pause()
        _switch(run.optimizer, "eval")  # the weights that were evaluated are those that are kept
        if run.worker.size > 1:
            check_replicas(run.model)

    def result(self, tricks: Tricks, test: Any) -> Result:
        """The result; the test set is read here, once."""
        run = self.run
        last = self.history[-1] if self.history else {}
        metrics = {key: value for key, value in last.items() if key.startswith("valid_")}
        if test is not None:
            metrics |= {f"test_{key}": value for key, value in self._evaluate(test).items()}
        applied = int(last.get("step", 0))
        shown = range(0, run.total_steps, max(1, run.total_steps // 400))
        momentum = run.rates.momentum
        return Result(
            model=run.gathered(),
            history=self.history,
            metrics=metrics,
            seconds={**run.clock.read(), "evaluate": self.evaluate_seconds},
            reached=self.reached,
            target=self.goal,
            steps={
                "planned": run.total_steps,
                "applied": applied,
                "skipped": run.skipped,
                "nonfinite": run.meter.nonfinite,
            },
            schedule={
                "step": list(shown),
                "learning_rate": [run.base_rates[-1] * run.rates.learning_rate(step) for step in shown],
                "momentum": [momentum(step) for step in shown] if momentum else None,
            },
            tricks=tricks,
            why=run.why,
            notes=run.notes,
        )

    def _out_of_time(self, planned: bool) -> bool:
        """Whether the training clock is past its limit; several workers ask rank 0's, at the planned evaluations only."""
        run = self.run
        if self.max_seconds is None or (run.worker.size > 1 and not planned):
            return False
        late = run.clock.train_seconds >= self.max_seconds
        if run.worker.size == 1:
            return late
        return bool(all_sum(torch.tensor(float(late and run.worker.rank == 0), device=run.place.device), run.worker))

    def _show(self, event: Step) -> None:
        now = time.monotonic()
        if self.progress is None or now - self._shown_at < SHOW_SECONDS:
            return
        self._shown_at = now
        averages = event.run.meter.peek()
        seconds = max(event.run.clock.train_seconds - self._began_seconds, 1e-9)
        rate = (event.step - self._began_at) * event.run.source.batch_size / seconds
        loss = averages["train_loss"] if math.isfinite(averages["train_loss"]) else None
        accuracy = averages.get("train_accuracy", averages.get("train_accuracy_mixed"))
        self.progress.update(event.step, epoch=event.epoch, loss=loss, accuracy=accuracy, images_per_second=rate)

    def _record(self, event: Step) -> None:
        run = self.run
        epoch = event.step / run.source.steps_per_epoch
        record: dict[str, Any] = {"epoch": int(epoch) if epoch == int(epoch) else round(epoch, 3), "step": event.step}
        record |= run.meter.read()
        run.meter.reset()
        check_replicas(run.model)
        if self.valid is not None:
            record |= {f"valid_{key}": value for key, value in self._evaluate(self.valid).items()}
            _switch(run.optimizer, "train")
        record |= {"learning_rate": event.learning_rate, "train_seconds": run.clock.train_seconds}
        record["evaluate_seconds"] = self.evaluate_seconds
        self.history.append(record)
        if self.progress:
            self.progress.epoch_line(record)
        self.reached = self._reached_in_history()
        if self.folder:
            self.folder.event("epoch", record)
        if self.checkpoints:
            checkpoint.save(run, event.step, self.history, self.checkpoints)

    def _reached_in_history(self) -> float | None:
        reached = (r["train_seconds"] for r in self.history if self.goal and _reaches(self.goal, r))
        return next(reached, None)

    def _evaluate(self, data: Any) -> dict[str, float]:
        clock = Clock()
        clock.resume()
        _switch(self.run.optimizer, "eval")
        with self.run.heartbeat.at(self.history[-1]["step"] if self.history else 0, "to evaluate after step"):
            found = evaluate_with(
                self.run.model,
                data,
                self.run.criterion,
                precision=self.run.precision,
                metrics=self.metrics,
                place=self.run.place,
                worker=self.run.worker,
            )
        self.evaluate_seconds += clock.train_seconds
        return found


def _switch(optimizer: Any, mode: str) -> None:
    """Optimizers that keep other weights for training than for evaluation (schedule-free ones) say so by these methods."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def check_target(target: Any, valid: Any, metrics: dict[str, Any] | None) -> tuple[str, float] | None:
    """The metric and the value to stop at; refuse a target that could never be compared."""
    if target is None:
        return None
    pair = tuple(target) if isinstance(target, (tuple, list)) else ("valid_accuracy", target)
    if len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"target={target!r}: expected an accuracy, or a metric and a value, such as ('valid_loss', 0.3)")
    metric, value = pair
    known = ["valid_accuracy", "valid_loss", *(f"valid_{name}" for name in metrics or {})]
    check_choice("target metric", metric, known)
    if valid is None:
        raise InputError(f"target={value!r} is on validation data, and there is none: pass valid")
    check_range(
        "target", value, 0 if metric == "valid_accuracy" else -math.inf, 1 if metric == "valid_accuracy" else math.inf
    )
    return metric, float(value)


def _reaches(goal: tuple[str, float], record: dict[str, Any]) -> bool:
    metric, value = goal
    if metric not in record:
        known = ", ".join(key for key in record if key.startswith("valid_"))
        raise InputError(f"target metric {metric!r} has no meaning here: this run measures {known}")
    lower = any(word in metric for word in LOWER_IS_BETTER)
    return bool(record[metric] <= value if lower else record[metric] >= value)


def trick_rows(result: Result, reasons: dict[str, str]) -> list[dict[str, Any]]:
    """The seven for a record: name, on or off, settings, why."""
    return [
        {
            "name": name,
            "title": name.replace("_", " "),
            "on": bool(settings),
            "settings": settings,
            "why": "; ".join(filter(None, [reasons.get(name, ""), result.why.get(name, "")])),
        }
        for name, settings in named_settings(result.tricks)
    ]
