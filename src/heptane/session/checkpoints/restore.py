"""Restore a checkpoint into a run; settings and shapes are compared before anything is changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.storage import Damaged
from heptane.core.fit_options import Plan
from heptane.core.metrics import TrainMeter
from heptane.core.run import Run
from heptane.data.loaders.stream_source import StreamSource
from heptane.distributed.workers import launched_workers
from heptane.model.names import clean_state, load_clean
from heptane.model.serialise import unpack
from heptane.session.checkpoints.checkpoint import STATE, Saved, identity
from heptane.session.checkpoints.describe import ANY, INPUTS, TARGETS
from heptane.session.checkpoints.settings import NOTED, SINCE, differences, refusal
from heptane.session.checkpoints.sharded import read_sharded, shard_states
from heptane.tricks import Tricks
from heptane.tricks.lr_scaling import LRScaling

DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError)  # in altered files
OF_LENGTH = ("training samples", "steps per epoch")  # for data without a length these are shares of the planned steps


def with_recorded_choices(tricks: Tricks, saved: Saved | None) -> Tricks:
    """``tricks`` with the checkpoint's choices instead of "auto", since measuring again may differ."""
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


def scale_batch(tricks: Tricks, saved: Saved | None, plan: Plan) -> tuple[Tricks, Plan]:
    """The tricks and the plan after a change in the number of workers, where each worker keeps its batch.

    The global batch scales in proportion, the learning rate by the optimizer's scaling rule.
    """
    parallel = tricks.data_parallel
    if saved is None or plan.batch_size is None or parallel is None or parallel.keep != "share":
        return tricks, plan
    first = saved.facts["first"]
    if first["workers"] == launched_workers():
        return tricks, plan
    scaling = tricks.lr_scaling or LRScaling(reference_batch=first["batch_size"], warmup_epochs=0)
    batch_size = max(1, round(first["batch_size"] * launched_workers() / first["workers"]))
    return replace(tricks, lr_scaling=scaling), replace(plan, batch_size=batch_size)


def check(run: Run, saved: Saved) -> None:
    """Compare a checkpoint's settings with those of ``run``, without changing anything.

    Raises:
        InputError: a setting differs that must match (see ``checkpoints/settings.py``).
    """
    facts, follows = saved.facts, _follows(run, saved.facts)
    skipped = ("batch_size", "steps per epoch") if follows else OF_LENGTH if isinstance(run.source, StreamSource) else ()
    found = [(n, facts["fixed"][n], value) for n, value in identity(run).items() if n not in skipped]
    found = [(n, before, now) for n, before, now in found if before != now]
    found = [d for d in found if d[0] != "steps per epoch"] or found  # follows from samples or batch size
    if facts.get("settings") and not {"optimizer", "parameters per group"} & {name for name, *_ in found}:
        unknown = dict.fromkeys(SINCE, ANY)
        # those of another optimizer would differ anyway
        found += differences(unknown | facts["settings"], unknown | run.settings)
    if any(name == "training samples" for name, *_ in found):  # implies other checksums
        found = [d for d in found if d[0] not in (INPUTS, TARGETS)]
    if found:
        raise InputError(f"checkpoint {saved.path} {refusal(found)}")
    step = _step(run, facts)
    if step > run.total_steps:
        raise InputError(
            f"checkpoint {saved.path} is at step {step}, but this run has only {run.total_steps} steps: raise epochs"
        )


def check_all(run: Run, saved: Saved) -> None:
    """:func:`check`, and compare the shapes and dtypes of the model's tensors.

    Raises:
        InputError: as :func:`check`; damaged files are left to :func:`load`.
    """
    check(run, saved)
    try:
        model = unpack(saved.facts["model"], read_tensors(saved, run))
    except (InputError, *DAMAGE):
        return
    _check_model(run.model, model, saved.path)


def _follows(run: Run, facts: dict[str, Any]) -> bool:
    """Whether the batch size changed because the number of workers did."""
    kept = facts["workers"] == run.worker.size or run.replicas.keep != "share"
    return not kept and bool(facts["fixed"]["batch_size"] != run.source.batch_size)


