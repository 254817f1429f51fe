"""Live display of a race: a table of arms and seeds, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from heptane.base.progress import can_redraw, clear_progress, redirect_progress
from heptane.core.metric_direction import lower_is_better
from heptane.report import format_duration, format_metric
from heptane.report.console import make_console, make_table, printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from heptane.race.arms import Arm
    from heptane.race.attempt import Trial

_REDRAW_SECONDS = 0.5
_STILL_SECONDS = 2.0  # after this long without an update, the table shows what is running


class LiveTable:
    """The live table of a race on stderr, which is also the progress display of its runs.

    Args:
        arms: the rows.
        seeds: the columns.
        metric: the target's metric, such as ``valid_accuracy``.
        enabled: whether to draw the table; ``None``: only if stderr is a terminal that can redraw.
    """

    def __init__(self, arms: Sequence[Arm], seeds: Sequence[int], metric: str, enabled: bool | None = None) -> None:
        self.enabled = can_redraw() if enabled is None else enabled
        self._arms, self._seeds, self._metric = arms, seeds, metric
        self._cells: dict[tuple[str, int], str] = {}
        self._best: dict[str, float] = {}
        self._now: tuple[str, int] | None = None
        self._caption, self._drawn_at, self._depth = "", float("-inf"), 0
        self._live: Live | None = None
        self._signs, self._sign_text = ExitStack(), ""
        self._left: tuple[float, float] | None = None

    def __enter__(self) -> LiveTable:
        self._depth += 1  # each run enters it again as its progress display
        if self.enabled and self._live is None:
            from rich.live import Live

            console = make_console(sys.stderr, force_terminal=True)
            self._live = Live(
                self._table(), console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
            self._signs.enter_context(redirect_progress(self._sign))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._live is not None and not self._depth:
            self._signs.close()
            self._live.stop()
            self._live = None

    def tuning(self, arm: Arm, knob: str, value: float) -> None:
        """Show that a tuning run begins."""
        self._now, self._caption = None, f"tuning {arm.title}: {knob_text(knob, value)}"
        self._draw(force=True)

    def tuned(self, arm: Arm, knob: str, value: float, trial: Trial) -> None:
        """Show the result of a tuning run."""
        self.note(f"tuning {arm.title}, {knob_text(knob, value)}: {outcome_text(vars(trial), self._metric)}")

    def begins(self, arm: Arm, seed: int, elapsed: float, left: float) -> None:
        """Show that a run begins; ``elapsed`` and ``left`` are seconds of the race."""
        self._now, self._left = (arm.name, seed), (time.monotonic(), left)
        self._cells[arm.name, seed] = "..."
        self._caption = f"{format_duration(elapsed)} elapsed"
        self._draw(force=True)

    def done(self, arm: Arm, trial: Trial) -> None:
        """Show the result of a run."""
        text = outcome_text(vars(trial), self._metric)
        self._cells[arm.name, trial.seed], self._now = text, None
        self.note(f"{arm.title}, seed {trial.seed}: {text}")

    def update(self, step: int, *, accuracy: float | None = None, **_: Any) -> None:
        """Redraw: a run made a step."""
        self._draw()

    def epoch_line(self, record: Mapping[str, Any]) -> None:
        """Show an evaluation of a run."""
        value = record.get(self._metric)
        if self._now and isinstance(value, float):
            self._cells[self._now] = f"{format_duration(record['train_seconds'])} {format_metric(self._metric, value)}"
            name = self._now[0]
            pick = min if lower_is_better(self._metric) else max
            self._best[name] = pick(value, self._best.get(name, value))
        self._draw(force=True)

    def note(self, text: str) -> None:
        """Print a line where no table is drawn."""
        clear_progress()
        if self._live is None:
            print(printable(text, sys.stderr), file=sys.stderr, flush=True)
        self._draw(force=True)

    def _draw(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn_at >= _REDRAW_SECONDS):
            self._drawn_at, self._sign_text = now, ""
            self._live.update(self._table(), refresh=True)

    def _sign(self, text: str) -> None:
        """Show what is running while nothing else is drawn; called by the thread of :mod:`heptane.base.progress`."""
        if time.monotonic() - self._drawn_at >= _STILL_SECONDS:
            self._sign_text = text
            if self._live is not None:
                self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        caption = self._caption
        if self._left:
            since, left = self._left
            caption += f", about {format_duration(max(left - (time.monotonic() - since), 0))} left"
        table = make_table("arm", *(f"seed {n}" for n in self._seeds), "best", heading=True)
        if self._sign_text:
            caption = f"{caption}; {self._sign_text}" if caption else self._sign_text
        table.caption, table.caption_justify = caption, "left"
        for arm in self._arms:
            cells = [self._cells.get((arm.name, seed), "") for seed in self._seeds]
            best = self._best.get(arm.name)
            style = "bold" if self._now and self._now[0] == arm.name else ""
            shown = "" if best is None else format_metric(self._metric, best)
            table.add_row(*(printable(text, sys.stderr) for text in (arm.title, *cells, shown)), style=style)
        return table


def knob_text(knob: str, value: float) -> str:
    """A tuned value: ``3x the learning rate``, ``1.5 epochs``."""
    return f"{value:.3g} epoch{'' if value == 1 else 's'}" if knob == "epochs" else f"{value:.3g}x the learning rate"


def outcome_text(run: Mapping[str, Any], metric: str) -> str:
    """A run's result: ``24 s``, ``missed (90.1% in 81 s)``, ``over 32 s`` (stopped), ``failed``."""
    status, best, tried = run["status"], run["best"], (run["clocks"] or {}).get("train")
    shown = "" if best is None else format_metric(metric, best, 2)
    if status == "reached":
        return format_duration(run["seconds"])
    if status == "done":
        return shown or "no value"
    if status == "missed":
        return f"missed ({shown} in {format_duration(tried)})" if shown else f"missed ({format_duration(tried)})"
    if status == "stopped":
        return f"over {format_duration(tried)}"
    return str(status)
