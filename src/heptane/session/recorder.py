"""What a run does between two steps: it evaluates, records, saves and stops, all of it off the training clock."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, NoReturn

from heptane.base.clock import Clock
from heptane.base.errors import DataError, Interrupted
from heptane.base.lazy import torch
from heptane.base.tree import in_memory
from heptane.core.custom_metrics import MetricError, bind_model, takes_model
from heptane.core.evaluation import Evaluation, run_eval_batch_size
from heptane.core.loop import steps
from heptane.core.nonfinite import REMEDY, Rewind
from heptane.core.optimizers import switch_weights
from heptane.core.run import Run
from heptane.distributed.replicas import check_replicas
from heptane.distributed.workers import all_reduce, any_rank, from_rank_zero
from heptane.model.modes import eval_mode
from heptane.report.examination.advice import OUT_OF_TIME
from heptane.session.best import BestWeights
from heptane.session.checkpoints import checkpoint, restore
from heptane.session.checkpoints.manager import CheckpointManager
from heptane.session.history import best_metric, best_step, divergence, reached, since_better
from heptane.session.interruption import Interruption
from heptane.session.listeners import Display
from heptane.session.request import Request
from heptane.session.result import Result, result_of
from heptane.session.run_folder import RunFolder


class Recorder:
    """One run's loop body: evaluation, history, target, checkpoints."""

    def __init__(
        self,
        run: Run,
        request: Request,
        folder: RunFolder | None,
        keeper: CheckpointManager,
        interruption: Interruption,
    ) -> None:
        self.run, self.request, self.folder, self.keeper, self.interruption = run, request, folder, keeper, interruption
        self.valid, self.metrics, self.goal = request.valid, request.metrics, request.goal
        self.every_steps = max(1, round(request.extras.evaluate_every_epochs * run.source.steps_per_epoch))
        self.best = BestWeights(run, request.extras.weights == "best" and self.valid is not None)
        self.patience = request.extras.patience
        self.history: list[dict[str, Any]] = []
        self.reached: float | None = None
        self.evaluate_seconds = 0.0
        self.display = Display(run, request.progress, folder)
        self._at: int | None = None
        self._ended = False
        self._diverged = False

    def go(self, saved: checkpoint.Saved | None) -> None:
        """Train to the end or the target, from a checkpoint where there is one.

        Raises:
            Interrupted: a signal came, and the run is saved.
            FloatingPointError: numbers stopped being finite.
        """
        run, start = self.run, 0
        known = run.events.notes
        if saved is not None:
            start = self._load(saved)
        elif run.faults.on_nan == "rewind":
            self._save(0, wait=True)
        with self.display.shown([text for text in run.events.notes if text not in known]):
            while True:
                self.display.begin(start)
                switch_weights(run.optimizer, "train")
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
            self.keeper.wait()
        switch_weights(run.optimizer, "eval")  # the weights that were evaluated are those that are kept
        self._ended = True
        if run.average:
            run.average.take_over()
        if self._delivered() is not None:
            self.best.put_back()
        if run.worker.size > 1:
            check_replicas(run.model)

    def _train(self, start: int) -> None:
        run = self.run
        if self.reached is not None or self._out_of_patience():
            return
        if start and self._planned(start) and (not self.history or self.history[-1]["step"] < start):
            run.clock.resume()
            run.settle(run.phase_before(start))
            run.clock.pause()
            self._record(start)  # what a signal had cut short
        for event in steps(run, start) if self.reached is None else ():
            self._at = event.step
            self.display.step(event)
            stop, due = self._asked(event.step)
            if stop:
                self._leave(event.step)
            out_of_time = self._out_of_time(self._planned(event.step))
            if out_of_time or self._planned(event.step):
                self._record(event.step)
                ends = out_of_time or self.reached is not None or event.step == run.total_steps or self._out_of_patience()
                if due or ends or best_step(self.history, self.goal) == event.step or self.keeper.every is None:
                    self._save(event.step, wait=ends)
                if ends:
                    return
            elif due:
                self._save(event.step)

    def _out_of_patience(self) -> bool:
        """Whether so many evaluations in a row were no better than the best one."""
        return self.patience is not None and since_better(self.history, self.goal) >= self.patience

    def _asked(self, step: int) -> tuple[bool, bool]:
        """Whether a signal asks some worker to stop, and whether it is time to save: all workers do the same."""
        if self.keeper.folder is None:
            return False, False
        flags = [bool(self.interruption.asked), self.keeper.due(step)]
        with self.run.heartbeat.at(step, "after step"):
            stop, due = any_rank(flags, self.run.worker)
        return stop, due

    def _save(self, step: int, *, wait: bool = False) -> None:
        with self.run.heartbeat.at(step, "to save step"):
            self.keeper.save(step, self.history, best_step(self.history, self.goal), wait=wait)

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

    def _load(self, saved: checkpoint.Saved, *, again: bool = False) -> int:
        """Put a checkpoint into the run; where to go on. The copy of the best weights is made anew from theirs."""
        run, history = self.run, saved.facts["history"]
        step = best_step(history, self.goal)
        self.best.drop()
        if self.best.wanted and step is not None and step != saved.facts["step"]:
            best = checkpoint.find_step(self.keeper.folder, step, run.worker) if self.keeper.folder else None
            if best is None:
                run.events.note(
                    f"the best evaluation so far is of step {step}, whose checkpoint cannot be used: its weights are lost"
                )
            else:
                with run.events.muted():
                    restore.load(run, best, again=True)
                self._keep_best(step)
        start, self.history = restore.load(run, saved, again=again)
        self.reached = reached(self.history, self.goal)
        self.evaluate_seconds = self.history[-1]["evaluate_seconds"] if self.history else 0.0
        if self.best.wanted and step is not None and step == saved.facts["step"]:
            self._keep_best(step)
        return start

    def _keep_best(self, step: int) -> None:
        """Copy the weights as an evaluation of ``step`` sees them."""
        run = self.run
        if not self.best.wanted:
            return
        switches = callable(getattr(run.optimizer, "eval", None))
        # Switching to and fro rounds: the bits are put back, or a resume, which switches once more, would end elsewhere.
        before = [p.detach().clone() for p in run.parameters] if switches else []
        switch_weights(run.optimizer, "eval")
        with run.average.in_place() if run.average else nullcontext():
            self.best.take(step)
        switch_weights(run.optimizer, "train")
        with torch.no_grad():
            for parameter, value in zip(run.parameters, before, strict=False):
                parameter.copy_(value)

    def _delivered(self) -> dict[str, Any] | None:
        """The record of the kept weights, where these are not the last ones."""
        if self.best.step is None or not self.history or self.best.step == self.history[-1]["step"]:
            return None
        return next((record for record in self.history if record["step"] == self.best.step), None)

    def _go_back(self, step: int) -> int:
        """To the last checkpoint, since ``step`` came out wrong; where to go on."""
        run = self.run
        self.keeper.wait()
        saved, _ = checkpoint.find_newest(self.keeper.folder, run.worker) if self.keeper.folder else (None, [])
        if saved is None:
            raise FloatingPointError(f"{run.events.warnings[-1]}, but there is no checkpoint: {REMEDY}")
        before = run.faults.state()
        start = self._load(saved, again=True)
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
        self.run.events.info("interrupted", step=step, signal=self.interruption.asked, saved=kept)
        raise Interrupted(f"{self.interruption.asked or 'another worker'}: {where}")

    def result(self) -> Result:
        """The result; the test set is read here, once."""
        run = self.run
        last = self._delivered() or (self.history[-1] if self.history else {})
        metrics = {key: value for key, value in last.items() if key.startswith("valid_")}
        if self.request.test is not None:
            try:
                metrics |= {f"test_{key}": value for key, value in self._evaluate(self.request.test, "test").items()}
            except Interrupted as error:
                raise Interrupted(f"{error}: saved at step {run.total_steps if not last else last['step']}") from None
        run.events.note(*self._said())
        found = (self.history, metrics, self.goal, self.evaluate_seconds, self.request.tricks)
        return result_of(run, *found, last.get("step"))

    def _said(self) -> list[str]:
        """Why it stopped early, and of which step the weights are where that is not the last."""
        said, metric = [], best_metric(self.history, self.goal)
        if self.reached is None and self._out_of_patience() and self.history[-1]["step"] < self.run.total_steps:
            said.append(
                f"stopped early after step {self.history[-1]['step']} of {self.run.total_steps}: {metric} was not better in "
                f"{since_better(self.history, self.goal)} evaluations (patience={self.patience})"
            )
        elif self.reached is None and self.history and self.history[-1]["step"] < self.run.total_steps:
            last = self.history[-1]
            said.append(f"{OUT_OF_TIME} after step {last['step']} of {self.run.total_steps}, {last['epoch']:g} epochs")
        if record := self._delivered():
            last = self.history[-1]
            said.append(
                f"weights: those of step {record['step']}, the best evaluation ({metric} {record[metric]:.4g}; "
                f"{last.get(metric, float('nan')):.4g} after the last step, {last['step']}); weights='last' keeps the last"
            )
        return said

    def _out_of_time(self, planned: bool) -> bool:
        """Whether the training clock is past its limit, or the wall clock past the deadline; several workers ask rank 0's,
        at the planned evaluations only."""
        run, most, deadline = self.run, self.request.extras.max_seconds, self.request.deadline
        if (most is None and deadline is None) or (run.worker.size > 1 and not planned):
            return False
        late = most is not None and run.clock.train_seconds >= most
        late = late or (deadline is not None and time.time() >= deadline)
        if run.worker.size == 1:
            return late
        return bool(all_reduce(torch.tensor(float(late and run.worker.rank == 0), device=run.place.device), run.worker))

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
        record = from_rank_zero(lambda: record, run.worker)  # target, patience and the best weights are judged by one record
        diverging = divergence(self.history, record)
        if diverging and not self._diverged:
            self._diverged = True
            run.events.warn(diverging)
        self.history.append(record)
        if best_step(self.history, self.goal) == step:
            self._keep_best(step)
        run.events.info("epoch", **record)
        self.reached = reached(self.history, self.goal)

    def _validate(self, step: int) -> dict[str, float]:
        """On ``valid``; a signal does not wait for it, and the checkpoint is one that evaluates first. Several workers, who
        would have to agree on that, end the evaluation."""
        try:
            with self.interruption.at_once() if self.run.worker.size == 1 else nullcontext():
                return self._evaluate(self.valid, "validation")
        except Interrupted:
            switch_weights(self.run.optimizer, "train")
            self._leave(step)
        except Exception as error:
            if self.run.worker.size == 1 or isinstance(error, MetricError):  # what was trained is not lost
                switch_weights(self.run.optimizer, "train")
                self._save(step, wait=True)  # resume evaluates first
            raise
        finally:
            switch_weights(self.run.optimizer, "train")

    def _evaluate(self, data: Any, name: str) -> dict[str, float]:
        clock = Clock()
        clock.resume()
        switch_weights(self.run.optimizer, "eval")
        averaged = self.run.average.in_place() if self.run.average and not self._ended else nullcontext()
        model, shown, metrics = self.run.model, data, self.metrics
        cache = self.run.feature_cache if data is self.valid and in_memory(data) else None
        if cache:
            model, shown, metrics = cache.tail, cache.of(data), bind_model(metrics, model, data)
        beating = self.run.heartbeat.at(self.history[-1]["step"] if self.history else 0, "to evaluate after step")
        with averaged, eval_mode(self.run.model), beating:  # metrics may run the whole model where its tail is evaluated
            functions = [metric for metric in (metrics or {}).values() if not hasattr(metric, "update")]
            if self.run.meta_copy is not None and any(map(takes_model, functions)):
                from heptane.distributed import sharding

                metrics = bind_model(metrics, sharding.gather_model(model, self.run.meta_copy), data)
            found = Evaluation(
                criterion=self.run.criterion,
                place=self.run.place,
                precision=self.run.precision,
                metrics=metrics,
                batch_size=run_eval_batch_size(self.run),
                worker=self.run.worker,
                bad=self.run.faults.bad,
                name=name,
                say=self.run.events.note,
            ).of(model, shown)
        self.evaluate_seconds += clock.train_seconds
        return found
