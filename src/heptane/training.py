"""One training run from a request to its result: workers, assembly, loop, evaluation, files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from heptane.assemble import assemble
from heptane.base.clock import Clock
from heptane.base.device import default_device, find_device
from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.progress import progress_shown, redirect_progress, working
from heptane.base.randomness import preserved_rng
from heptane.base.storage import write_text
from heptane.core.checks import check_evaluation
from heptane.core.criterion import loss_module
from heptane.core.run import Run
from heptane.core.try_metrics import try_metrics
from heptane.distributed.launch import launch
from heptane.distributed.workers import SINGLE_WORKER, Worker, from_rank_zero, under_launcher
from heptane.model.modes import enable_gradients
from heptane.pretrained.freezing import restore_freezing, swap_head
from heptane.report.examination.examine import Examination, examine
from heptane.session.checkpoints import checkpoint, restore
from heptane.session.checkpoints.describe import data_facts
from heptane.session.checkpoints.manager import CheckpointManager
from heptane.session.interruption import Interruption
from heptane.session.recorder import Recorder
from heptane.session.request import Request
from heptane.session.result import Result
from heptane.session.run_folder import RunFolder, check_folder, goes_on
from heptane.session.same_settings import check_same_settings
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import DataParallel


def train_as_asked(request: Request) -> Result:
    """Train ``request.model`` in place; starts the workers that the request asks for."""
    tricks = request.tricks
    worker = _joined(tricks, request.plan.device)
    check_same_settings(request.facts(), worker)
    if request.run_dir is not None:
        force, resume = request.extras.force, request.resume
        found = partial(check_folder, request.run_dir, force=force, resume=resume)
        request.resume = from_rank_zero(lambda: goes_on(found()), worker) or resume
    workers = tricks.data_parallel.resolve()[0] if tricks.data_parallel else 1
    if workers > 1 and not under_launcher():
        return _in_workers(request, workers)
    with preserved_rng(), enable_gradients(), ExitStack() as stack:
        if request.progress:
            stack.enter_context(progress_shown())
        return _train(request, worker, stack)


def _joined(tricks: Tricks, device: str | None) -> Worker:
    """This worker among those that a launcher started."""
    if tricks.data_parallel is None or not under_launcher():
        return SINGLE_WORKER
    return tricks.data_parallel.join(find_device(device or default_device()).type)


def _train(request: Request, worker: Worker, stack: ExitStack) -> Result:
    """Assemble, train, evaluate, write; ``stack`` undoes at the end what lasts as long as the run."""
    keeps = RunFolder.checkpoints_of(request.run_dir) if request.run_dir is not None else None
    interruption = stack.enter_context(Interruption(active=keeps is not None))
    saved, damaged = checkpoint.find_newest(keeps, worker) if request.resume and keeps else (None, [])
    stack.callback(restore_freezing, request.model)  # whatever happens, the user has an ordinary model
    run = _assembled(request, saved)
    run.events.note(*damaged)
    _try_evaluations(request, run)
    folder = _opened(request, run, saved, stack)
    manager = CheckpointManager(run, keeps, request.save_every, request.extras.keep_checkpoints)
    stack.callback(manager.wait)
    recorder = Recorder(run, request, folder, manager, interruption)
    recorder.go(saved)
    result = recorder.result()
    if folder:
        with interruption.waiting(), working("looking at mistakes and writing the report"):
            parts = {"valid": request.valid, "test": request.test}
            seen = partial(examine, run, result.model, parts, request.about, interruption)
            _write(folder, result, run, request.about, manager, seen)
    return result


def _assembled(request: Request, saved: checkpoint.Saved | None) -> Run:
    """The run, with what a checkpoint decides in place of what would be measured again."""
    asked = restore.with_recorded_choices(request.tricks, saved)
    tricks, plan = restore.scale_batch(asked, saved, request.plan)
    others = [data for data in (request.valid, request.test) if data is not None]
    clock = Clock(request.started)
    return assemble(request.model, request.train, plan, tricks, clock=clock, others=others, asked=asked)


def _try_evaluations(request: Request, run: Run) -> None:
    """Refuse evaluation data and metrics that would fail after an epoch of training."""
    sharded = run.meta_copy is not None
    for name, data in (("valid", request.valid), ("test", request.test)):
        if data is None:
            continue
        run.events.note(*check_evaluation(run, name, data, tries=not sharded))
        if request.metrics and not sharded and (name == "valid" or request.valid is None):
            try_metrics(run.model, run.criterion, run.place, run.precision, request.metrics, name, data)


def _opened(request: Request, run: Run, saved: checkpoint.Saved | None, stack: ExitStack) -> RunFolder | None:
    """The run's folder, once all checks have passed; None on other ranks, and where none is wanted."""
    if request.run_dir is not None:
        run.settings |= data_facts(request.train)
    if saved is not None:
        restore.check_all(run, saved)
    if request.run_dir is None:
        return None
    checkpoint.check_savable(run)
    made: list[RunFolder] = []
    options = {"force": request.extras.force, "resume": request.resume}
    from_rank_zero(lambda: made.append(RunFolder(request.run_dir, **options)), run.worker)
    if not made:
        return None
    folder = made[0]
    stack.callback(folder.close)
    if "settings_toml" in request.about:
        write_text(folder.path / "settings.toml", request.about["settings_toml"])
    folder.begin(run, request.about, request.tricks, request.goal)
    return folder


def _write(
    folder: RunFolder,
    result: Result,
    run: Run,
    about: dict[str, Any],
    manager: CheckpointManager,
    examine: Callable[[], Examination],
) -> None:
    """The files of a result. A disk without room for them costs the files, and not the result."""
    if folder.unwritten:
        result.notes.append(f"not all of {folder.unwritten} was written")
    try:
        folder.finish(result, run, about, examine)
    except OSError as error:
        where = error.filename2 or error.filename or folder.path
        unsaved = manager.failed or manager.saved is None
        then = "which trains no more" if not unsaved else f"which goes on from step {manager.saved}"
        result.notes.append(f"cannot write {where} ({error.strerror}): make room, and resume, {then}")
        warnings.warn(result.notes[-1], stacklevel=6)  # at the line that calls hp.fit


def _in_workers(request: Request, workers: int) -> Result:
    """Start workers on this machine, and bring their result into this process, in the caller's own model and loss."""
    parallel: DataParallel = request.tricks.data_parallel
    if parallel.restarts and request.run_dir is None:
        raise InputError(f"DataParallel.restarts={parallel.restarts} go on from checkpoints: pass run_dir to keep them")
    with redirect_progress(None):  # the first worker shows what goes on
        result = launch(train_as_asked, {"request": request}, workers, parallel.restarts, parallel.timeout_seconds)
    from heptane.distributed.copy_state import copy_state  # it needs PyTorch as it is imported

    model, own = request.model, loss_module(request.plan.loss)
    if own is not None and result.loss_state is not None:
        own.load_state_dict(result.loss_state)
    lazy = torch.nn.parameter.is_lazy
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False) if not lazy(p)}
    for name, parameter in result.model.named_parameters(remove_duplicate=False):
        if name in shapes and shapes[name] != parameter.shape:
            swap_head(model, len(parameter), name.rpartition(".")[0])  # theirs was swapped in their process
    copy_state(result.model, model)
    result.model = model
    return result  # type: ignore[no-any-return]
