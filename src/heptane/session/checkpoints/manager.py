"""Decide when to write checkpoints and which to keep; a thread writes them."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptane.base.clock import parse_duration
from heptane.base.errors import InputError, one_line
from heptane.core.run import Run
from heptane.session.checkpoints import checkpoint


@dataclass(frozen=True)
class Interval:
    """An interval in steps or in seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: Any) -> Interval | None:
        """Parse steps (``500`` or ``"500"``) or a time (``"90s"``, ``"5m"``, ``"1h"``); None is None.

        Raises:
            InputError: it is neither.
        """
        if value is None:
            return None
        text = "" if isinstance(value, bool) else str(value).strip()
        if text[-1:].isalpha():
            with contextlib.suppress(InputError):  # the error below names steps too
                return cls(seconds=parse_duration("checkpoint_every", text))
        if re.fullmatch(r"\d{1,15}(\.0*)?", text) and float(text) >= 1:
            return cls(steps=int(float(text)))
        raise InputError(
            f"checkpoint_every={value!r}: expected a number of steps, at least 1, such as 500, or a time such as 90s or 5m"
        )


class CheckpointManager:
    """Writes the checkpoints of a run to ``folder``; None: writes none.

    A snapshot is taken at once, and a thread writes it while training continues; sharded runs write synchronously. If a
    checkpoint cannot be written, it is noted and earlier ones stay.
    """

    def __init__(self, run: Run, folder: Path | None, every: Interval | None, keep: int) -> None:
        self.run, self.folder, self.every, self.keep = run, folder, every, keep
        self.saved: int | None = None
        """step of the last checkpoint on disk"""
        self.failed = ""
        """why the last checkpoint could not be written; empty if it was"""
        self.seconds = 0.0
        """seconds that training has waited for checkpoints"""
        self._at = time.monotonic()
        self._writer: threading.Thread | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step``."""
        if self.folder is None or self.every is None:
            return False
        if self.every.steps:
            return step % self.every.steps == 0
        assert self.every.seconds is not None
        return time.monotonic() - self._at >= self.every.seconds

    def save(self, step: int, history: list[dict[str, Any]], best: int | None, *, wait: bool = False) -> None:
        """Write a checkpoint of the run after ``step``. All workers must call it.

        Args:
            history: the records so far.
            best: the step of the best evaluation, whose checkpoint stays.
            wait: wait until it is on disk.
        """
        if self.folder is None:
            return
        began = time.perf_counter()
        self._at = time.monotonic()
        snapshot = checkpoint.take_snapshot(self.run, step, history)
        self.wait()
        if self.run.meta_copy is not None:
            self._write(snapshot, best)
        elif self.run.worker.rank == 0:
            # not a daemon: on a normal exit the process finishes writing
            self._writer = threading.Thread(target=self._write, args=(snapshot, best), name="heptane-checkpoint")
            self._writer.start()
            if wait:
                self.wait()
        self.seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the writer thread."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, snapshot: checkpoint.Snapshot, best: int | None) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write(snapshot, self.folder, self.run)
            if self.run.worker.rank == 0:
                checkpoint.prune(self.folder, self.keep, best)
            self.saved, self.failed = snapshot.step, ""
        except Exception as error:  # mostly disk errors, for which libraries raise many types
            if not self.failed:
                self.run.events.warn(f"step {snapshot.step}: the checkpoint could not be written ({one_line(error)})")
            self.failed = one_line(error)
