"""Terminal output of a run: a progress bar while it trains, tables afterwards, plain lines when piped.

Markup is off: a class or folder named ``[bold]`` is printed literally.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from heptane.base.progress import can_redraw, clear_progress, redirect_progress, working
from heptane.report import (
    format_duration,
    format_metric,
    format_value,
    headline,
    is_finite,
    only_column,
    readable_name,
    section,
    target_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.table import Table

_REDRAW_SECONDS = 0.1
_STILL_SECONDS = 2.0  # after this long without an update, the bar shows what is running, such as an evaluation


class Progress:
    """A progress bar on stderr; where stderr is not a terminal, plain lines.

    Args:
        total_steps: steps of the whole run, so that a resumed run starts part of the way along.
        enabled: whether to draw the bar; ``None``: only if stderr is a terminal that can redraw a line.

    Example:
        >>> with Progress(100, enabled=False) as progress:
        ...     progress.update(10, epoch=1, loss=2.1, accuracy=None, images_per_second=3000.0)
    """

    def __init__(self, total_steps: int, enabled: bool | None = None) -> None:
        self.enabled = can_redraw() if enabled is None else enabled
        self._total_steps, self._step = total_steps, 0
        self._signs = ExitStack()
        self._advance: Callable[..., None] | None = None
        self._bar: RichProgress | None = None
        self._drawn_at = float("-inf")

    def __enter__(self) -> Progress:
        if self.enabled:
            self._bar = _make_bar()
            self._bar.add_task("", total=self._total_steps, epoch="", figures="")
            self._bar.start()
            self._signs.enter_context(redirect_progress(self._sign))
        self._advance = self._signs.enter_context(working(f"training, {self._total_steps:,} steps", self._total_steps))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._signs.close()
        self._advance = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(
        self,
        step: int,
        *,
        epoch: int,
        loss: float | None = None,
        accuracy: float | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Advance to ``step``; redraw at most ten times a second, in the caller's thread."""
        if self._advance is not None:
            self._advance(step - self._step)
            self._step = step
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._drawn_at < _REDRAW_SECONDS and step < self._total_steps:
            return
        self._drawn_at = now
        parts = [f"loss {loss:.3f}"] if loss is not None else []
        parts += [format_metric("accuracy", accuracy)] if accuracy is not None else []
        parts += [f"{images_per_second:,.0f} images/s"] if is_finite(images_per_second) else []
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=step, epoch=f"epoch {epoch}", figures="  ".join(parts), refresh=True)

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        clear_progress()
        if self._bar is None:
            print(printable(text, sys.stderr), file=sys.stderr, flush=True)
        else:
            self._bar.console.print(printable(text, sys.stderr), soft_wrap=True)

    def _sign(self, text: str) -> None:
        """Show what is running while the bar does not move; called by the thread of :mod:`heptane.base.progress`."""
        bar = self._bar
        if bar is not None and time.monotonic() - self._drawn_at >= _STILL_SECONDS:
            bar.update(bar.task_ids[0], figures=text, refresh=True)

    def epoch_line(self, record: Mapping[str, Any]) -> None:
        """Print an epoch's metrics as a line that stays on the screen."""
        first = f"epoch {record.get('epoch', '?')}"
        shown = [key for key in record if key.startswith(("train_", "valid_")) and key != "train_seconds"]
        parts = [f"{readable_name(key)} {format_metric(key, record[key], 2)}" for key in shown if record[key] is not None]
        if is_finite(record.get("learning_rate")):
            parts.append(f"learning rate {record['learning_rate']:.3g}")
        if is_finite(record.get("train_seconds")):
            parts.append(format_duration(record["train_seconds"]))
        self.note(f"{first}: {', '.join(parts)}")


