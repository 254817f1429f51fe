"""What comes of a run: a record per evaluation while it goes, the target, and the result."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

from heptane import checkpoint
from heptane._lazy import torch
from heptane.assemble import Run, named_settings
from heptane.clock import Clock
from heptane.data.batches import in_memory
from heptane.data.guard import DataError
from heptane.errors import InputError, Interrupted, check_choice, check_range
from heptane.faults import REMEDY, Rewind
from heptane.interruption import Interruption
from heptane.keeper import Keeper
from heptane.loop import Step, evaluate_with, steps
from heptane.report.console import Progress
from heptane.run_folder import RunFolder
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import all_sum, any_of, check_replicas

SHOW_SECONDS = 0.25
DIVERGED = 0.5  # of what the training loss has come down: where it has gone up by so much, and doubled, it is said
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
        keeper: Keeper,
        interruption: Interruption,
        max_seconds: float | None = None,
    ) -> None:
        self.run, self.valid, self.metrics, self.goal, self.folder = run, valid, metrics, goal, folder
        self.keeper, self.interruption, self.max_seconds = keeper, interruption, max_seconds
        self.every_steps = max(1, round(every_epochs * run.source.steps_per_epoch))
        self.history: list[dict[str, Any]] = []
        self.reached: float | None = None
        self.evaluate_seconds = 0.0
        self.progress: Progress | None = None
        if progress and run.worker.rank == 0:
            self.progress = Progress(run.total_steps) if progress is True else progress
        self._at: int | None = None
        self._ended = False
        self._shown_at, self._began_at, self._began_seconds, self._told = -math.inf, 0, 0.0, 0
        self._diverged = False

    def go(self, saved: checkpoint.Saved | None) -> None:
        """Train to the end or the target, from a checkpoint where there is one.

        Raises:
            Interrupted: a signal came, and the run is saved.
            FloatingPointError: numbers stopped being finite.
        """
        run, start = self.run, 0
        if saved is not None:
            start = self._take_up(*checkpoint.load(run, saved))
        self._told = len(run.faults.messages)
        if run.faults.on_nan == "rewind" and saved is None:
            self._save(0, wait=True)
        with self.progress or nullcontext():
            while True:
                self._began_at, self._began_seconds = start, run.clock.train_seconds
                _switch(run.optimizer, "train")
                try:
                    with self.interruption.waiting():
                        self._train(start)
                    break
                except Rewind as back:
                    start = self._go_back(back.step)
                except DataError as error:
                    raise self._after_saving(error) from error
                finally:
                    run.clock.pause()
                    self._tell()
        self.keeper.wait()
        self._tell()
        _switch(run.optimizer, "eval")  # the weights that were evaluated are those that are kept
        self._ended = True
        if run.average:
            run.average.take_over()
        if run.worker.size > 1:
            check_replicas(run.model)

    def _train(self, start: int) -> None:
        run = self.run
        if self.reached is not None:
            return
        if start and self._planned(start) and (not self.history or self.history[-1]["step"] < start):
            self._record(start)  # what a signal had cut short
        for event in steps(run, start) if self.reached is None else ():
            self._at = event.step
            self._show(event)
            self._tell()
            stop, due = self._asked(event.step)
            if stop:
                self._leave(event.step)
            out_of_time = self._out_of_time(self._planned(event.step))
            if out_of_time or self._planned(event.step):
                self._record(event.step)
                ends = out_of_time or self.reached is not None or event.step == run.total_steps
                if due or ends or self._best_step() == event.step or self.keeper.every is None:
                    self._save(event.step, wait=ends)
                if ends:
                    return
            elif due:
                self._save(event.step)

    def _asked(self, step: int) -> tuple[bool, bool]:
        """Whether a signal asks some worker to stop, and whether it is time to save: all workers do the same."""
        if self.keeper.folder is None:
            return False, False
        flags = [bool(self.interruption.asked), self.keeper.due(step)]
        with self.run.heartbeat.at(step, "after step"):
            stop, due = any_of(flags, self.run.worker)
        return stop, due

    def _save(self, step: int, *, wait: bool = False) -> None:
        with self.run.heartbeat.at(step, "to save step"):
            self.keeper.save(step, self.history, self._best_step(), wait=wait)

    def _after_saving(self, error: DataError) -> DataError:
        """What to say of data that went bad: what was trained until then is saved first. Several workers would have to agree
        on that; of them the last checkpoint stays."""
        if self.keeper.folder is None or self.run.worker.size > 1 or self._at is None or self._at == self.keeper.saved:
            return error
        self.run.meter.discard()
        self._save(self._at, wait=True)
        return error if self.keeper.failed else DataError(f"{error}; saved at step {self._at}, from where resume goes on")

    def _planned(self, step: int) -> bool:
        return step % self.every_steps == 0 or step == self.run.total_steps

    def _take_up(self, step: int, history: list[dict[str, Any]]) -> int:
        """Go on from ``step`` with this history."""
        self.history = history
        self.reached = self._reached_in_history()
        self.evaluate_seconds = history[-1]["evaluate_seconds"] if history else 0.0
        return step

    def _go_back(self, step: int) -> int:
        """To the last checkpoint, since ``step`` came out wrong; where to go on."""
        run = self.run
        self.keeper.wait()
        saved, _ = checkpoint.find(self.keeper.folder, run.worker) if self.keeper.folder else (None, [])
        if saved is None:
            raise FloatingPointError(f"{run.faults.messages[-1]}, but there is no checkpoint: {REMEDY}")
        before = run.faults.state()
        start = self._take_up(*checkpoint.load(run, saved, again=True))
        run.faults.gone_back(step, before)
        return start

    def _leave(self, step: int) -> NoReturn:
        """Save, and stop for a signal."""
        self._save(step, wait=True)
        kept = self.keeper.saved
        where = (
            f"saved at step {step}" if not self.keeper.failed else f"step {step} could not be saved ({self.keeper.failed})"
        )
        if self.keeper.failed and kept is not None:
            where += f", step {kept} was"
        if self.folder:
            self.folder.event("interrupted", {"step": step, "signal": self.interruption.asked, "saved": kept})
        raise Interrupted(f"{self.interruption.asked or 'another worker'}: {where}")

    def _tell(self) -> None:
        """Show and record what went wrong since the last look."""
        messages = self.run.faults.messages
        while self._told < len(messages):
            if self.progress:
                self.progress.note(f"note: {messages[self._told]}")
            if self.folder:
                self.folder.event("fault", {"message": messages[self._told]})
            self._told += 1

    def result(self, tricks: Tricks, test: Any) -> Result:
        """The result; the test set is read here, once."""
        run = self.run
        last = self.history[-1] if self.history else {}
        metrics = {key: value for key, value in last.items() if key.startswith("valid_")}
        if test is not None:
            try:
                metrics |= {f"test_{key}": value for key, value in self._evaluate(test, "test").items()}
            except Interrupted as error:
                raise Interrupted(f"{error}: saved at step {run.total_steps if not last else last['step']}") from None
        done = int(last.get("step", 0))
        applied = run.faults.applied(done)
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
                "nonfinite": run.meter.nonfinite + done - applied,
            },
            schedule={
                "step": list(shown),
                "learning_rate": [run.base_rates[-1] * run.rates.learning_rate(step) for step in shown],
                "momentum": [momentum(step) for step in shown] if momentum else None,
            },
            tricks=tricks,
            why=run.why,
            notes=[*run.notes, *run.faults.messages],
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

    def _record(self, step: int) -> None:
        """Evaluate after ``step``, and add a record to the history."""
        run = self.run
        epoch = step / run.source.steps_per_epoch
        record: dict[str, Any] = {"epoch": int(epoch) if epoch == int(epoch) else round(epoch, 3), "step": step}
        record |= run.meter.read()
        check_replicas(run.model)
        if self.valid is not None:
            record |= {f"valid_{key}": value for key, value in self._validate(step).items()}
        run.meter.reset()
        learning_rate = float(run.optimizer.param_groups[-1]["lr"])
        record |= {"learning_rate": learning_rate, "train_seconds": run.clock.train_seconds}
        record["evaluate_seconds"] = self.evaluate_seconds
        self._notice_divergence(record)
        self.history.append(record)
        if self.progress:
            self.progress.epoch_line(record)
        self.reached = self._reached_in_history()
        if self.folder:
            self.folder.event("epoch", record)

    def _validate(self, step: int) -> dict[str, float]:
        """On ``valid``; a signal does not wait for it, and the checkpoint is one that evaluates first. Several workers, who
        would have to agree on that, end the evaluation."""
        try:
            with self.interruption.at_once() if self.run.worker.size == 1 else nullcontext():
                return self._evaluate(self.valid, "validation")
        except Interrupted:
            _switch(self.run.optimizer, "train")
            self._leave(step)
        finally:
            _switch(self.run.optimizer, "train")

    def _notice_divergence(self, record: dict[str, Any]) -> None:
        """Say once when the training loss is far above what it was."""
        losses = [(r["train_loss"], r["epoch"]) for r in self.history if math.isfinite(r.get("train_loss", math.nan))]
        if not losses or self._diverged:
            return
        (best, when), now = min(losses), record["train_loss"]
        if now > best + max(abs(best), DIVERGED * (losses[0][0] - best)) or not math.isfinite(now):
            self._diverged = True
            self.run.faults.say(
                f"diverging: the training loss is {now:.3g} at epoch {record['epoch']}, after {best:.3g} at epoch {when}: "
                f"lower the learning rate ({record['learning_rate']:.3g} here)"
            )

    def _best_step(self) -> int | None:
        """The step of the best evaluation so far."""
        metric = self.goal[0] if self.goal else "valid_accuracy"
        metric = metric if any(metric in record for record in self.history) else "valid_loss"
        known = [r for r in self.history if math.isfinite(r.get(metric, math.nan))]
        sign = -1 if _lower_is_better(metric) else 1
        best = max(known, key=lambda record: sign * record[metric], default=None)
        return None if best is None else int(best["step"])

    def _reached_in_history(self) -> float | None:
        reached = (r["train_seconds"] for r in self.history if self.goal and _reaches(self.goal, r))
        return next(reached, None)

    def _evaluate(self, data: Any, name: str) -> dict[str, float]:
        clock = Clock()
        clock.resume()
        _switch(self.run.optimizer, "eval")
        averaged = self.run.average.in_place() if self.run.average and not self._ended else nullcontext()
        model, shown, metrics = self.run.model, data, self.metrics
        if self.run.shortcut and data is self.valid and in_memory(data):
            model, shown, metrics = self.run.shortcut.tail, self.run.shortcut.of(data), bound(metrics, model, data)
        with averaged, self.run.heartbeat.at(self.history[-1]["step"] if self.history else 0, "to evaluate after step"):
            found = evaluate_with(
                model,
                shown,
                self.run.criterion,
                precision=self.run.precision,
                metrics=metrics,
                place=self.run.place,
                worker=self.run.worker,
                bad=self.run.faults.bad,
                name=name,
            )
        self.evaluate_seconds += clock.train_seconds
        return found


def bound(metrics: dict[str, Any] | None, model: torch.nn.Module, data: Any) -> dict[str, Any]:
    """Metrics that are functions look at the whole model and the data themselves, also where only its tail is run."""
    return {
        name: metric if hasattr(metric, "update") else lambda _, __, metric=metric: metric(model, data)
        for name, metric in (metrics or {}).items()
    }


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
    return bool(record[metric] <= value if _lower_is_better(metric) else record[metric] >= value)


def _lower_is_better(metric: str) -> bool:
    return any(word in metric for word in LOWER_IS_BETTER)


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
