"""The everyday calls: ``fit``, ``train`` (the generator under it) and ``evaluate``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from heptane.assemble import assemble
from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.randomness import isolated_rng, preserved_rng
from heptane.base.tree import in_memory, inputs_and_targets, select_rows
from heptane.core.checks import TRIED, check_on_device, check_targets, first_batch, labels_of
from heptane.core.criterion import choose_criterion, loss_input
from heptane.core.custom_losses import infer_loss_count
from heptane.core.custom_metrics import flatten_metrics
from heptane.core.evaluation import Evaluation, eval_batch_size
from heptane.core.fit_options import PLAIN, Extras, OptimizerFactory, Plan, accepts_extras
from heptane.core.loop import Step
from heptane.core.loop import steps as steps_of
from heptane.core.losses import Elementwise, Loss
from heptane.data.batches import BatchTransform, TensorSource
from heptane.data.cast import to_tensors
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.model.modes import enable_gradients
from heptane.model.probe import probe_output, two_samples
from heptane.pretrained.freezing import restore_freezing
from heptane.report.console import Progress
from heptane.session.history import Goal
from heptane.session.request import Request
from heptane.session.result import Result
from heptane.training import train_as_asked
from heptane.tricks import Tricks


@accepts_extras(Extras, *PLAIN)
def fit(
    model: torch.nn.Module,
    train: Any,
    valid: Any = None,
    *,
    optimizer: OptimizerFactory | str,
    lr: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    loss: str | Loss | None = None,
    tricks: Tricks | None = None,
    target: float | tuple[str, float] | tuple[str, float, str] | Goal | None = None,
    seed: int = 0,
    test: Any = None,
    metrics: Any = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    run_dir: Any = None,
    resume: bool = False,
    device: str | None = None,
    progress: bool | Progress = False,
    extras: Extras | None = None,
) -> Result:
    """Train ``model`` in place with the tricks that are on.

    Args:
        model: any module.
        train, valid, test: tensors or NumPy arrays, inputs (N, ...) and targets (N, ...), a ``Dataset`` of pairs, or a
            ``DataLoader``. Inputs of a type that the model does not take are converted, batch by batch, with a note:
            numbers to the model's type, images of uint8 or uint16, (N, H, W) or (N, C, H, W), to 0 to 1 (your own
            ``augment`` gets them unconverted). Inputs that are a dict go to the model by keyword, if ``forward`` has these
            names; text in it that ``forward`` does not take is left out; a dict with ``labels`` stands for a pair.
            ``valid`` is evaluated during training; ``test`` once, at the end.
        optimizer: a factory, ``params -> torch.optim.Optimizer``; or the name of a class in ``torch.optim``, such as "adamw"
            or "sgd" (which then has a momentum of 0.9 and a weight decay of 5e-4).
        lr: learning rate of an optimizer given by name, above 0. None: its default for a batch of 128, three times as high
            where it is the peak of a cycle; a note says which.
        epochs: passes over ``train``, above 0; a fraction is allowed. Or pass ``steps``: see :class:`Extras`.
        batch_size: samples per optimizer step over all workers and micro-batches; a ``DataLoader`` brings its own.
        loss: a name, a ``torch.nn`` loss, or ``function(outputs, targets) -> mean``; or "model", the loss that the model
            returns when it gets the targets as ``labels``. None chooses by the targets and notes it (integers and
            distributions: cross-entropy; labels of 0 and 1, one logit for each: binary cross-entropy; real numbers: mean
            squared error); targets that can be read in two ways are refused. The parameters of a loss that is a module are
            trained, saved and resumed too: they follow the model's in what the factory gets.
        tricks: the seven; all off by default, which is plain PyTorch, bit for bit.
        target: stop when a validation metric reaches this: an accuracy, or ("valid_loss", 0.3). Whether less is better is
            the metric's ``higher_is_better``, or known by its name, or given: ("valid_mine", 0.3, "min").
        seed: order, augmentation, mixup and dropout are functions of (seed, step). It does not build your model.
        metrics: by name, for the evaluations: functions ``(predictions, targets) -> number`` of the model's outputs (logits)
            and the targets of all data and workers, on the CPU; torchmetrics and collections of them (anything with
            ``update``, ``compute`` and ``reset``); or functions ``(model, data) -> number``, told by these names, which are
            called once per evaluation with the model in eval mode. All are tried before training.
        accumulate: micro-batches per step; the batch is split into this many, or this many batches of a ``DataLoader`` are
            joined.
        clip_norm: largest norm of all gradients together, above 0.
        run_dir: a folder for the result, the report, the weights and checkpoints; refused if it holds a run.
        resume: continue from the last checkpoint in ``run_dir``.
        device: such as "cpu"; None takes the GPU where there is one.
        progress: show a progress bar, or a line per epoch where there is no terminal; or a display of your own with the
            methods of :class:`heptane.report.console.Progress`.
        extras: everything else: :class:`Extras`. Its ``steps`` and ``augment`` may also be passed by name.

    Returns:
        A :class:`Result`.

    Raises:
        InputError: wrong input, before any training.
        FloatingPointError: gradients or losses are not finite, and the run is to stop; the message says where it began.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1 with a ``run_dir``: the step was finished and saved; resume continues from
            it. A second Ctrl-C stops at once.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> result = hp.fit(torch.nn.Linear(4, 2), data, optimizer=torch.optim.AdamW, epochs=1, batch_size=32)
        >>> sorted(result.seconds)
        ['cpu', 'evaluate', 'train', 'wall']
    """
    plan = Plan(
        optimizer=optimizer,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        loss=loss,
        seed=seed,
        accumulate=accumulate,
        clip_norm=clip_norm,
        device=device,
        extras=extras or Extras(),
    )
    what = {"valid": valid, "test": test, "metrics": metrics, "tricks": tricks, "target": target}
    return train_as_asked(Request(model, train, plan, **what, run_dir=run_dir, resume=resume, progress=progress))


@accepts_extras(Extras, *PLAIN)
def train(
    model: torch.nn.Module,
    train: Any,
    *,
    optimizer: OptimizerFactory | str,
    lr: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    loss: str | Loss | None = None,
    tricks: Tricks | None = None,
    seed: int = 0,
    accumulate: int = 1,
    clip_norm: float | None = None,
    device: str | None = None,
    extras: Extras | None = None,
) -> Iterator[Step]:
    """The generator under :func:`fit`: yields a :class:`heptane.Step` after each optimizer step; stop whenever you like.

    Args:
        model, train: as in :func:`fit`, like all others.
        extras: of these, what is about evaluations, checkpoints and the end of a run has no meaning here.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> for step in hp.train(torch.nn.Linear(4, 2), data, optimizer=sgd, epochs=2, batch_size=32):
        ...     if step.ends_epoch:
        ...         print(step.epoch, step.step)
        1 2
        2 4
    """
    plan = Plan(
        optimizer=optimizer,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        loss=loss,
        seed=seed,
        accumulate=accumulate,
        clip_norm=clip_norm,
        device=device,
        extras=extras or Extras(),
    )
    if plan.extras.on_nan == "rewind":
        raise InputError("on_nan='rewind' needs checkpoints, which fit keeps: use skip or stop here")
    return _steps(model, train, plan, tricks)


def _steps(model: torch.nn.Module, train: Any, plan: Plan, tricks: Tricks | None) -> Iterator[Step]:
    try:
        with preserved_rng(), enable_gradients():
            run = assemble(model, to_tensors(train), plan, tricks)
        yield from isolated_rng(steps_of(run), torch_only=isinstance(run.source, TensorSource))
    finally:
        restore_freezing(model)


def evaluate(
    model: torch.nn.Module,
    data: Any,
    *,
    loss: str | Loss | None = None,
    metrics: Any = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Loss, accuracy and any metrics of ``model`` on ``data``, each sample once; the model's mode is put back.

    Args:
        model: any module, on its device.
        data: a pair of tensors or NumPy arrays, a ``Dataset`` or a ``DataLoader``; types as in :func:`fit`.
        loss: as in :func:`fit`.
        metrics: by name, as in :func:`fit`.
        batch_size: samples per forward pass; None is 512, or fewer where the widest layer's output would take over 128 MiB.

    Returns:
        ``loss``, ``accuracy`` where it has a meaning, and the metrics.
    """
    check_on_device(model)
    place = BatchTransform(next((p.device for p in model.parameters()), torch.device("cpu")))
    with preserved_rng():
        how, data = _evaluation(model, to_tensors(data), loss, batch_size, place)
        how.metrics = flatten_metrics(metrics)
        return how.of(model, data)


