"""Put a checkpoint back into a run: what must be the same is compared before anything is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.storage import Damaged
from heptane.core.metrics import TrainMeter
from heptane.core.run import Run
from heptane.data.stream import StreamSource
from heptane.distributed.workers import Worker, launched_workers
from heptane.model.names import clean_state, load_clean
from heptane.model.packing import unpack
from heptane.session.checkpoints.checkpoint import STATE, Saved, fixed
from heptane.session.checkpoints.data import INPUTS, TARGETS
from heptane.session.checkpoints.describe import ANY
from heptane.session.checkpoints.extend import planned_anew
from heptane.session.checkpoints.parts import as_parts, read_parts
from heptane.session.checkpoints.settings import NOTED, SINCE, differences, refusal
from heptane.tricks import Tricks
from heptane.tricks.lr_scaling import LRScaling

OF_LENGTH = ("training samples", "steps per epoch")  # of data without a length these are shares of the planned steps


def as_decided(tricks: Tricks, saved: Saved | None) -> Tricks:
    """``tricks`` with what was measured when the run began in place of "auto": a second one may differ."""
    if saved is None:
        return tricks
    transfer, trick = tricks.transfer, tricks.mixed_precision
    if transfer is not None and transfer.mode == "auto":
        tricks = replace(tricks, transfer=replace(transfer, mode=saved.facts.get("mode") or "auto"))
    if trick is None:
        return tricks
    found = saved.facts["precision"]
    last = ("on" if found["channels_last"] else "off") if trick.channels_last == "auto" else trick.channels_last
    dtype = found["name"] if trick.dtype == "auto" else trick.dtype
    return replace(tricks, mixed_precision=replace(trick, dtype=dtype, channels_last=last))


def followed(tricks: Tricks, saved: Saved | None, batch_size: int | None) -> tuple[Tricks, int | None]:
    """The tricks and the batch with which a run goes on where its workers keep their shares and are not as many as at first:
    the batch in proportion, the rate by the rule of the optimizer's family."""
    parallel = tricks.data_parallel
    if saved is None or batch_size is None or parallel is None or parallel.keep != "share":
        return tricks, batch_size
    first = saved.facts["first"]
    if first["workers"] == launched_workers():
        return tricks, batch_size
    scaling = tricks.lr_scaling or LRScaling(reference_batch=first["batch_size"], warmup_epochs=0)
    return replace(tricks, lr_scaling=scaling), max(1, round(first["batch_size"] * launched_workers() / first["workers"]))


def check(run: Run, saved: Saved) -> None:
    """Compare what a checkpoint was written with, and what ``run`` has; nothing is touched.

    Raises:
        InputError: something differs that must not (``checkpoints/settings.py``): its name, both values, the remedy.
    """
    facts, follows = saved.facts, _follows(run, saved.facts)
    skipped = ("batch_size", "steps per epoch") if follows else OF_LENGTH if isinstance(run.source, StreamSource) else ()
    found = [
        (n, facts["fixed"][n], value) for n, value in fixed(run).items() if n not in skipped and facts["fixed"][n] != value
    ]
    found = [d for d in found if d[0] != "steps per epoch"] or found  # samples or batch say it already
    if facts.get("settings") and not {"optimizer", "parameters per group"} & {name for name, *_ in found}:
        unknown = dict.fromkeys(SINCE, ANY)
        found += differences(
            unknown | facts["settings"], unknown | run.settings
        )  # another optimizer's would be others anyway
    if any(name == "training samples" for name, *_ in found):  # which says it
        found = [d for d in found if d[0] not in (INPUTS, TARGETS)]
    if found:
        raise InputError(f"checkpoint {saved.path} {refusal(found)}")
    step = _step(run, facts)
    if step > run.total_steps:
        raise InputError(f"checkpoint {saved.path} is at step {step}, past this run's {run.total_steps}: raise epochs")


def check_all(run: Run, saved: Saved) -> None:
    """:func:`check`, and the shapes and types of the model's tensors: all that can be refused before anything is written.

    Raises:
        InputError: as :func:`check`; a damaged file is left to :func:`load`.
    """
    check(run, saved)
    try:
        model = unpack(saved.facts["model"], _tensors(saved, run))
    except (InputError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError):
        return
    _check_model(run.model, model, saved.path)


def _follows(run: Run, facts: dict[str, Any]) -> bool:
    """Whether the batch is another because there are other workers, who keep their shares."""
    kept = facts["workers"] == run.worker.size or run.replicas.keep != "share"
    return not kept and bool(facts["fixed"]["batch_size"] != run.source.batch_size)


