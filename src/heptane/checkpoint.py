"""Save and resume: one safetensors file per checkpoint, written aside and renamed; loading one never unpickles."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.assemble import Run
from heptane.errors import InputError

FORMAT = 1


def save_model(model: torch.nn.Module, path: Path) -> None:
    """The model's parameters and buffers as a safetensors file; tensors that share memory are stored once each."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    _write(path, tensors, {"format": "pt"})


def save(run: Run, step: int, history: list[dict[str, Any]], folder: Path) -> Path:
    """Write everything that a run needs to go on from ``step``; older checkpoints in ``folder`` are removed after."""
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    plain: dict[str, Any] = {}
    for index, state in run.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    facts = {
        "format": FORMAT,
        "step": step,
        "history": history,
        "optimizer": plain,
        "precision": run.precision.state(),
        "skipped": run.skipped,
        "nonfinite": run.meter.nonfinite,
        "train_seconds": run.clock.train_seconds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    ready = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    _write(path, ready, {"heptane": json.dumps(facts)})
    for old in sorted(folder.glob("step-*.safetensors"))[:-1]:
        old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    return max(folder.glob("step-*.safetensors"), default=None)


def load(run: Run, path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Put a checkpoint's state into ``run``; return the step it was taken at and the history up to there.

    Raises:
        InputError: the file is not a checkpoint of this model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["heptane"])
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({error}): remove it to use an older one") from None
    try:
        run.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise InputError(f"checkpoint {path} is of another model: {str(error).splitlines()[-1].strip()}") from None
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    for name, value in facts["optimizer"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})
    if facts["precision"]:
        run.precision.load_state(facts["precision"])
    run.skipped, run.meter.nonfinite = facts["skipped"], facts["nonfinite"]
    run.clock.train += facts["train_seconds"]
    return facts["step"], facts["history"]


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, aside, metadata)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
