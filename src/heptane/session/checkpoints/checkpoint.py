"""Checkpoints: a folder each, with tensors as safetensors and the rest as JSON; loading never unpickles.

``checkpoints/step-000000500/`` holds ``facts.json`` and ``state.safetensors`` (for a sharded run, a file per worker). It is
written atomically and verified by checksums: :mod:`heptane.base.storage`. The format: docs/checkpoints.md. Restoring:
:mod:`heptane.session.checkpoints.restore`.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.storage import FACTS, Damaged, check_files, make_empty_folder, read_facts, remove, seal, write_file
from heptane.core.run import Run
from heptane.distributed.replicas import broadcast_buffers
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather
from heptane.model.names import clean_state
from heptane.model.packing import copied, pack, serialised
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


def save(run: Run, step: int, history: list[dict[str, Any]], folder: Path, keep: int = 1) -> Path:
    """Write a checkpoint of ``step``, and remove all but the newest ``keep``. All workers must call it."""
    path = write(take_snapshot(run, step, history), folder, run)
    if run.worker.rank == 0:
        prune(folder, keep)
    return path


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


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in ``folder``, newest first."""
    return [step for step, _ in _numbered(folder)]


def find_newest(folder: Path, worker: Worker = SINGLE_WORKER) -> tuple[Saved | None, list[str]]:
    """The newest intact checkpoint in ``folder`` (None if it has none), and a note per damaged one.

    All workers must call it; rank 0 reads.

    Raises:
        InputError: all checkpoints are damaged.
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


def find_step(folder: Path, step: int, worker: Worker = SINGLE_WORKER) -> Saved | None:
    """The checkpoint of ``step`` in ``folder``; None if missing or damaged. All workers must call it."""
    found: list[Saved | None] = [None]
    if worker.rank == 0:
        with contextlib.suppress(Damaged):
            found = [read(folder / f"step-{step:09d}")]
    if worker.size > 1:
        torch.distributed.broadcast_object_list(found, 0)
    return found[0]


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
        "seed": run.seed,
    }
