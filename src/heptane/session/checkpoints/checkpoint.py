"""Checkpoints: a folder each, with tensors as safetensors and the rest as JSON; loading never unpickles.

``checkpoints/step-000000500/`` holds ``facts.json`` and ``state.safetensors`` (for a sharded run, a file per worker). It is
written atomically and verified by checksums: :mod:`heptane.base.storage`. The format: docs/checkpoints.md. Restoring:
:mod:`heptane.session.checkpoints.restore`.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.storage import FACTS, Damaged, check_files, make_empty_folder, read_facts, remove, seal, write_file
from heptane.core.run import Run
from heptane.distributed.replicas import broadcast_buffers
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather, from_rank_zero
from heptane.model.names import clean_state
from heptane.model.serialise import copied, pack, serialised
from heptane.session.checkpoints.settings import as_kept
from heptane.session.checkpoints.sharded import write_sharded

FORMAT = 4
SCHEMA = {"step": int, "history": list, "fixed": dict, "workers": int, "first": dict, "model": dict, "optimizer": dict} | {
    "precision": dict, "skipped": int, "faults": dict, "meters": list, "seconds": dict
}  # fmt: skip
RECORDED = ("step", "epoch", "train_seconds", "evaluate_seconds")
STATE = "state.safetensors"
NAME = re.compile(r"step-(\d{9,15})")


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: its path, facts, and file checksums."""

    path: Path
    facts: dict[str, Any]
    files: dict[str, list[Any]]


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at a step, copied to the CPU, still to be written."""

    step: int
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def take_snapshot(run: Run, step: int, history: list[dict[str, Any]]) -> Snapshot:
    """Copy everything a run needs to resume from ``step``. All workers must call it; if sharded, each copies its part."""
    import safetensors.torch  # noqa: F401 - import here: a fork during an import in the writer thread would deadlock

    if run.meta_copy is not None:
        broadcast_buffers(run.model)  # the library may store any worker's copy
    tensors: dict[str, torch.Tensor] = {}
    facts = {
        "format": FORMAT,
        "step": step,
        "history": list(history),
        "fixed": identity(run),
        "settings": as_kept(run),
        "planned": run.total_steps,
        "workers": run.worker.size,
        "first": run.first,
        "model": pack(clean_state(run.model), "model", tensors),
        "optimizer": pack(run.optimizer.state_dict(), "optimizer", tensors),
        "loss": pack(run.loss.state_dict() if run.loss is not None else None, "loss", tensors),
        "average": pack(run.average.state() if run.average else None, "average", tensors),
        "precision": {
            "name": run.precision.name,
            "channels_last": run.place.channels_last,
            "state": run.precision.state(),
        },
        "switches": callable(getattr(run.optimizer, "eval", None)),
        "mode": run.stages.mode,
        "skipped": run.skipped,
        "faults": run.faults.state(),
        "meters": all_gather(run.meter.state(), run.worker),
        "seconds": run.clock.read(),
    }
    return Snapshot(step, facts, tensors if run.meta_copy is not None else copied(tensors))


def write(snapshot: Snapshot, folder: Path, run: Run) -> Path:
    """Write a snapshot as a sealed folder. All workers of a sharded run must call it; otherwise rank 0 writes."""
    path = folder / f"step-{snapshot.step:09d}"
    aside, first = folder / f".{path.name}", run.worker.rank == 0
    if run.meta_copy is not None:
        write_sharded(snapshot, aside, path, first)
    elif first:
        try:
            make_empty_folder(aside)
            write_file(aside / STATE, serialised(snapshot.tensors, {}))
            seal(aside, path, snapshot.facts)
        finally:
            remove(aside)
    return path


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Remove all checkpoints but the newest ``keep`` and that of step ``best``, and leftovers of killed processes."""
    for _, path in _numbered(folder)[keep:]:
        if best is None or path.name != f"step-{best:09d}":
            remove(path)
    for left in folder.glob(".step-*"):
        remove(left)


def find_newest(folder: Path, worker: Worker = SINGLE_WORKER) -> tuple[Saved | None, list[str]]:
    """The newest intact checkpoint in ``folder`` (None if it has none), and a note per damaged one.

    All workers must call it; rank 0 reads.

    Raises:
        InputError: all checkpoints are damaged.
    """
    found: tuple[Saved | None, list[str]] = from_rank_zero(lambda: _newest(folder), worker)
    return found


