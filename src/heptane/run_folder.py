"""A run's folder: ``result.json``, ``events.jsonl``, ``model.safetensors``, ``checkpoints/``, ``report.html``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.errors import InputError

if TYPE_CHECKING:
    from heptane.assemble import Run
    from heptane.result import Result

SCHEMA = 1
FINISHED = ("step-*.safetensors", "step-*.parts")
CHECKPOINTS = (*FINISHED, ".step-*.safetensors.*", ".step-*.parts")  # those: left by a process killed while writing
JOB = "job"
OWN = ("result.json", "race.json", "events.jsonl", "model.safetensors", "report.html", "settings.toml", "checkpoints")
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
        with open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "event": kind, **clean(facts)}) + "\n")

    def finish(self, result: Result, run: Run, about: dict[str, Any]) -> dict[str, Any]:
        """Write the weights, the result and the report; return the result's record."""
        from heptane.checkpoint import save_model
        from heptane.report.html import write_report

        save_model(result.model, self.path / "model.safetensors")
        record: dict[str, Any] = clean(self._record(result, run, about))
        write_text(self.path / "result.json", json.dumps(record, indent=1) + "\n")
        self.event("end", {"metrics": record["metrics"], "seconds": record["seconds"], "steps": record["steps"]})
        write_report(record, self.path / "report.html")
        return record

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

    def _record(self, result: Result, run: Run, about: dict[str, Any]) -> dict[str, Any]:
        from heptane import __version__
        from heptane.environment import describe
        from heptane.result import trick_rows

        parameters = sum(p.numel() for p in result.model.parameters())
        target = None
        if result.target:
            metric, value = result.target
            target = {"metric": metric, "value": value, "reached_seconds": result.reached}
        names = {"result": "result.json", "events": "events.jsonl", "model": "model.safetensors", "report": "report.html"}
        return {
            "schema": SCHEMA,
            "heptane": __version__,
            "command": about.get("command", " ".join(sys.argv)),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.clock.started)),
            "environment": describe(),
            "data": {"num_train": run.source.num_samples, **about.get("data", {})},
            "model": {"name": type(result.model).__name__, "num_parameters": parameters, **about.get("model", {})},
            "settings": {
                "epochs": run.total_steps / run.source.steps_per_epoch,
                "batch_size": run.source.batch_size,
                "optimizer": type(run.optimizer).__name__,
                "learning_rate": run.base_rates[-1],
                "workers": run.worker.size,
                "seed": run.seed,
                **about.get("settings", {}),
            },
            "tricks": trick_rows(result, about.get("reasons", {})),
            "steps": result.steps,
            "seconds": result.seconds,
            "metrics": result.metrics,
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


def remove(path: Path) -> None:
    """A file or a folder of ours, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def write_text(path: Path, text: str) -> None:
    """Write a file aside, then rename: never half a file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A folder's name that is not valid UTF-8 arrives with lone surrogates, which no file can hold.
        aside.write_text(text, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


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
