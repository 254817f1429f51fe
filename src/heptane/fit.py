"""The everyday call: assemble, loop, evaluate, checkpoint, result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from heptane.assemble import assemble, default_device
from heptane.base.clock import Clock
from heptane.base.device import find_device
from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch
from heptane.base.progress import progress_shown, redirect_progress, working
from heptane.base.randomness import isolated_rng, preserved_rng
from heptane.base.storage import write_text
from heptane.base.tree import in_memory, inputs_and_targets, select_rows
from heptane.core.checks import TRIED, check_evaluation, check_on_device, check_targets, first_batch, labels_of
from heptane.core.criterion import choose_criterion, loss_input, loss_module
from heptane.core.custom_losses import infer_loss_count
from heptane.core.custom_metrics import flatten_metrics
from heptane.core.eval_batch import eval_batch_size
from heptane.core.loop import Step, evaluate_with
from heptane.core.loop import steps as steps_of
from heptane.core.losses import Elementwise, Loss
from heptane.core.run import OptimizerFactory, Run
from heptane.core.try_metrics import try_metrics
from heptane.data.augment import Augment
from heptane.data.batches import BatchTransform, TensorSource
from heptane.data.cast import to_tensors
from heptane.data.resize import ProgressiveResize
from heptane.data.skipped_samples import SkippedSamples
from heptane.distributed.launch import launch
from heptane.distributed.workers import SINGLE_WORKER, Worker, from_rank_zero, under_launcher
from heptane.model.modes import enable_gradients
from heptane.model.probe import probe_output, two_samples
from heptane.pretrained.freezing import restore_freezing, swap_head
from heptane.report.console import Progress
from heptane.report.examination.examine import Examination, examine
from heptane.session.best import WEIGHTS
from heptane.session.checkpoints import checkpoint, restore
from heptane.session.checkpoints.data_facts import data_facts
from heptane.session.checkpoints.manager import CheckpointManager, Interval
from heptane.session.checkpoints.savable import check_savable
from heptane.session.history import Goal, check_target
from heptane.session.interruption import Interruption
from heptane.session.recorder import Recorder
from heptane.session.result import Result
from heptane.session.run_folder import RunFolder, check_folder, goes_on
from heptane.session.same_settings import check_same_settings
from heptane.tricks import Tricks, check_tricks
from heptane.tricks.data_parallel import DataParallel


def train(model: torch.nn.Module, train: Any, *, tricks: Tricks | None = None, **settings: Any) -> Iterator[Step]:
    """The generator under :func:`fit`: yields a :class:`heptane.Step` after each optimizer step; stop whenever you like.

    Args:
        model, train, tricks: as in :func:`fit`.
        settings: ``optimizer``, ``lr``, ``epochs``, ``steps``, ``batch_size``, ``loss``, ``accumulate``, ``clip_norm``,
            ``augment``, ``resize``, ``compile``, ``device``, ``seed``, ``on_nan``, ``nan_limit``, ``skip_bad`` and
            ``average_decay``, as in :func:`fit`.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> for step in hp.train(torch.nn.Linear(4, 2), data, optimizer=sgd, epochs=2, batch_size=32):
        ...     if step.ends_epoch:
        ...         print(step.epoch, step.step)
        1 2
        2 4
    """
    if settings.get("on_nan") == "rewind":
        raise InputError("on_nan='rewind' needs checkpoints, which fit keeps: use skip or stop here")
    try:
        with preserved_rng(), enable_gradients():
            run = assemble(model, to_tensors(train), tricks=check_tricks(tricks), **settings)
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
    """Loss and accuracy of ``model`` on ``data``, each sample once, with any torchmetrics; the model's mode is put back.

    Args:
        model: any module, on its device.
        data: a pair of tensors or NumPy arrays, a ``Dataset`` or a ``DataLoader``; types as in :func:`fit`.
        loss: as in :func:`fit`.
        metrics: by name, as in :func:`fit`.
        batch_size: samples per forward pass; None is 512, or so many that the widest layer's output takes 128 MiB.

    Returns:
        ``loss``, ``accuracy`` where it has a meaning, and the metrics.
    """
    check_on_device(model)
    place = BatchTransform(next((p.device for p in model.parameters()), torch.device("cpu")))
    with preserved_rng():
        return _evaluate(model, to_tensors(data), loss, metrics, batch_size, place)


def _evaluate(
    model: torch.nn.Module,
    data: Any,
    loss: Any,
    metrics: dict[str, Any] | None,
    batch_size: int | None,
    place: BatchTransform,
) -> dict[str, float]:
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
    binary = isinstance(criterion, Elementwise) and criterion.multi_label
    bad = SkippedSamples(
        labels=labels_of(criterion, output, targets), binary=binary, say=lambda text: warnings.warn(text, stacklevel=3)
    )
    metrics = flatten_metrics(metrics)
    return evaluate_with(model, data, criterion, metrics=metrics, batch_size=batch_size, place=place, bad=bad)


def fit(
    model: torch.nn.Module,
    train: Any,
    valid: Any = None,
    *,
    optimizer: OptimizerFactory | str,
    lr: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    loss: str | Loss | None = None,
    tricks: Tricks | None = None,
    target: float | tuple[str, float] | tuple[str, float, str] | Goal | None = None,
    max_seconds: float | None = None,
    seed: int = 0,
    run_dir: Any = None,
    resume: bool = False,
    test: Any = None,
    metrics: Any = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    augment: Augment | Callable[[Any], Any] | None = None,
    resize: ProgressiveResize | None = None,
    evaluate_every_epochs: float = 1.0,
    compile: bool | str = False,
    device: str | None = None,
    progress: bool | Progress = False,
    force: bool = False,
    checkpoint_every: int | str | None = None,
    keep_checkpoints: int = 2,
    on_nan: str = "skip",
    nan_limit: int = 10,
    skip_bad: int = 0,
    average_decay: float | None = None,
    weights: str = "best",
    patience: int | None = None,
    about: dict[str, Any] | None = None,
    started: float | None = None,
    deadline: float | None = None,
) -> Result:
    """Train ``model`` in place with the tricks that are on.

    Args:
        model: any module.
        train, valid, test: tensors or NumPy arrays, inputs (N, ...) and targets (N, ...), a ``Dataset`` of pairs, or a
            ``DataLoader``. Inputs of a type that the model does not take are converted, batch by batch, and the notes say
            so: numbers to the model's type, images of uint8 or uint16, (N, H, W) or (N, C, H, W), to 0 to 1 (an ``augment``
            of your own is given them as they are). In a dict, text that ``forward`` does not take by name is left out.
            ``valid`` is evaluated as training goes; ``test`` once, at the end. Inputs that are a dict go to the model by
            keyword, if ``forward`` has these names; a dict with ``labels`` in place of a pair is taken apart.
        optimizer: a factory, ``params -> torch.optim.Optimizer``; or the name of a class in ``torch.optim``, such as "adamw"
            or "sgd" (which then has a momentum of 0.9 and a weight decay of 5e-4).
        lr: learning rate of an optimizer that is named, above 0; None is its default for a batch of 128, three times as high
            where it is the peak of a cycle. The notes say which it is.
        epochs: passes over ``train``, above 0; a fraction is allowed.
        steps: optimizer steps, at least 1, in place of ``epochs``. Data without a length, such as an ``IterableDataset``,
            need it; there a tenth of the steps is taken for an epoch.
        batch_size: samples per optimizer step over all workers and micro-batches; a ``DataLoader`` brings its own.
        loss: None goes by the targets (integers and distributions: cross-entropy; labels of 0 and 1, one logit for each:
            binary cross-entropy; real numbers: mean squared error), says so in the notes, and refuses targets that can be
            read in two ways; or a name, a ``torch.nn`` loss, or ``function(outputs, targets) -> mean``; or "model", the loss
            that the model returns when it is given the targets as ``labels``. A loss that is a module with parameters of its
            own has them trained, saved and resumed: they follow the model's in what the factory is given.
        tricks: the seven; all off by default, which is plain PyTorch, bit for bit.
        target: stop when a validation metric reaches this: an accuracy, or ("valid_loss", 0.3). Whether less is better is
            the metric's ``higher_is_better``, or known by its name, or said: ("valid_mine", 0.3, "min").
        max_seconds: stop after so many seconds of training, above 0, with a last evaluation; several workers look at the
            clock only where ``valid`` is evaluated.
        seed: order, augmentation, mixup and dropout are functions of (seed, step). It does not build your model.
        run_dir: a folder for the result, the report, the weights and checkpoints; refused if it holds a run.
        resume: go on from the last checkpoint in ``run_dir``.
        metrics: by name, for the evaluations: functions ``(predictions, targets) -> number`` of the model's outputs (logits)
            and the targets of all the data and workers, on the CPU; torchmetrics and collections of them (anything with
            ``update``, ``compute`` and ``reset``); or functions ``(model, data) -> number``, told by these names, which are
            called once in each with the model in eval mode, such as one that decodes. All are tried before training.
        accumulate: micro-batches per step; the batch is split into so many, or so many batches of a ``DataLoader`` joined.
        clip_norm: largest norm of all gradients together, above 0.
        augment: such as ``hp.CropFlip()``; or a function from a batch of inputs to one, such as torchvision's transforms. It
            is given each global batch as a whole, with the global random generators set by (seed, step).
        resize: smaller images at first, such as ``hp.ProgressiveResize(size=20)``.
        evaluate_every_epochs: how often ``valid`` is evaluated.
        compile: ``torch.compile`` the model; compiling is on the clock. A mode of it may be named: on a GPU
            "reduce-overhead" replays CUDA graphs, which pays where a step is many small kernels.
        device: such as "cpu"; None takes the GPU where there is one.
        progress: show a progress bar, or a line per epoch where there is no terminal; or a display of your own with the
            methods of :class:`heptane.report.console.Progress`.
        force: overwrite a run in ``run_dir``.
        checkpoint_every: how often to save in ``run_dir``: a number of steps, or a time such as "90s" or "5m"; None is at
            each evaluation. The last step and the best evaluation are saved in any case.
        keep_checkpoints: how many of the newest stay, at least 1; the best one stays too.
        on_nan: where gradients are not finite (in fp16: at any loss scale): skip (that step is not applied), stop, rewind
            (back to the last checkpoint, then past that batch; needs ``run_dir``), or ignore: then nobody looks, which saves
            a GPU one wait per step.
        nan_limit: after so many of these steps in a row the run stops, at least 1.
        skip_bad: leave out up to so many samples that a data set fails to give, that are not like the others of their batch,
            or whose label is out of range; they are named in the notes. 0: the first is an error.
        average_decay: evaluate and return an exponential moving average of the weights, a loss's too, with this decay per
            step, in (0, 1), such as 0.999; less at first.
        weights: which the model ends with where there is ``valid``: "best", those of its best evaluation, by the target's
            metric, else the accuracy, else the loss, of equal ones the last; or "last". The result's metrics, and ``test``,
            are of these.
        patience: stop after so many evaluations in a row that were no better than the best before them, at least 1; None
            never stops early. A schedule over the whole run, such as a cycle, is cut short by it.
        about: facts for the run's record: command, data, model, settings, reasons, notes.
        started: ``time.time()`` from which the wall clock counts; None for now.
        deadline: ``time.time()`` from which on it stops as at ``max_seconds``; None: never.

    Returns:
        A :class:`Result`.

    Raises:
        InputError: input that is wrong, before any training.
        FloatingPointError: gradients or losses are not finite, and the run is to stop; the message says where it began.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1 with a ``run_dir``: the step was finished and saved; resume goes on from it.
            A second Ctrl-C stops at once.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> result = hp.fit(torch.nn.Linear(4, 2), data, optimizer=torch.optim.AdamW, epochs=1, batch_size=32)
        >>> sorted(result.seconds)
        ['cpu', 'evaluate', 'train', 'wall']
    """
    train, valid, test = (to_tensors(data) for data in (train, valid, test))
    arguments = dict(locals())
    tricks = check_tricks(tricks)
    metrics = flatten_metrics(metrics)
    goal = check_target(target, valid, metrics)
    check_range("evaluate_every_epochs", evaluate_every_epochs, 0, low_open=True)
    if max_seconds is not None:
        check_range("max_seconds", max_seconds, 0, low_open=True)
    every = Interval.parse(checkpoint_every)
    check_range("keep_checkpoints", keep_checkpoints, 1, whole=True)
    check_choice("weights", weights, WEIGHTS)
    if patience is not None:
        check_range("patience", patience, 1, whole=True)
        if valid is None:
            raise InputError(f"patience={patience} counts evaluations on validation data, and there is none: pass valid")
    if on_nan == "rewind" and run_dir is None:
        raise InputError("on_nan='rewind' goes back to a checkpoint, and there is none: pass run_dir")
    if resume and run_dir is None:
        raise InputError("resume=True goes on from a run_dir, and there is none: pass run_dir")
    worker = _joined(tricks, device)
    named = sorted(metrics or {}), valid is not None, test is not None, run_dir is not None
    when = evaluate_every_epochs, checkpoint_every, keep_checkpoints, max_seconds, patience
    check_same_settings({"goal": goal, "weights": weights, "metrics, valid, test, run_dir": named, "when": when}, worker)
    if run_dir is not None:
        goes = from_rank_zero(lambda: goes_on(check_folder(run_dir, force=force, resume=resume)), worker)
        resume = resume or goes
    workers = tricks.data_parallel.resolve()[0] if tricks.data_parallel else 1
    if workers > 1 and not under_launcher():
        parallel = tricks.data_parallel or DataParallel()
        if parallel.restarts and run_dir is None:
            raise InputError(f"DataParallel.restarts={parallel.restarts} go on from checkpoints: pass run_dir to keep them")
        limits = parallel.restarts, parallel.timeout_seconds
        with redirect_progress(None):  # the first worker shows what goes on
            return _launched(model, launch(fit, arguments, workers, *limits), loss)
    keeps = RunFolder.checkpoints_of(run_dir) if run_dir is not None else None
    with preserved_rng(), enable_gradients(), ExitStack() as stack:
        if progress:
            stack.enter_context(progress_shown())
        interruption = stack.enter_context(Interruption(active=keeps is not None))
        saved, damaged = checkpoint.find_newest(keeps, worker) if resume and keeps else (None, [])
        stack.callback(restore_freezing, model)  # whatever happens, the user has an ordinary model
        asked = restore.with_recorded_choices(tricks, saved)
        scaled, batch_size = restore.scale_batch(asked, saved, batch_size)
        run = assemble(
            model,
            train,
            optimizer=optimizer,
            lr=lr,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            loss=loss,
            tricks=scaled,
            asked=asked,
            accumulate=accumulate,
            clip_norm=clip_norm,
            augment=augment,
            resize=resize,
            compile=compile,
            device=device,
            seed=seed,
            on_nan=on_nan,
            nan_limit=nan_limit,
            skip_bad=skip_bad,
            average_decay=average_decay,
            clock=Clock(started),
            others=[data for data in (valid, test) if data is not None],
        )
        run.notes += damaged
        for name, data in (("valid", valid), ("test", test)):
            if data is not None:
                sharded = run.meta_copy is not None
                said = check_evaluation(run.model, run.criterion, run.place, name, data, run.bad, tries=not sharded)
                run.notes += [text for text in said if text not in run.notes]
                if metrics and not sharded and (name == "valid" or valid is None):
                    try_metrics(run.model, run.criterion, run.place, run.precision, metrics, name, data)
        if run_dir is not None:
            run.settings |= data_facts(train)
        if saved is not None:
            restore.check_all(run, saved)
        if run_dir is not None:
            check_savable(run)
        folder = _claimed(run_dir, force, resume, run.worker) if run_dir is not None else None
        if folder:
            stack.callback(folder.close)
            if about and "settings_toml" in about:
                write_text(folder.path / "settings.toml", about["settings_toml"])
            folder.begin(run, about or {}, tricks, goal)
        keeper = CheckpointManager(run, keeps, every, keep_checkpoints)
        stack.callback(keeper.wait)
        loop = (
            run,
            valid,
            metrics,
            goal,
            folder,
            evaluate_every_epochs,
            progress,
            keeper,
            interruption,
            max_seconds,
            deadline,
        )
        recorder = Recorder(*loop, weights, patience)
        recorder.go(saved)
        result = recorder.result(tricks, test)
        if folder:
            with (
                interruption.waiting(),
                working("looking at mistakes and writing the report"),
            ):  # it takes a moment, and is all there is left to do
                parts = {"valid": valid, "test": test}
                seen = partial(examine, run, result.model, parts, about or {}, interruption)
                _write(folder, result, run, about or {}, keeper, seen)
    return result


def _claimed(run_dir: Any, force: bool, resume: bool, worker: Worker) -> RunFolder | None:
    """The run's folder, on rank 0; refused on all workers where it is refused there."""
    found: list[RunFolder] = []
    from_rank_zero(lambda: found.append(RunFolder(run_dir, force=force, resume=resume)), worker)
    return found[0] if found else None