def find_step(folder: Path, step: int, worker: Worker = SINGLE_WORKER) -> Saved | None:
    """The checkpoint of ``step`` in ``folder``; None if missing or damaged. All workers must call it."""

    def find() -> Saved | None:
        try:
            return read(folder / f"step-{step:09d}")
        except Damaged:
            return None

    found: Saved | None = from_rank_zero(find, worker)
    return found


def _newest(folder: Path) -> tuple[Saved | None, list[str]]:
    notes: list[str] = []
    for _, path in _numbered(folder):
        try:
            return read(path), notes
        except Damaged as error:
            notes.append(f"checkpoint {path} is damaged ({error}): used the one before it")
    if notes:
        reason = notes[0].removesuffix(": used the one before it")
        others = f", and so are {len(notes) - 1} older one(s)" if len(notes) > 1 else ""
        raise InputError(f"{reason}{others}: remove {folder} to start the run again")
    return None, notes


def read(path: Path) -> Saved:
    """Read the checkpoint at ``path`` and verify its checksums.

    Raises:
        Damaged: it is damaged, or of another version.
    """
    facts, files = read_facts(path)
    _check_facts(facts)
    check_files(path, files)
    return Saved(path, facts, files)


def _check_facts(facts: dict[str, Any]) -> None:
    if facts.get("format") != FORMAT:
        raise Damaged(f"format {facts.get('format')}, but this version reads format {FORMAT}")
    for name, kind in SCHEMA.items():
        if not isinstance(facts.get(name), kind) or (kind is int and facts[name] < 0):
            raise Damaged(f"{FACTS} has no {name} of type {kind.__name__}")
    for record in facts["history"]:
        numbers = [record.get(name) for name in RECORDED] if isinstance(record, dict) else [None]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise Damaged(f"{FACTS} has an invalid history record")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = [(NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def identity(run: Run) -> dict[str, Any]:
    """What identifies a run: if any of these differs, a step number means something else."""
    return {
        "optimizer": type(run.optimizer).__name__,
        "parameters per group": [len(group["params"]) for group in run.optimizer.param_groups],
        "training samples": run.source.num_samples,
        "batch_size": run.source.batch_size,
        "steps per epoch": run.source.steps_per_epoch,
        "seed": run.plan.seed,
    }


def check_savable(run: Run) -> None:
    """Refuse a model or an optimizer with state that a checkpoint cannot hold.

    Optimizers create state in their first step. So a copy of a custom optimizer makes a step on a parameter of two numbers;
    random states are preserved.

    Raises:
        InputError: names the entry and its type.
    """
    try:
        pack(clean_state(run.model), "model", {})
        pack(run.optimizer.state_dict(), "optimizer", {})
        pack(_after_a_step(run.optimizer), "optimizer", {})
    except InputError as error:
        remedy = "keep it out of the state dict, or leave out run_dir (--out), so that nothing is saved"
        raise InputError(f"this run could not be saved: {error}; {remedy}") from None


def _after_a_step(optimizer: torch.optim.Optimizer) -> Any:
    """The state dict after one step on a small parameter; None if that is not possible."""
    if type(optimizer).__module__.startswith("torch.optim"):
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    small = torch.nn.Parameter(torch.zeros(2))
    try:
        with torch.random.fork_rng(devices=[]):
            made: Any = object.__new__(type(optimizer))
            memo: dict[int, Any] = {id(p): small for p in parameters}
            for name, value in optimizer.__dict__.items():
                hooks = name.endswith("_hooks")  # user hooks must not see this step
                made.__dict__[name] = OrderedDict() if hooks else copy.deepcopy(value, memo)
            del made.param_groups[1:]
            made.param_groups[0]["params"] = [small]
            made.state.clear()
            small.grad = torch.zeros(2)
            made.step()
            state = made.state_dict()
    except Exception:  # needs a closure, sparse gradients or matrices: its first checkpoint will show
        return None
    try:
        made.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise InputError(
            f"{type(optimizer).__name__} cannot load the state that it saves ({one_line(error)}): keep only tensors "
            "and numbers in its state dict"
        ) from error
    return state
