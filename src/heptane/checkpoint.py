"""Save and resume: a folder per checkpoint, safetensors for tensors and JSON for the rest; loading never unpickles.

``checkpoints/step-000000500/`` holds ``facts.json`` and ``state.safetensors`` (of a sharded run, a file per worker), written
aside, synced, renamed, and checked by a checksum: :mod:`heptane.storage`. The format is described in docs/checkpoints.md.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.assemble import Run
from heptane.errors import InputError, one_line
from heptane.metrics import TrainMeter
from heptane.storage import (
    FACTS,
    Damaged,
    check_files,
    checksum,
    read_facts,
    remove,
    replace_file,
    seal,
    sync,
    write_file,
)
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import ALONE, Worker, from_all, launched, share_buffers, this_worker
from heptane.tricks.lr_scaling import LRScaling

FORMAT = 4
SCHEMA = {"step": int, "history": list, "fixed": dict, "workers": int, "first": dict, "model": dict, "optimizer": dict} | {
    "precision": dict, "skipped": int, "faults": dict, "meters": list, "seconds": dict
}  # fmt: skip
RECORDED = ("step", "epoch", "train_seconds", "evaluate_seconds")
STATE = "state.safetensors"
NAME = re.compile(r"step-(\d{9,15})")
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: where it is, what it says, and the checksums of its files."""

    path: Path
    facts: dict[str, Any]
    files: dict[str, list[Any]]


@dataclass(frozen=True)
class Snapshot:
    """A run at a step, on the CPU and independent of the run: what is still to be written."""

    step: int
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save_model(model: torch.nn.Module, path: Path) -> None:
    """The model's parameters and buffers as a safetensors file; a tensor of two names is stored under both."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    replace_file(path, _serialised(_copied(tensors), {"format": "pt"}))


def save(run: Run, step: int, history: list[dict[str, Any]], folder: Path, keep: int = 1) -> Path:
    """Write everything that a run needs to go on from ``step``, and remove older ones but the newest ``keep``.

    All workers must call it.
    """
    path = write(take(run, step, history), folder, run)
    if run.worker.rank == 0:
        prune(folder, keep)
    return path


def take(run: Run, step: int, history: list[dict[str, Any]]) -> Snapshot:
    """Everything that a run needs to go on from ``step``. All workers must call it; if sharded, each holds its parts."""
    import safetensors.torch  # noqa: F401 - not in the thread that writes: a process may be forked while that imports

    if run.outline is not None:
        share_buffers(run.model)  # which worker's copy the library stores is its own choice
    tensors: dict[str, torch.Tensor] = {}
    facts = {
        "format": FORMAT,
        "step": step,
        "history": list(history),
        "fixed": _fixed(run),
        "workers": run.worker.size,
        "first": run.first,
        "model": _pack(run.model.state_dict(), "model", tensors),
        "optimizer": _pack(run.optimizer.state_dict(), "optimizer", tensors),
        "average": _pack(run.average.state() if run.average else None, "average", tensors),
        "precision": {
            "name": run.precision.name,
            "channels_last": run.place.channels_last,
            "state": run.precision.state(),
        },
        "skipped": run.skipped,
        "faults": run.faults.state(),
        "meters": from_all(run.meter.state(), run.worker),
        "seconds": run.clock.read(),
    }
    return Snapshot(step, facts, tensors if run.outline is not None else _copied(tensors))


def write(snapshot: Snapshot, folder: Path, run: Run) -> Path:
    """Write a snapshot as a sealed folder. All workers of a sharded run must call it; of others, the first writes."""
    path = folder / f"step-{snapshot.step:09d}"
    aside, first = folder / f".{path.name}", run.worker.rank == 0
    if run.outline is not None:
        _write_parts(snapshot, aside, path, first)
    elif first:
        try:
            _fresh(aside)
            write_file(aside / STATE, _serialised(snapshot.tensors, {}))
            seal(aside, path, snapshot.facts)
        finally:
            remove(aside)
    return path


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Remove all checkpoints but the newest ``keep`` and that of step ``best``, and what a killed process left."""
    for _, path in _numbered(folder)[keep:]:
        if best is None or path.name != f"step-{best:09d}":
            remove(path)
    for left in folder.glob(".step-*"):
        remove(left)


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in ``folder``, the newest first."""
    return [step for step, _ in _numbered(folder)]


def find(folder: Path, worker: Worker = ALONE) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint in ``folder`` that is whole, or None where there is none, and a note on each that is damaged.

    Of several workers the first looks, and all must call it.

    Raises:
        InputError: there are some, and all are damaged.
    """
    if worker.size == 1:
        return _newest(folder)
    found: list[Any] = [None]
    if worker.rank == 0:
        try:
            found = [_newest(folder)]
        except InputError as error:
            found = [error]
    torch.distributed.broadcast_object_list(found, 0)
    if isinstance(found[0], InputError):
        raise found[0]
    saved, notes = found[0]
    return saved, notes