def _joined(tricks: Tricks, device: str | None) -> Worker:
    """This worker among those that a launcher started."""
    if tricks.data_parallel is None or not under_launcher():
        return SINGLE_WORKER
    return tricks.data_parallel.join(find_device(device or default_device()).type)


def _write(
    folder: RunFolder,
    result: Result,
    run: Run,
    about: dict[str, Any],
    keeper: CheckpointManager,
    examine: Callable[[], Examination],
) -> None:
    """The files of a result. A disk that has no room for them costs the files, and not the result."""
    if folder.unwritten:
        result.notes.append(f"not all of {folder.unwritten} was written")
    try:
        folder.finish(result, run, about, examine)
    except OSError as error:
        where = error.filename2 or error.filename or folder.path
        saved = (
            f"which goes on from step {keeper.saved}" if keeper.failed or keeper.saved is None else "which trains no more"
        )
        result.notes.append(f"cannot write {where} ({error.strerror}): make room, and resume, {saved}")
        warnings.warn(result.notes[-1], stacklevel=3)


def _launched(model: torch.nn.Module, result: Result, loss: Any) -> Result:
    """The result of workers started for this call, in the caller's own model, and loss."""
    from heptane.distributed.state import copy_state  # it needs PyTorch as it is imported

    own = loss_module(loss)
    if own is not None and result.loss_state is not None:
        own.load_state_dict(result.loss_state)
    lazy = torch.nn.parameter.is_lazy
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False) if not lazy(p)}
    for name, parameter in result.model.named_parameters(remove_duplicate=False):
        if name in shapes and shapes[name] != parameter.shape:
            swap_head(model, len(parameter), name.rpartition(".")[0])  # theirs was swapped in their process
    copy_state(result.model, model)
    result.model = model
    return result
