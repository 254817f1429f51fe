"""The listeners of a run's events: the terminal and ``events.jsonl``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from heptane.base.events import Event
from heptane.core.loop import Step
from heptane.core.run import Run
from heptane.report.console import Progress
from heptane.session.run_folder import RunFolder

SHOW_SECONDS = 0.25


class Display:
    """Shows one run and writes its events; of several workers the first shows, and only a run with a folder writes."""

    def __init__(self, run: Run, progress: bool | Progress, folder: RunFolder | None) -> None:
        self.run, self.folder = run, folder
        self.progress: Progress | None = None
        if progress and run.worker.rank == 0:
            self.progress = Progress(run.total_steps) if progress is True else progress
        self._shown_at, self._began_at, self._began_seconds = -math.inf, 0, 0.0
        if folder:
            run.events.subscribe(self._write)

    @contextmanager
    def shown(self, notes: list[str]) -> Iterator[None]:
        """While it lasts, the run's events are shown; first ``notes``."""
        with self.progress or nullcontext():
            if self.progress:
                for note in notes:
                    self.progress.note(f"note: {note}")
                self.run.events.subscribe(self._show, replay=False)
            try:
                yield
            finally:
                self.run.events.unsubscribe(self._show)

    def _show(self, event: Event) -> None:
        assert self.progress is not None
        if event.kind == "step":
            self.progress.update(**event.data)
        elif event.kind == "epoch":
            self.progress.epoch_line(event.data)
        elif event.text:
            self.progress.note(f"{event.level}: {event.text}")

    def _write(self, event: Event) -> None:
        assert self.folder is not None
        if event.level != "progress":
            self.folder.event(event.kind, event.data or {"message": event.text})

    def begin(self, step: int) -> None:
        """Training goes on from ``step``."""
        self._began_at, self._began_seconds = step, self.run.clock.train_seconds

    def step(self, event: Step) -> None:
        """Emit where the run is, a few times per second, if it is shown."""
        now = time.monotonic()
        if self.progress is None or now - self._shown_at < SHOW_SECONDS:
            return
        self._shown_at = now
        averages = self.run.meter.peek()
        seconds = max(self.run.clock.train_seconds - self._began_seconds, 1e-9)
        rate = (event.step - self._began_at) * self.run.source.batch_size / seconds
        loss = averages["train_loss"] if math.isfinite(averages["train_loss"]) else None
        accuracy = averages.get("train_accuracy", averages.get("train_accuracy_mixed"))
        facts = {"epoch": event.epoch, "loss": loss, "accuracy": accuracy, "images_per_second": rate}
        self.run.events.progress("step", step=event.step, **facts)