def _evaluation(
    model: torch.nn.Module, data: Any, loss: Any, batch_size: int | None, place: BatchTransform
) -> tuple[Evaluation, Any]:
    """How ``data`` are evaluated, tried on their first samples."""
    first = first_batch(data, TRIED if batch_size is None else batch_size, "the data to evaluate on")
    inputs, targets = place.move(first)
    whole = inputs_and_targets(data)[0] if in_memory(data) else None
    place.cast.learn(model, inputs, targets, labels=loss == "model", whole=whole)
    first = place.cast.inputs(inputs), place.cast.targets(targets)
    output = probe_output(model, *two_samples(first, loss))
    batch_size = eval_batch_size(model, first[0], 1) if batch_size is None else batch_size
    targets = place.targets(inputs_and_targets(data)[1]) if in_memory(data) else first[1]
    criterion, _ = choose_criterion(loss, output, targets, None)
    criterion = infer_loss_count(criterion, output, select_rows(first[1], slice(2)))
    output = loss_input(criterion, output)
    check_targets(criterion, output, targets)
    bad = SkippedSamples(
        labels=labels_of(criterion, output, targets),
        binary=isinstance(criterion, Elementwise) and criterion.multi_label,
        say=lambda text: warnings.warn(text, stacklevel=4),
    )
    return Evaluation(criterion=criterion, place=place, batch_size=batch_size, bad=bad), data
