"""A run's folder: ``result.json``, ``events.jsonl``, ``model.safetensors``, ``checkpoints/``, ``report.html``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.storage import remove, write_text
from heptane.core.run import Run
from heptane.session.history import Goal
from heptane.session.result import Result, trick_rows
from heptane.tricks import Tricks

if TYPE_CHECKING:
    from heptane.report.examination.examine import Examination

SCHEMA = 1
CHECKPOINTS = ("step-" + 9 * "[0-9]" + "*", ".step-*")  # those: left by a process killed while writing
JOB = "job"
BEGUN = "run.json"  # of a run that has not ended
LOCK, HOLDER = ".lock", ".lock.json"
DYING_SECONDS = 15.0  # for which what a killed run has started may outlive it, and hold its lock
OWN = ("result.json", "race.json", "events.jsonl", "model.safetensors", "report.html", "settings.toml", BEGUN, "checkpoints")
LEAST_FREE_BYTES = 64 << 20


class RunFolder:
    """A folder that one run writes.

    Args:
        path: made if it is not there.
        force: remove what an earlier run left in it (its own files only); input that is refused must cost no older run,
            so make this after :func:`check_folder` and all other checks.
        resume: keep what is there.

    Raises:
        InputError: it holds a run already, is no folder, cannot be written, or its disk is full.
    """

    def __init__(self, path: Any, *, force: bool = False, resume: bool = False) -> None:
        self.path = check_folder(path, force=force, resume=resume)
        self.checkpoints = self.checkpoints_of(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write to {str(self.path)!r} ({reason}): choose another folder") from None
        self._lock = _locked(self.path)
        self.unwritten = ""
        """why a line of ``events.jsonl`` or a file of the result could not be written"""
        if force and not resume:
            self._clear()
        if job := this_job():
            self.checkpoints.mkdir(exist_ok=True)
            write_text(self.checkpoints / JOB, job)

    @staticmethod
    def checkpoints_of(path: Any) -> Path:
        """Where a run in ``path`` keeps its checkpoints."""
        return Path(path) / "checkpoints"

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        """Add a line to ``events.jsonl``."""
        try:
            with open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), "event": kind, **clean(facts)}) + "\n")
        except OSError as error:  # a full disk stops no training
            self.unwritten = f"{self.path / 'events.jsonl'} ({error.strerror})"

    def close(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            for name in (HOLDER, LOCK):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def begin(self, run: Run, about: dict[str, Any], tricks: Tricks, goal: Goal | None) -> None:
        """Write ``run.json``: what :func:`heptane.session.finished.load_run` needs of a run that does not get to its end."""
        target = {"metric": goal[0], "value": goal[1]} if goal else None
        facts = self._facts(run.meta_copy or run.model, run, about)
        with contextlib.suppress(OSError):  # a full disk is said of when something that counts cannot be written
            write_text(
                self.path / BEGUN,
                json.dumps(clean({**facts, "tricks": tricks.settings(), "target": target}), indent=1) + "\n",
            )

    def finish(
        self, result: Result, run: Run, about: dict[str, Any], examine: Callable[[], Examination] | None = None
    ) -> dict[str, Any]:
        """Write the weights, the result and the report; return the result's record.

        ``examine`` looks at what the model gets wrong, once weights and result are on disk, so that it can cost neither.

        Raises:
            OSError: one of them could not be written; what was there before is still there.
        """
        from heptane.model.serialise import save_model
        from heptane.report.examination.examine import Examination
        from heptane.report.html import write_report

        save_model(result.model, self.path / "model.safetensors")
        record: dict[str, Any] = clean(self._record(result, run, about))
        self._write_result(record)
        (self.path / BEGUN).unlink(missing_ok=True)
        run.events.info("end", **{key: record[key] for key in ("metrics", "seconds", "steps")})
        found = examine() if examine else Examination()
        if found.record or found.note:
            record["examination"] = clean(found.record)
            result.notes += [found.note] if found.note else []
            record["notes"] += [found.note] if found.note else []
            self._write_result(record)
        write_report(record, self.path / "report.html", found.pictures)
        return record

    def _write_result(self, record: dict[str, Any]) -> None:
        write_text(self.path / "result.json", json.dumps(record, indent=1) + "\n")

    def _clear(self) -> None:
        """Remove the files of an earlier run, and nothing of the user's."""
        for path in (self.path / name for name in OWN):
            if path.is_symlink() or path.is_file():
                path.unlink()
        (self.checkpoints / JOB).unlink(missing_ok=True)
        for path in [path for pattern in CHECKPOINTS for path in self.checkpoints.glob(pattern)]:
            remove(path)
        if self.checkpoints.is_dir():
            with contextlib.suppress(OSError):  # it holds something of the user's
                self.checkpoints.rmdir()

    def _facts(self, model: torch.nn.Module, run: Run, about: dict[str, Any]) -> dict[str, Any]:
        """What is known of a run before it trains."""
        from heptane.base.version import __version__
        from heptane.session.model_record import model_facts

        return {
            "schema": SCHEMA,
            "heptane": __version__,
            "command": about.get("command", " ".join(sys.argv)),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.clock.started)),
            "data": {"num_train": run.source.num_samples, **about.get("data", {})},
            "model": model_facts(model, run, about),
            "settings": {
                "epochs": run.total_steps / run.source.steps_per_epoch,
                "batch_size": run.source.batch_size,
                "optimizer": type(run.optimizer).__name__,
                "learning_rate": run.base_rates[-1],
                "workers": run.worker.size,
                "seed": run.plan.seed,
                **about.get("settings", {}),
            },
        }

    def _record(self, result: Result, run: Run, about: dict[str, Any]) -> dict[str, Any]:
        from heptane.base.environment import describe

        goal = result.target
        target = {"metric": goal[0], "value": goal[1], "reached_seconds": result.reached} if goal else None
        names = {"result": "result.json", "events": "events.jsonl", "model": "model.safetensors", "report": "report.html"}
        return {
            **self._facts(result.model, run, about),
            "environment": describe(),
            "tricks": trick_rows(result, about.get("reasons", {})),
            "steps": result.steps,
            "seconds": result.seconds,
            "metrics": result.metrics,
            "weights": {"step": result.weights_step, "best_step": result.best_step},
            "target": target,
            "history": result.history,
            "schedule": result.schedule,
            "notes": [*about.get("notes", []), *result.notes],
            "files": {key: str(self.path / name) for key, name in names.items()},
        }


