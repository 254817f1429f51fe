"""When a run is saved, and which checkpoints stay: by steps or by time, the newest and the best; written by a thread."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.session.checkpoints import checkpoint

if TYPE_CHECKING:
    from heptane.core.run import Run

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Interval:
    """An interval: so many steps, or so many seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: Any) -> Interval | None:
        """``500`` or ``"500"`` is steps; ``"90s"``, ``"5m"`` or ``"1h"`` a time; None is None.

        Raises:
            InputError: it is neither.
        """
        if value is None:
            return None
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", str(value)) if not isinstance(value, bool) else None
        number = float(found[1]) if found and len(found[1]) < 16 else 0.0
        if found and found[2] and number > 0:
            return cls(seconds=number * SECONDS[found[2]])
        if found and not found[2] and number >= 1 and number == int(number):
            return cls(steps=int(number))
        raise InputError(
            f"checkpoint_every={value!r}: expected a number of steps, at least 1, such as 500, or a time such as 90s or 5m"
        )


class CheckpointManager:
    """Saves one run in ``folder``; None saves nothing.

    A snapshot is taken at once, and written by a thread while training goes on; sharded runs write together, at once. A
    checkpoint that cannot be written is noted, and those before it stay.
    """

    def __init__(self, run: Run, folder: Path | None, every: Interval | None, keep: int) -> None:
        self.run, self.folder, self.every, self.keep = run, folder, every, keep
        self.saved: int | None = None
        """step of the last checkpoint that is on the disk"""
        self.failed = ""
        """why the last one is not"""
        self.seconds = 0.0
        """that training waited for it"""
        self._at = time.monotonic()
        self._writer: threading.Thread | None = None

    def due(self, step: int) -> bool:
        """Whether the interval is over."""
        if self.folder is None or self.every is None:
            return False
        if self.every.steps:
            return step % self.every.steps == 0
        assert self.every.seconds is not None
        return time.monotonic() - self._at >= self.every.seconds

    def save(self, step: int, history: list[dict[str, Any]], best: int | None, *, wait: bool = False) -> None:
        """Save the run as it is after ``step``. All workers must call it.

        Args:
            history: the records so far.
            best: the step of the best evaluation, whose checkpoint stays.
            wait: until it is on the disk.
        """
        if self.folder is None:
            return
        began = time.perf_counter()
        self._at = time.monotonic()
        snapshot = checkpoint.take(self.run, step, history)
        self.wait()
        if self.run.meta_copy is not None:
            self._write(snapshot, best)
        elif self.run.worker.rank == 0:
            # not a daemon: a process that ends in an orderly way writes what it has begun to write
            self._writer = threading.Thread(target=self._write, args=(snapshot, best), name="heptane-checkpoint")
            self._writer.start()
            if wait:
                self.wait()
        self.seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Until what is being written is written."""
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
        except Exception as error:  # the disk, above all; what a library raises for it is of many kinds
            if not self.failed:
                self.run.faults.say(f"step {snapshot.step}: the checkpoint could not be written ({one_line(error)})")
            self.failed = one_line(error)