def _newest(folder: Path) -> tuple[Saved | None, list[str]]:
    notes: list[str] = []
    for _, path in _numbered(folder):
        try:
            return read(path), notes
        except Damaged as error:
            notes.append(f"checkpoint {path} cannot be used ({error}), and the one before it was")
    if notes:
        reason = notes[0].removesuffix(", and the one before it was")
        others = f", nor can {len(notes) - 1} older one(s)" if len(notes) > 1 else ""
        raise InputError(f"{reason}{others}: remove {folder}, and the run starts again")
    return None, notes


def read(path: Path) -> Saved:
    """The checkpoint at ``path``, compared with its checksums.

    Raises:
        Damaged: it is not what was written, or of another version.
    """
    facts, files = read_facts(path)
    _check_facts(facts)
    check_files(path, files)
    return Saved(path, facts, files)


def _check_facts(facts: dict[str, Any]) -> None:
    if facts.get("format") != FORMAT:
        raise Damaged(f"its format is {facts.get('format')}, and this version reads {FORMAT}")
    for name, kind in SCHEMA.items():
        if not isinstance(facts.get(name), kind) or (kind is int and facts[name] < 0):
            raise Damaged(f"{FACTS} has no {name} of type {kind.__name__}")
    for record in facts["history"]:
        numbers = [record.get(name) for name in RECORDED] if isinstance(record, dict) else [None]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise Damaged(f"{FACTS} has a record that is none")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = [(NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def as_decided(tricks: Tricks, saved: Saved | None) -> Tricks:
    """``tricks`` with what was measured when the run began in place of "auto": a second one may differ."""
    trick = tricks.mixed_precision
    if saved is None or trick is None:
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
    if first["workers"] == launched():
        return tricks, batch_size
    scaling = tricks.lr_scaling or LRScaling(reference_batch=first["batch_size"], warmup_epochs=0)
    return replace(tricks, lr_scaling=scaling), max(1, round(first["batch_size"] * launched() / first["workers"]))


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
    model, optimizer = _unpack(facts["model"], tensors), _unpack(facts["optimizer"], tensors)
    average = _unpack(facts["average"], tensors)
    _check_model(run.model, model, path)
    before, follows = facts["workers"], False
    if before != run.worker.size and run.data_parallel.keep == "share":
        follows = facts["fixed"]["batch_size"] != run.source.batch_size
    for name, value in _fixed(run).items():
        if facts["fixed"][name] != value and not (follows and name in ("batch_size", "steps per epoch")):
            raise InputError(f"checkpoint {path} was written with {name} {facts['fixed'][name]}, and this run has {value}")
    step = facts["step"] * run.source.steps_per_epoch // facts["fixed"]["steps per epoch"]  # the same, unless it follows
    if step > run.total_steps:
        raise InputError(f"checkpoint {path} is at step {step}, past this run's {run.total_steps}: raise epochs")
    if run.outline is not None:
        model, optimizer, average = _sharded(run, model, optimizer, average)
    run.model.load_state_dict(model)
    own = [{key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups]
    run.optimizer.load_state_dict(optimizer)
    if follows:  # Adam's betas and eps go with the batch
        for group, settings in zip(run.optimizer.param_groups, own, strict=True):
            group.update(settings)
    if run.average:
        if average is None:
            raise InputError(f"checkpoint {path} was written without average_decay, and this run has {run.average.decay}")
        run.average.load_state(average)
    run.first = facts["first"]
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


def _sharded(run: Run, model: dict[str, Any], optimizer: dict[str, Any], average: dict[str, Any] | None) -> tuple[Any, ...]:
    """Whole states as the parts that this worker holds."""
    from heptane.sharding import like

    own = run.model.state_dict()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    state = {
        index: {key: like(value, parameters[index]) for key, value in kept.items()}
        for index, kept in optimizer["state"].items()
    }
    parts, averages = ({name: like(value, own[name]) for name, value in each.items()} for each in (model, average or {}))
    return parts, {**optimizer, "state": state}, averages or None


def _tensors(saved: Saved, run: Run) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors; of one in parts, sharded as ``run`` is."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if STATE in saved.files:
            return dict(load_file(saved.path / STATE))
        return _parts(saved, run)
    except (SafetensorError, OSError, Damaged) as error:
        raise InputError(f"checkpoint {saved.path} cannot be read ({one_line(error)}): remove it") from None


def _parts(saved: Saved, run: Run) -> dict[str, torch.Tensor]:
    from heptane.sharding import empty, load_parts

    own = run.model.state_dict()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    tensors, room = {}, sum(size for size, _ in saved.files.values())
    for name, (shape, dtype) in saved.facts["tensors"].items():
        kind, _, rest = name.partition(".")
        if kind in ("model", "average"):
            sharded = own.get(rest)
        else:
            index = int(rest.split(".")[1])
            sharded = parameters[index] if index < len(parameters) else None
        if dtype not in DTYPES or math.prod(shape) * getattr(torch, dtype).itemsize > room:
            raise Damaged(f"{name} of {dtype} {shape} is not what its files can hold")
        tensors[name] = empty(shape, getattr(torch, dtype), sharded)
    try:
        load_parts(tensors, saved.path)
    except Exception as error:  # whatever distributed checkpoint makes of parts that do not fit
        raise Damaged(one_line(error)) from error
    return tensors


def _write_parts(snapshot: Snapshot, aside: Path, path: Path, first: bool) -> None:
    """Each worker writes its parts and their checksums; the first seals."""
    from heptane.sharding import save_parts

    tensors = snapshot.tensors
    if first:
        _fresh(aside)
    torch.distributed.barrier()
    save_parts(tensors, aside)
    worker, parts = this_worker(), sorted(aside.iterdir())
    found = {}
    for part in parts[worker.rank :: worker.size]:
        sync(part)
        found[part.name] = checksum(part)
    checksums: dict[str, list[Any]] = {}
    for some in from_all(found, worker):
        checksums |= some
    if first:
        about = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in tensors.items()}
        seal(aside, path, snapshot.facts | {"tensors": about}, checksums)
    torch.distributed.barrier()


def _fresh(aside: Path) -> None:
    remove(aside)
    aside.mkdir(parents=True)


def _own_meter(meters: list[Any], worker: Worker) -> Any:
    """What this worker had summed up; where they were another number, the first has the sum of all."""
    if len(meters) == worker.size:
        return meters[worker.rank]
    return TrainMeter.together(meters, worker.size) if worker.rank == 0 else None


def _fixed(run: Run) -> dict[str, Any]:
    """What a step means: where one of these differs, the same step is another point of another run."""
    return {
        "optimizer": type(run.optimizer).__name__,
        "parameters per group": [len(group["params"]) for group in run.optimizer.param_groups],
        "training samples": run.source.num_samples,
        "batch_size": run.source.batch_size,
        "steps per epoch": run.source.steps_per_epoch,
        "seed": run.seed,
    }


def _check_model(model: torch.nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Compare before anything is loaded, so that a refusal leaves the model as it was."""
    own = model.state_dict()
    for name in [*own, *saved]:
        there, here = _shape(saved, name), _shape(own, name)
        if there != here:
            raise InputError(f"checkpoint {path} is of another model: in the file {name!r} is {there}, in the model {here}")


def _shape(state: dict[str, Any], name: str) -> str:
    if name not in state:
        return "absent"
    value = state[name]
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "no tensor"


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors``, under their names."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{name} is of type {type(value).__name__}: a checkpoint holds tensors, numbers, text, lists and dicts")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _serialised(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save(tensors, metadata)