def check_folder(folder: Any, *, force: bool = False, resume: bool = False) -> Path:
    """The folder as a path; refuse a folder that a run could not use, without making or changing anything.

    Raises:
        InputError: it holds a run already, is no folder, cannot be written, or its disk is full.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise InputError(f"run_dir={folder!r}: expected the path of a folder; '.' is the current one")
    path = Path(folder)
    there = next(above for above in (path, *path.absolute().parents) if os.path.exists(above))
    if not there.is_dir():
        raise InputError(f"cannot write to {path} ({there} is a file, not a folder): choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {path} (no right to write to {there}): choose another folder")
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise InputError(f"{path} has {free >> 20} MiB free: at least {LEAST_FREE_BYTES >> 20} MiB are needed")
    held = [name for name in OWN if os.path.lexists(path / name)]
    if held and not (force or resume or goes_on(path)):
        raise InputError(f"{path} already holds a run ({', '.join(held)}): choose another folder, --force or --resume")
    return path


def this_job() -> str:
    """The elastic job that this process is a worker of; empty for none."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if job == "none" else job


def goes_on(folder: Any) -> bool:
    """Whether ``folder`` holds the unfinished run of this process's own job, whose workers were started again."""
    try:
        return bool(this_job()) and not Path(folder, "result.json").exists() and (
            RunFolder.checkpoints_of(folder) / JOB
        ).read_text() == this_job()  # fmt: skip
    except (OSError, UnicodeDecodeError):
        return False


def _locked(path: Path) -> Any:
    """The lock on a run's folder; None where the file system has none. The system lets go of a dead process's lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder(path)
        try:  # the data loader's processes of a killed run have a few seconds to find out
            lock.acquire(timeout=0 if alive(who) else DYING_SECONDS)
        except Timeout:
            known = ""
            if {"pid", "host", "since"} <= set(who):
                known = f" (process {who['pid']} on {who['host']}, since {who['since']})"
            raise InputError(
                f"another run is working in {path}{known}: wait for it, stop it, or choose another folder"
            ) from None
    except (NotImplementedError, OSError):
        return None
    here = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):
        (path / HOLDER).write_text(json.dumps(here))
    return lock


def holder(path: Path) -> dict[str, Any]:
    """Who works on a run's folder, as far as it is known."""
    try:
        found = json.loads((path / HOLDER).read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def alive(who: dict[str, Any]) -> bool:
    """Whether the process that took a lock is known to live, or cannot be asked, since it is on another host."""
    if who.get("host") != socket.gethostname() or not isinstance(who.get("pid"), int) or who["pid"] <= 0:
        return who.get("host") is not None
    try:
        os.kill(who["pid"], 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def clean(value: Any) -> Any:
    """``value`` as strict JSON: a number that is not finite becomes None, a tuple or tensor a list, a path a string."""
    if hasattr(value, "tolist"):  # a NumPy scalar, an array, a tensor
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