def summary(result: Mapping[str, Any]) -> None:
    """Print the result of a run on stdout: metrics, times, tricks, the next thing to try, and where the report is."""
    from heptane.report.examination.advice import advise

    console = make_console(sys.stdout)

    def say(text: str, **how: Any) -> None:  # never wrapped: paths and commands are for copying
        console.print(printable(text, sys.stdout), soft_wrap=True, **how)

    console.print()
    say(headline(result), style="bold")
    console.print()
    console.print(_figures_table(result))
    notes = [str(note) for note in result.get("notes") or []]
    if notes:
        console.print()
    for note in notes:
        console.print(printable(f"Note: {note}", sys.stdout))
    for one in advise(result)[:1]:  # the report lists them all
        console.print()
        console.print(printable(f"Next: {one.title}. {one.why}", sys.stdout))
        if one.command:
            say(f"  {one.command}")
    files = section(result, "files")
    rows = [("report", files.get("report")), ("predict", _predict_command(result))]
    if any(text for _, text in rows):
        console.print()
    for name, text in rows:
        if text:
            say(f"{name:<8} {text}")


def _predict_command(result: Mapping[str, Any]) -> str:
    weights = section(result, "files").get("model")
    if not weights or not str(result.get("command") or "").startswith("heptane"):
        return ""
    return f"heptane predict --run {shlex.quote(os.path.dirname(str(weights)))} FILE"


def tricks_table(header: Sequence[str], rows: Iterable[Sequence[str]], about: Iterable[str]) -> None:
    """Print the table of tricks, 80 columns wide, and how it was measured."""
    from rich.table import Table

    console = make_console(sys.stdout)
    table = Table(box=None, header_style="bold", padding=(0, 2, 1, 0), pad_edge=False)
    for at, name in enumerate(header):
        table.add_column(name, overflow="fold", style="" if at else "bold", ratio=1 if at else None)
    for row in rows:
        table.add_row(*(printable(text.replace("_", " ") if not at else text, sys.stdout) for at, text in enumerate(row)))
    console.print(table)
    for line in about:
        console.print(printable(line, sys.stdout))


def _figures_table(result: Mapping[str, Any]) -> Table:
    metrics, seconds = section(result, "metrics"), section(result, "seconds")
    table = make_table("", "")
    for key in sorted(metrics, key=lambda key: ("accuracy" not in key, not key.startswith("test"))):
        table.add_row(printable(readable_name(key), sys.stdout), format_metric(key, metrics[key], 2))
    if errors := only_column(result):
        table.add_row("mean absolute error", format_value(errors["mean_absolute_error"]))
    meanings = {"train": "training time", "wall": "wall clock", "cpu": "CPU time, all cores"}
    for key, meaning in meanings.items():
        if is_finite(seconds.get(key)):
            table.add_row(meaning, format_duration(seconds.get(key)))
    verdict, target = target_text(result)
    if target:
        table.add_row("target", printable(f"{verdict} ({target})", sys.stdout))
    if result.get("tricks"):
        table.add_row("tricks", printable(_tricks(result["tricks"]), sys.stdout))
    return table


def _tricks(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tricks that were on; marks those without effect on this machine."""
    titles = [
        (readable_name(str(row.get("title") or row.get("name") or "")), row.get("idle")) for row in rows if row.get("on")
    ]
    return ", ".join(f"{title} (no effect on this machine)" if idle else title for title, idle in titles) or "none"


def make_table(*columns: str, heading: bool = False) -> Table:
    """A table without rules; long text wraps and is never cut."""
    from rich.table import Table

    table = Table(box=None, show_header=heading, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for header in columns:
        table.add_column(header, overflow="fold")
    return table


def make_console(stream: TextIO, force_terminal: bool | None = None) -> Console:
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False, force_terminal=force_terminal)


def _make_bar() -> RichProgress:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.fields[epoch]}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn("{task.percentage:>3.0f}%", markup=False),
        progress.TextColumn("{task.fields[figures]}", markup=False),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("left", markup=False),
        console=make_console(sys.stderr, force_terminal=True),
        # A redrawing thread would compete with the training that is timed.
        auto_refresh=False,
        transient=True,
        expand=True,
        # Otherwise Rich would move stdout's lines to stderr.
        redirect_stdout=False,
    )


def printable(text: object, stream: TextIO) -> str:
    """``text`` without control characters or characters that the stream cannot encode."""
    words = format_value(text) if not isinstance(text, str) else text
    words = "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in words)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return words.encode(encoding, "replace").decode(encoding)
