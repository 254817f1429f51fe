"""What a run says as it goes, at the terminal and in ``events.jsonl``: where it is, each evaluation, and what went wrong."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from heptane.core.loop import Step
from heptane.core.run import Run
from heptane.report.console import Progress
from heptane.session.run_folder import RunFolder

SHOW_SECONDS = 0.25


class Display:
    """Of one run; of several workers the first speaks, and only a run with a folder writes."""

    def __init__(self, run: Run, progress: bool | Progress, folder: RunFolder | None) -> None:
        self.run, self.folder = run, folder
        self.progress: Progress | None = None
        if progress and run.worker.rank == 0:
            self.progress = Progress(run.total_steps) if progress is True else progress
        self._shown_at, self._began_at, self._began_seconds, self._told = -math.inf, 0, 0.0, 0

    def shown(self) -> AbstractContextManager[Any]:
        """While the run trains."""
        return self.progress or nullcontext()

    def skip(self) -> None:
        """What went wrong until now was told."""
        self._told = len(self.run.faults.messages)

    def begin(self, step: int) -> None:
        """Training goes on from ``step``."""
        self._began_at, self._began_seconds = step, self.run.clock.train_seconds

    def step(self, event: Step) -> None:
        """Where the run is, a few times per second."""
        now = time.monotonic()
        if self.progress is None or now - self._shown_at < SHOW_SECONDS:
            return
        self._shown_at = now
        averages = self.run.meter.peek()
        seconds = max(self.run.clock.train_seconds - self._began_seconds, 1e-9)
        rate = (event.step - self._began_at) * self.run.source.batch_size / seconds
        loss = averages["train_loss"] if math.isfinite(averages["train_loss"]) else None
        accuracy = averages.get("train_accuracy", averages.get("train_accuracy_mixed"))
        self.progress.update(event.step, epoch=event.epoch, loss=loss, accuracy=accuracy, images_per_second=rate)

    def record(self, record: dict[str, Any]) -> None:
        """An evaluation."""
        if self.progress:
            self.progress.epoch_line(record)
        if self.folder:
            self.folder.event("epoch", record)

    def say(self, notes: list[str]) -> None:
        """What is to be known before training goes on."""
        for note in notes if self.progress else []:
            self.progress.note(f"note: {note}")  # type: ignore[union-attr]

    def tell(self) -> None:
        """What went wrong since the last time."""
        messages = self.run.faults.messages
        while self._told < len(messages):
            if self.progress:
                self.progress.note(f"note: {messages[self._told]}")
            if self.folder:
                self.folder.event("fault", {"message": messages[self._told]})
            self._told += 1