def _step(run: Run, facts: dict[str, Any]) -> int:
    """The checkpoint's step in steps of this run."""
    if not _follows(run, facts):
        return int(facts["step"])
    return int(facts["step"] * run.source.steps_per_epoch // facts["fixed"]["steps per epoch"])


def _otherwise(run: Run, facts: dict[str, Any], step: int) -> list[str]:
    """What else is to be said of settings when a run is resumed."""
    before = facts.get("settings")
    if not before:
        return ["the checkpoint is of an earlier version, which kept no settings: they could not be compared"]
    if before.get(NOTED) == run.plan.on_nan:
        return []
    return [f"from step {step} on with on_nan={run.plan.on_nan!r}; before with {before.get(NOTED)!r}"]


def load(run: Run, saved: Saved, *, again: bool = False) -> tuple[int, list[dict[str, Any]]]:
    """Put a checkpoint's state into ``run``; return the step it was taken at and the history up to there.

    Args:
        again: ``run`` itself was there before, and its clock goes on.

    Raises:
        InputError: the file is not a checkpoint of this run: another model, optimizer, data size, batch or seed.
    """
    try:
        return _load(run, saved, again)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise InputError(f"checkpoint {saved.path} does not hold what it should ({one_line(error)}): remove it") from error


def _load(run: Run, saved: Saved, again: bool) -> tuple[int, list[dict[str, Any]]]:
    facts, path = saved.facts, saved.path
    tensors = _tensors(saved, run)
    model, optimizer = unpack(facts["model"], tensors), unpack(facts["optimizer"], tensors)
    average = unpack(facts["average"], tensors)
    _check_model(run.model, model, path)
    check(run, saved)
    before, follows, step = facts["workers"], _follows(run, facts), _step(run, facts)
    if run.meta_copy is not None:
        model, optimizer, average = as_parts(run, model, optimizer, average)
    load_clean(run.model, model)
    own = [{key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups]
    run.optimizer.load_state_dict(optimizer)
    if follows:  # Adam's betas and eps go with the batch
        for group, settings in zip(run.optimizer.param_groups, own, strict=True):
            group.update(settings)
    if run.loss is not None:
        kept = unpack(facts.get("loss"), tensors)
        if kept is None:
            raise InputError(f"checkpoint {path} was written without the state of a loss, and this run's loss has one")
        run.loss.load_state_dict(kept)
    if run.average:
        if average is None:
            raise InputError(f"checkpoint {path} was written without average_decay, and this run has {run.average.decay}")
        run.average.load_state(average)
    run.first = facts["first"]
    if not again:
        rate = float(optimizer["param_groups"][-1]["lr"])
        run.notes += planned_anew(run, facts, step, rate) if not follows else []
        run.notes += _otherwise(run, facts, step)
    if facts["precision"]["name"] == run.precision.name:
        run.precision.load_state(facts["precision"]["state"])
    else:  # dtype="auto" measures again, and may decide otherwise on another machine
        run.notes.append(f"from step {facts['step']} on in {run.precision.name}; before in {facts['precision']['name']}")
    if before != run.worker.size:
        how = f"the global batch of {run.source.batch_size} and the learning rate are kept, each worker's share changes"
        if follows:
            how = f"each keeps its share, so the batch is {run.source.batch_size} and the learning rate follows by the rule"
        run.notes.append(f"from step {step} on with {run.worker.size} worker(s), before with {before}: {how}")
    run.skipped = facts["skipped"]
    run.faults.load_state(facts["faults"])
    run.meter.load_state(_own_meter(facts["meters"], run.worker))
    if not again:
        run.clock.carry(facts["seconds"])
    return step, facts["history"]


def _tensors(saved: Saved, run: Run) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors; of one in parts, sharded as ``run`` is."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if STATE in saved.files:
            return dict(load_file(saved.path / STATE))
        return read_parts(saved, run)
    except (SafetensorError, OSError, Damaged) as error:
        raise InputError(f"checkpoint {saved.path} cannot be read ({one_line(error)}): remove it") from None


def _own_meter(meters: list[Any], worker: Worker) -> Any:
    """What this worker had summed up; where they were another number, the first has the sum of all."""
    if len(meters) == worker.size:
        return meters[worker.rank]
    return TrainMeter.merge_states(meters, worker.size) if worker.rank == 0 else None


def _check_model(model: torch.nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Compare before anything is loaded, so that a refusal leaves the model as it was."""
    own = clean_state(model)
    for name in [*own, *saved]:
        there, here = _shape(saved, name), _shape(own, name)
        if there != here:
            raise InputError(
                f"checkpoint {path} is of another model: in the file {name!r} is {there}, in the model {here}: "
                "resume with the same model, or start a new run in another folder"
            )


def _shape(state: dict[str, Any], name: str) -> str:
    if name not in state:
        return "absent"
    value = state[name]
    return f"of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, torch.Tensor) else "no tensor"
