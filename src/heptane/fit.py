"""The everyday call: assemble, loop, evaluate, checkpoint, result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from heptane import checkpoint
from heptane._lazy import torch
from heptane.assemble import OptimizerFactory, Run, assemble, check_targets, default_device, named_settings, try_output
from heptane.clock import Clock
from heptane.criterion import Loss, choose_criterion
from heptane.data.augment import Augment
from heptane.data.batches import Place, as_loader, each
from heptane.errors import InputError, check_range
from heptane.loop import Step, evaluate_with, steps
from heptane.report.console import Progress
from heptane.run_folder import RunFolder
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import check_replicas, join_group, launch, this_worker, under_launcher

SHOW_SECONDS = 0.25
LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "perplexity")


@dataclass
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


def train(model: torch.nn.Module, train: Any, *, tricks: Tricks | None = None, **settings: Any) -> Iterator[Step]:
    """The generator under :func:`fit`: yields a :class:`heptane.Step` after each optimizer step; stop whenever you like.

    Args:
        model, train, tricks: as in :func:`fit`.
        settings: ``optimizer``, ``epochs``, ``batch_size``, ``loss``, ``accumulate``, ``clip_norm``, ``augment``,
            ``compile``, ``device`` and ``seed``, as in :func:`fit`.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> for step in hp.train(torch.nn.Linear(4, 2), data, optimizer=sgd, epochs=2, batch_size=32):
        ...     if step.ends_epoch:
        ...         print(step.epoch, step.step)
        1 2
        2 4
    """
    yield from steps(assemble(model, train, tricks=tricks, **settings))


def evaluate(
    model: torch.nn.Module,
    data: Any,
    *,
    loss: str | Loss | None = None,
    metrics: dict[str, Any] | None = None,
    batch_size: int = 512,
) -> dict[str, float]:
    """Loss and accuracy of ``model`` on ``data``, each sample once, with any torchmetrics; the model's mode is put back.

    Args:
        model: any module, on its device.
        data: a pair of tensors, a ``Dataset`` or a ``DataLoader``.
        loss: as in :func:`fit`.
        metrics: torchmetrics by name; each is reset, updated with (outputs, targets) and computed.
        batch_size: samples per forward pass.

    Returns:
        ``loss``, ``accuracy`` where it has a meaning, and the metrics.
    """
    place = Place(next((p.device for p in model.parameters()), torch.device("cpu")))
    first = next(as_loader(data, batch_size, lambda size: slice(0, size)), None)
    if first is None:
        raise InputError("the data to evaluate on is empty: 0 samples")
    few = each(lambda t: t[:2], place.move(first))
    output = try_output(model, few[0])
    criterion, _ = choose_criterion(loss, output, few[1], None)
    check_targets(criterion, output, data[1] if isinstance(data, (tuple, list)) else first[1])
    return evaluate_with(model, data, criterion, metrics=metrics, batch_size=batch_size, place=place)


def fit(
    model: torch.nn.Module,
    train: Any,
    valid: Any = None,
    *,
    optimizer: OptimizerFactory,
    epochs: float,
    batch_size: int | None = None,
    loss: str | Loss | None = None,
    tricks: Tricks | None = None,
    target: float | tuple[str, float] | None = None,
    seed: int = 0,
    run_dir: Any = None,
    resume: bool = False,
    test: Any = None,
    metrics: dict[str, Any] | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    augment: Augment | None = None,
    evaluate_every_epochs: float = 1.0,
    compile: bool = False,
    device: str | None = None,
    progress: bool = False,
    force: bool = False,
    about: dict[str, Any] | None = None,
    started: float | None = None,
) -> Result:
    """Train ``model`` in place with the tricks that are on.

    Args:
        model: any module.
        train, valid, test: tensors, inputs (N, ...) and targets (N, ...), a ``Dataset`` of pairs, or a ``DataLoader``.
            ``valid`` is evaluated as training goes; ``test`` once, at the end.
        optimizer: a factory, ``params -> torch.optim.Optimizer``.
        epochs: passes over ``train``, above 0; a fraction is allowed.
        batch_size: samples per optimizer step over all workers and micro-batches; a ``DataLoader`` brings its own.
        loss: None goes by the targets (integers and distributions: cross-entropy; several labels: binary cross-entropy; real
            numbers: mean squared error); or a name, a ``torch.nn`` loss, or ``function(outputs, targets) -> mean``.
        tricks: the seven; all off by default, which is plain PyTorch, bit for bit.
        target: stop when a validation metric reaches this: an accuracy, or ("valid_loss", 0.3).
        seed: order, augmentation, mixup and dropout are functions of (seed, step). It does not build your model.
        run_dir: a folder for the result, the report, the weights and checkpoints; refused if it holds a run.
        resume: go on from the last checkpoint in ``run_dir``.
        metrics: torchmetrics by name, for the evaluations.
        accumulate: micro-batches per step; the batch is split into so many, or so many batches of a ``DataLoader`` joined.
        clip_norm: largest norm of all gradients together, above 0.
        augment: such as ``hp.CropFlip()``.
        evaluate_every_epochs: how often ``valid`` is evaluated.
        compile: ``torch.compile`` the model; compiling is on the clock.
        device: such as "cpu"; None takes the GPU where there is one.
        progress: show a progress bar, or a line per epoch where there is no terminal.
        force: overwrite a run in ``run_dir``.
        about: facts for the run's record: command, data, model, settings.
        started: ``time.time()`` from which the wall clock counts; None for now.

    Returns:
        A :class:`Result`.

    Raises:
        InputError: input that is wrong, before any training.
        FloatingPointError: the loss stopped being finite.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> result = hp.fit(torch.nn.Linear(4, 2), data, optimizer=torch.optim.AdamW, epochs=1, batch_size=32)
        >>> sorted(result.seconds)
        ['cpu', 'evaluate', 'train', 'wall']
    """
    arguments = dict(locals())
    tricks = tricks or Tricks()
    workers = tricks.data_parallel.resolve()[0] if tricks.data_parallel else 1
    goal = _goal(target, valid)
    check_range("evaluate_every_epochs", evaluate_every_epochs, 0, low_open=True)
    if workers > 1 and not under_launcher():
        result: Result = launch(fit, arguments, workers)
        model.load_state_dict(result.model.state_dict())
        result.model = model
        return result
    if tricks.data_parallel and under_launcher():
        join_group(torch.device(device or default_device()).type)
    clock = Clock(started)
    folder = RunFolder(run_dir, force=force, resume=resume) if run_dir is not None and this_worker().rank == 0 else None
    run = assemble(
        model,
        train,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        loss=loss,
        tricks=tricks,
        accumulate=accumulate,
        clip_norm=clip_norm,
        augment=augment,
        compile=compile,
        device=device,
        seed=seed,
        clock=clock,
    )
    fitting = _Fitting(run, valid, metrics, goal, folder, evaluate_every_epochs, progress)
    fitting.go(checkpoint.latest(RunFolder.checkpoints_of(run_dir)) if resume and run_dir is not None else None)
    result = fitting.result(tricks, test)
    if folder:
        folder.finish(result, run, about or {})
    return result


class _Fitting:
    """One run's loop body: evaluation, history, target, progress, checkpoints; all of it off the training clock."""

    def __init__(
        self,
        run: Run,
        valid: Any,
        metrics: dict[str, Any] | None,
        goal: tuple[str, float] | None,
        folder: RunFolder | None,
        every_epochs: float,
        progress: bool,
    ) -> None:
        self.run, self.valid, self.metrics, self.goal, self.folder = run, valid, metrics, goal, folder
        self.every_steps = max(1, round(every_epochs * run.source.steps_per_epoch))
        self.history: list[dict[str, Any]] = []
        self.reached: float | None = None
        self.evaluate_seconds = 0.0
        shown = progress and run.worker.rank == 0
        self.progress = Progress(run.total_steps) if shown else None
        self._shown_at = 0.0

    def go(self, saved: Any) -> None:
        """Train to the end or the target, from a checkpoint where there is one."""
        run, start = self.run, 0
        if saved is not None:
            start, self.history = checkpoint.load(run, saved)
        with self.progress or nullcontext():
            for event in steps(run, start):
                self._show(event, start)
                if event.step % self.every_steps and event.step != run.total_steps:
                    continue
                self._record(event)
                if self.reached is not None:
                    break
        run.clock.pause()
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
            model=run.model,
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

    def _show(self, event: Step, start: int) -> None:
        now = time.monotonic()
        if self.progress is None or now - self._shown_at < SHOW_SECONDS:
            return
        self._shown_at = now
        averages = event.run.meter.read(everywhere=False)
        rate = (event.step - start) * event.run.source.batch_size / max(event.run.clock.train_seconds, 1e-9)
        accuracy = averages.get("train_accuracy", averages.get("train_accuracy_mixed"))
        self.progress.update(
            event.step, epoch=event.epoch, loss=averages["train_loss"], accuracy=accuracy, images_per_second=rate
        )

    def _record(self, event: Step) -> None:
        run = self.run
        epoch = event.step / run.source.steps_per_epoch
        record: dict[str, Any] = {"epoch": int(epoch) if epoch == int(epoch) else round(epoch, 3), "step": event.step}
        record |= run.meter.read()
        run.meter.reset()
        if self.valid is not None:
            record |= {f"valid_{key}": value for key, value in self._evaluate(self.valid).items()}
        record |= {"learning_rate": event.learning_rate, "train_seconds": run.clock.train_seconds}
        self.history.append(record)
        if self.progress:
            self.progress.epoch_line(record)
        if self.goal and _reaches(self.goal, record):
            self.reached = run.clock.train_seconds
        if self.folder:
            self.folder.event("epoch", record)
            checkpoint.save(run, event.step, self.history, self.folder.checkpoints)

    def _evaluate(self, data: Any) -> dict[str, float]:
        clock = Clock()
        clock.resume()
        _switch(self.run.optimizer, "eval")
        found = evaluate_with(
            self.run.model,
            data,
            self.run.criterion,
            precision=self.run.precision,
            metrics=self.metrics,
            place=self.run.place,
        )
        _switch(self.run.optimizer, "train")
        self.evaluate_seconds += clock.train_seconds
        return found


def _switch(optimizer: Any, mode: str) -> None:
    """Optimizers that keep other weights for training than for evaluation (schedule-free ones) say so by these methods."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def _goal(target: float | tuple[str, float] | None, valid: Any) -> tuple[str, float] | None:
    if target is None:
        return None
    metric, value = target if isinstance(target, (tuple, list)) else ("valid_accuracy", target)
    if not metric.startswith("valid_"):
        raise InputError(f"target metric {metric!r}: expected a validation metric, such as 'valid_accuracy' or 'valid_loss'")
    if valid is None:
        raise InputError(f"target={value!r} is on validation data, and there is none: pass valid")
    if metric == "valid_accuracy":
        check_range("target", value, 0, 1)
    return metric, float(value)


def _reaches(goal: tuple[str, float], record: dict[str, Any]) -> bool:
    metric, value = goal
    if metric not in record:
        known = ", ".join(key for key in record if key.startswith("valid_"))
        raise InputError(f"target metric {metric!r} is not among this run's: {known}")
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
