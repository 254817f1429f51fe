"""Save and resume: safetensors, of a sharded run a file per worker, written aside and renamed; loading never unpickles."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.assemble import Run
from heptane.errors import InputError, one_line
from heptane.run_folder import CHECKPOINTS, FINISHED, remove
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import launched
from heptane.tricks.lr_scaling import LRScaling

FORMAT = 3
FACTS = "facts.json"


def save_model(model: torch.nn.Module, path: Path) -> None:
    """The model's parameters and buffers as a safetensors file; a tensor of two names is stored under both."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    _write(path, tensors, {"format": "pt"})


def save(run: Run, step: int, history: list[dict[str, Any]], folder: Path) -> Path:
    """Write everything that a run needs to go on from ``step``; older checkpoints in ``folder`` are removed after.

    Of a sharded run all workers must call it, and each writes its parts.
    """
    tensors: dict[str, torch.Tensor] = {}
    facts = {
        "format": FORMAT,
        "step": step,
        "history": history,
        "fixed": _fixed(run),
        "workers": run.worker.size,
        "first": run.first,
        "model": _pack(run.model.state_dict(), "model", tensors),
        "optimizer": _pack(run.optimizer.state_dict(), "optimizer", tensors),
        "precision": {
            "name": run.precision.name,
            "channels_last": run.place.channels_last,
            "state": run.precision.state(),
        },
        "skipped": run.skipped,
        "nonfinite": [run.meter.nonfinite, run.meter.first_nonfinite],
        "seconds": run.clock.read(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if run.outline is None:
        path = folder / f"step-{step:09d}.safetensors"
        _write(path, tensors, {"heptane": json.dumps(facts)})
    else:
        path = folder / f"step-{step:09d}.parts"
        _write_parts(run, path, tensors, facts)
    for old in [old for pattern in CHECKPOINTS for old in folder.glob(pattern)] if run.worker.rank == 0 else ():
        if old != path:
            remove(old)
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    return max((path for pattern in FINISHED for path in folder.glob(pattern)), default=None)


def as_decided(tricks: Tricks, path: Path | None) -> Tricks:
    """``tricks`` with what was measured when the run began in place of "auto": a second one may differ."""
    trick = tricks.mixed_precision
    if path is None or trick is None:
        return tricks
    found = _read(path)[0]["precision"]
    last = ("on" if found["channels_last"] else "off") if trick.channels_last == "auto" else trick.channels_last
    dtype = found["name"] if trick.dtype == "auto" else trick.dtype
    return replace(tricks, mixed_precision=replace(trick, dtype=dtype, channels_last=last))


def followed(tricks: Tricks, path: Path | None, batch_size: int | None) -> tuple[Tricks, int | None]:
    """The tricks and the batch with which a run goes on where its workers keep their shares and are not as many as at first:
    the batch in proportion, the rate by the rule of the optimizer's family."""
    parallel = tricks.data_parallel
    if path is None or batch_size is None or parallel is None or parallel.keep != "share":
        return tricks, batch_size
    first = _read(path)[0].get("first")
    if first is None or first["workers"] == launched():
        return tricks, batch_size
    scaling = tricks.lr_scaling or LRScaling(reference_batch=first["batch_size"], warmup_epochs=0)
    return replace(tricks, lr_scaling=scaling), max(1, round(first["batch_size"] * launched() / first["workers"]))


def load(run: Run, path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Put a checkpoint's state into ``run``; return the step it was taken at and the history up to there.

    Raises:
        InputError: the file is not a checkpoint of this run: another model, optimizer, data size, batch or seed.
    """
    facts, tensors = _read(path, run)
    model, optimizer = _unpack(facts["model"], tensors), _unpack(facts["optimizer"], tensors)
    _check_model(run.model, model, path)
    before, follows = facts.get("workers", 1), False
    if before != run.worker.size and run.data_parallel.keep == "share":
        follows = facts["fixed"]["batch_size"] != run.source.batch_size
    for name, value in _fixed(run).items():
        if facts["fixed"][name] != value and not (follows and name in ("batch_size", "steps per epoch")):
            raise InputError(f"checkpoint {path} was written with {name} {facts['fixed'][name]}, and this run has {value}")
    step = facts["step"] * run.source.steps_per_epoch // facts["fixed"]["steps per epoch"]  # the same, unless it follows
    if step > run.total_steps:
        raise InputError(f"checkpoint {path} is at step {step}, past this run's {run.total_steps}: raise epochs")
    if run.outline is not None:
        model, optimizer = _sharded(run, model, optimizer)
    run.model.load_state_dict(model)
    own = [{key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups]
    run.optimizer.load_state_dict(optimizer)
    if follows:  # Adam's betas and eps go with the batch
        for group, settings in zip(run.optimizer.param_groups, own, strict=True):
            group.update(settings)
    run.first = facts.get("first", run.first)
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
    run.meter.nonfinite, run.meter.first_nonfinite = facts["nonfinite"]
    run.clock.carry(facts["seconds"])
    return step, facts["history"]


def _sharded(run: Run, model: dict[str, Any], optimizer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states as the parts that this worker holds."""
    from heptane.sharding import like

    own = run.model.state_dict()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    state = {
        index: {key: like(value, parameters[index]) for key, value in kept.items()}
        for index, kept in optimizer["state"].items()
    }
    return {name: like(value, own[name]) for name, value in model.items()}, {**optimizer, "state": state}


def _read(path: Path, run: Run | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A checkpoint's facts and tensors; of one in parts the tensors come only with the ``run`` that shards them."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_dir():
            return _read_parts(path, run)
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["heptane"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, and this version reads {FORMAT}")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({error}): remove it, and the run starts again") from None
    return facts, tensors


def _read_parts(path: Path, run: Run | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from heptane.sharding import empty, load_parts

    facts = json.loads((path / FACTS).read_text())
    if facts["format"] != FORMAT:
        raise ValueError(f"its format is {facts['format']}, and this version reads {FORMAT}")
    if run is None:
        return facts, {}
    own = run.model.state_dict()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    tensors = {}
    for name, (shape, dtype) in facts["tensors"].items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            sharded = own.get(rest)
        else:
            index = int(rest.split(".")[1])
            sharded = parameters[index] if index < len(parameters) else None
        tensors[name] = empty(shape, getattr(torch, dtype), sharded)
    try:
        load_parts(tensors, path)
    except Exception as error:  # whatever distributed checkpoint makes of a part that is torn or missing
        raise ValueError(one_line(error)) from error
    return facts, tensors


def _write_parts(run: Run, path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    from heptane.sharding import save_parts

    aside, first = path.with_name(f".{path.name}"), run.worker.rank == 0
    if first:
        remove(aside)
        aside.mkdir()
    torch.distributed.barrier()
    save_parts(tensors, aside)
    if first:
        about = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in tensors.items()}
        (aside / FACTS).write_text(json.dumps(facts | {"tensors": about}))
        for part in aside.iterdir():
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        remove(path)
        os.replace(aside, path)
    torch.distributed.barrier()


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


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    ready = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(ready, aside, metadata)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