def _step(run: Run, facts: dict[str, Any]) -> int:
    """The checkpoint's step, in steps of this run."""
    if not _follows(run, facts):
        return int(facts["step"])
    return int(facts["step"] * run.source.steps_per_epoch // facts["fixed"]["steps per epoch"])


def _otherwise(run: Run, facts: dict[str, Any], step: int) -> list[str]:
    """Notes on changed settings of a resumed run."""
    before = facts.get("settings")
    if not before:
        return ["the checkpoint is from an earlier version without settings: they could not be compared"]
    if before.get(NOTED) == run.plan.extras.on_nan:
        return []
    return [f"on_nan={run.plan.extras.on_nan!r} from step {step} on; before, {before.get(NOTED)!r}"]


def load(run: Run, saved: Saved, *, again: bool = False) -> tuple[int, list[dict[str, Any]]]:
    """Load a checkpoint's state into ``run``; return its step and history.

    Args:
        again: rewind a run of this process, whose clock continues.

    Raises:
        InputError: the checkpoint is of another run, or damaged.
    """
    try:
        return _load(run, saved, again)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"checkpoint {saved.path} is damaged ({one_line(error)}): remove it") from error


def _load(run: Run, saved: Saved, again: bool) -> tuple[int, list[dict[str, Any]]]:
    facts, path = saved.facts, saved.path
    tensors = read_tensors(saved, run)
    model, optimizer = unpack(facts["model"], tensors), unpack(facts["optimizer"], tensors)
    average = unpack(facts["average"], tensors)
    _check_model(run.model, model, path)
    check(run, saved)
    before, follows, step = facts["workers"], _follows(run, facts), _step(run, facts)
    if run.meta_copy is not None:
        model, optimizer, average = shard_states(run, model, optimizer, average)
    load_clean(run.model, model)
    own = [{key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups]
    run.optimizer.load_state_dict(optimizer)
    if follows:  # Adam's betas and eps scale with the batch
        for group, settings in zip(run.optimizer.param_groups, own, strict=True):
            group.update(settings)
    if run.loss is not None:
        kept = unpack(facts.get("loss"), tensors)
        if kept is None:
            raise InputError(
                f"checkpoint {path} has no state of the loss, but this run's loss has state: resume with the same loss"
            )
        run.loss.load_state_dict(kept)
    if run.average:
        if average is None:
            raise InputError(
                f"checkpoint {path} was written without average_decay, but this run has {run.average.decay}: leave it out"
            )
        run.average.load_state(average)
    run.first = facts["first"]
    if not again:
        rate = float(optimizer["param_groups"][-1]["lr"])
        run.events.note(*(describe_new_length(run, facts, step, rate) if not follows else []), *_otherwise(run, facts, step))
    if facts["precision"]["name"] == run.precision.name:
        run.precision.load_state(facts["precision"]["state"])
    else:  # dtype="auto" may choose otherwise on another machine
        run.events.note(f"{run.precision.name} from step {facts['step']} on; before, {facts['precision']['name']}")
    if before != run.worker.size:
        how = f"the global batch size of {run.source.batch_size} and the learning rate stay"
        if follows:
            how = f"the global batch size is now {run.source.batch_size}, and the learning rate is scaled with it"
        run.events.note(f"{run.worker.size} worker(s) from step {step} on; before, {before}: {how}")
    run.skipped = facts["skipped"]
    run.faults.load_state(facts["faults"])
    meters, rank = facts["meters"], run.worker.rank
    if len(meters) != run.worker.size:  # the first worker gets the sum of all
        meters = [TrainMeter.merge_states(meters, run.worker.size), *[None] * (run.worker.size - 1)]
    run.meter.load_state(meters[rank])
    if not again:
        run.clock.carry(facts["seconds"])
    return step, facts["history"]


def read_tensors(saved: Saved, run: Run | None = None) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, sharded as in ``run``; whole if ``run`` is None."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if STATE in saved.files:
            return dict(load_file(saved.path / STATE))
        return read_sharded(saved, run)
    except (SafetensorError, OSError, Damaged) as error:
        raise InputError(f"checkpoint {saved.path} cannot be read ({one_line(error)}): remove it") from None


def _check_model(model: torch.nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Compare shapes before loading, so that a refusal leaves the model unchanged."""
    own = clean_state(model)
    for name in [*own, *saved]:
        there, here = _shape(saved, name), _shape(own, name)
        if there != here:
            raise InputError(
                f"checkpoint {path} is of another model: {name!r} is {there} in the checkpoint, {here} in the model; "
                "resume with the same model, or start a new run in another folder"
            )


def _shape(state: dict[str, Any], name: str) -> str:
    if name not in state:
        return "absent"
    value = state[name]
    return f"of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, torch.Tensor) else "no tensor"


def describe_new_length(run: Run, facts: dict[str, Any], step: int, rate: float) -> list[str]:
    """Notes on a run whose planned number of steps differs from its checkpoint's; none if it is the same.

    From this step on, schedules follow the new length as if it had been planned from the start. So a finished cycle
    continues where a cycle of the new length would be, at a higher learning rate.

    Args:
        run: with its new length.
        facts: the checkpoint's facts.
        step: the checkpoint's step.
        rate: the learning rate of the last parameter group at that step.
    """
    before, now = facts.get("planned"), run.total_steps
    if not isinstance(before, int) or before == now:
        return []
    lengths = f"new length: {_epochs(run, now)} instead of {_epochs(run, before)}"
    if step >= now:
        return [f"{lengths}; all steps are done"]
    next_rate, last_rate = (run.base_rates[-1] * run.rates.learning_rate(at) for at in (step, now - 1))
    cycle, warm_up = run.settings.get("cyclical"), run.settings.get("lr_scaling")
    if next_rate == last_rate == rate:
        change = f"the learning rate stays {rate:.3g}"
    else:
        what = "the cycle" if cycle else "the warm-up" if warm_up else "the schedule"
        ends = f", and ends at {last_rate:.3g}" if next_rate != last_rate else ""
        change = (
            f"{what} now follows the new length: the learning rate goes from "
            f"{rate:.3g} at step {step} to {next_rate:.3g} at step {step + 1}{ends}"
        )
    return [f"{lengths}; {change}", *_images(run, before, step), *_mixup(run, before, step), *_frozen(run, before, step)]


def _epochs(run: Run, total_steps: int) -> str:
    return f"{total_steps / run.source.steps_per_epoch:.4g} epochs ({total_steps} steps)"


def _images(run: Run, before: int, step: int) -> list[str]:
    """A note if images had full size already and are small again."""
    resize = run.plan.extras.resize
    if resize is None or resize.sizes(before)(max(step - 1, 0)) is not None or resize.sizes(run.total_steps)(step) is None:
        return []
    return [f"images are scaled down to {resize.size} pixels again until step {round(resize.until * run.total_steps)}"]


def _mixup(run: Run, before: int, step: int) -> list[str]:
    """A note if mixup was off for the last epochs and is on again."""
    epochs = (run.settings.get("mixup") or {}).get("off_last_epochs", 0)
    off = round(epochs * run.source.steps_per_epoch)
    if not off or step < before - off or step >= run.total_steps - off:
        return []
    return [
        f"mixup is on again until step {run.total_steps - off}: it is off for the last {epochs:g} epochs of the new length"
    ]


def _frozen(run: Run, before: int, step: int) -> list[str]:
    """A note if layer groups trained already and are frozen again."""
    num_groups = len(run.optimizer.param_groups) - bool(run.of_loss)
    phases = run.stages.phases(run.model, before, run.source.steps_per_epoch)
    was = [phase.frozen or 0 for phase in phases if phase.start <= max(step - 1, 0)][-1]
    now = next(phase.frozen or 0 for phase in run.phases if phase.stop > step)
    if now <= was:
        return []
    return [f"{now} of {num_groups} layer groups are frozen again (before: {was}): they unfreeze over the new length"]
