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
CHECKPOINTS = ("step-*.safetensors", ".step-*.safetensors.*")  # the second: left by a process killed while writing
OWN = ("result.json", "events.jsonl", "model.safetensors", "report.html", "settings.toml", "checkpoints")
LEAST_FREE_BYTES = 64 << 20


class RunFolder:
    """A folder that one run writes.

    Args:
        path: made if it is not there.
        force: remove what an earlier run left in it (its own files only), once this run has begun.
        resume: keep what is there.

    Raises:
        InputError: it holds a run already, is no folder, cannot be written, or its disk is full.
    """

    def __init__(self, path: Any, *, force: bool = False, resume: bool = False) -> None:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise InputError(f"run_dir={path!r}: expected the path of a folder; '.' is the current one")
        self.path = Path(path)
        self.checkpoints = self.checkpoints_of(path)
        check_folder(self.path, force=force, resume=resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write to {str(self.path)!r} ({reason}): choose another folder") from None
        self._old = _files(self.path) if force and not resume else {}

    @staticmethod
    def checkpoints_of(path: Any) -> Path:
        """Where a run in ``path`` keeps its checkpoints."""
        return Path(path) / "checkpoints"

    def begin(self) -> None:
        """Remove what is to be overwritten. Not before a run is assembled: input that is refused must cost no older run."""
        old, self._old = self._old, {}
        now = _files(self.path) if old else {}
        for path, identity in old.items():
            if now.get(path) == identity:  # else it is this run's already, such as its settings
                path.unlink(missing_ok=True)
        if old and self.checkpoints.is_dir():
            with contextlib.suppress(OSError):  # it holds something of the user's
                self.checkpoints.rmdir()

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        """Add a line to ``events.jsonl``."""
        self.begin()
        with open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "event": kind, **clean(facts)}) + "\n")

    def finish(self, result: Result, run: Run, about: dict[str, Any]) -> dict[str, Any]:
        """Write the weights, the result and the report; return the result's record."""
        from heptane.checkpoint import save_model
        from heptane.report.html import write_report

        self.begin()
        save_model(result.model, self.path / "model.safetensors")
        record: dict[str, Any] = clean(self._record(result, run, about))
        write_text(self.path / "result.json", json.dumps(record, indent=1) + "\n")
        self.event("end", {"metrics": record["metrics"], "seconds": record["seconds"], "steps": record["steps"]})
        write_report(record, self.path / "report.html")
        return record

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


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of a run in ``folder``, none of the user's, each with what changes when it is replaced."""
    found = [folder / name for name in OWN] + [path for one in CHECKPOINTS for path in (folder / "checkpoints").glob(one)]
    there = [path for path in found if path.is_symlink() or path.is_file()]
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in there}


def check_folder(path: Path, *, force: bool = False, resume: bool = False) -> None:
    """Refuse a folder that a run could not use, without making or changing anything.

    Raises:
        InputError: it holds a run already, is no folder, cannot be written, or its disk is full.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    if not there.is_dir():
        raise InputError(f"cannot write to {path} ({there} is a file, not a folder): choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {path} (no right to write to {there}): choose another folder")
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise InputError(f"{path} has {free >> 20} MiB free: at least {LEAST_FREE_BYTES >> 20} MiB are needed")
    held = [name for name in OWN if os.path.lexists(path / name)]
    if held and not (force or resume):
        raise InputError(f"{path} already holds a run ({', '.join(held)}): choose another folder, or use --force")


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
