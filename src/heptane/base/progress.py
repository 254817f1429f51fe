"""Progress messages on stderr for slow tasks: what is running, how much is done, and for how long.

A separate thread writes them, so they also appear while the task blocks. They are off by default; the command line and
``fit(progress=True)`` turn them on. The environment variable ``HEPTANE_PROGRESS=off`` keeps them off.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

FIRST_SECONDS = 2.0  # shorter tasks show nothing
EVERY_SECONDS = 5.0  # between two lines, if stderr is not a terminal
REDRAW_SECONDS = 0.5  # between two updates of the line on a terminal
SPINNER, PLAIN_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"

now = time.monotonic


class Task:
    """A running task; call it to report that ``count`` more of its ``total`` items are done."""

    def __init__(self, what: str, total: int | None, after: float) -> None:
        self.what, self.total, self.after = what, total, after
        self.done, self.began, self.shown = 0, now(), False
        self._first: tuple[float, int] | None = None  # time and count of the first report, such as the steps before a resume
        self._lock = threading.Lock()

    def __call__(self, count: int = 1) -> None:
        with self._lock:  # several threads may read images
            self.done += count
            self._first = self._first or (now(), self.done)

    def text(self) -> str:
        """The message, such as ``reading 1,200 images: 400 (33%), 6 s, 66/s, 12 s left``."""
        time_text = _time(now() - self.began)
        if not self.done:
            return f"{self.what}: {time_text}"
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        return f"{self.what}: {self.done:,}{share}, {time_text}{self._left()}"

    def _left(self) -> str:
        """The rate and the time left, once they can be estimated."""
        if self.total is None or self._first is None:
            return ""
        seconds, count = now() - self._first[0], self.done - self._first[1]
        if seconds < 1 or count < 1 or self.done >= self.total:
            return ""
        rate = count / seconds
        return f", {rate:,.0f}/s, {_time((self.total - self.done) / rate)} left" if rate >= 1 else ""


class Owner(NamedTuple):
    """Another display that owns the screen: it draws, and only tasks started after it (from index ``floor``) are shown."""

    draw: Callable[[str], None] | None
    floor: int


class Display:
    """The running tasks, innermost last, and the thread that shows them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restore the initial state, also after a fork: the child has no thread, and its lock may be held forever."""
        self.on, self.lock = False, threading.RLock()
        self.tasks: list[Task] = []
        self.owners: list[Owner] = []
        self.shown_at, self._turn, self._width = now(), 0, 0
        self._thread: threading.Thread | None = None

    def begin(self, task: Task) -> None:
        with self.lock:
            self.tasks.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="heptane-progress", daemon=True)
                self._thread.start()

    def end(self, task: Task) -> None:
        with self.lock:
            if task in self.tasks:
                self.tasks.remove(task)
            if task.shown:
                self.clear()

    def clear(self) -> None:
        """Erase the line on the terminal, so that the next output starts at the left."""
        with self.lock:
            if self._width:
                self._write("\r" + " " * self._width + "\r")
                self._width = 0

    def _watch(self) -> None:
        while True:
            time.sleep(min(REDRAW_SECONDS, FIRST_SECONDS / 4))
            with self.lock:
                if self._thread is not threading.current_thread():
                    return
                if not self.tasks:
                    self._thread = None
                    return
                if self.on:
                    self.tick()

    def tick(self) -> None:
        """Show the current message, if one is due."""
        at = now()
        owner = self.owners[-1] if self.owners else Owner(None, 0)
        tasks = self.tasks[owner.floor :]
        due = at - self.shown_at >= EVERY_SECONDS
        slow = [task for task in tasks if at - task.began >= task.after]
        task = slow[-1] if slow else tasks[-1] if tasks and due and not self.owners else None
        if self.owners:
            if owner.draw is not None and task is not None:
                owner.draw(task.text())
        elif task is not None and can_redraw():
            self._draw(task.text())
            task.shown, self.shown_at = True, at
        elif task is not None and (due or (not task.shown and at - self.shown_at >= FIRST_SECONDS)):
            self._write(task.text() + "\n")
            task.shown, self.shown_at = True, at

    def _draw(self, text: str) -> None:
        self._turn += 1
        spinner = SPINNER if _can_encode(SPINNER) else PLAIN_SPINNER
        text = f"{spinner[self._turn % len(spinner)]} {text}"[: max(shutil.get_terminal_size().columns - 1, 1)]
        # Return the cursor to the left, so that other output stays legible.
        self._write("\r" + text.ljust(self._width) + "\r")
        self._width = len(text)

    def _write(self, text: str) -> None:
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        try:
            sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
            sys.stderr.flush()
        except (OSError, ValueError):  # stderr is closed
            self.on = False


_DISPLAY = Display()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_DISPLAY.reset)


@contextmanager
def working(what: str, total: int | None = None, *, after: float | None = None) -> Iterator[Callable[..., None]]:
    """Show progress while the body runs, if it is slow and progress is on (:func:`show_progress`).

    Args:
        what: the task, such as ``reading 1,200 images``.
        total: number of items, if known.
        after: seconds before the first message, at least 0; None for ``FIRST_SECONDS``.

    Returns:
        A context whose value, ``advance(count=1)``, reports finished items.

    Example:
        >>> from heptane.base.progress import working
        >>> with working("reading 3 images", total=3) as advance:
        ...     for _ in range(3):
        ...         advance()
    """
    if not _DISPLAY.on:
        yield _ignore
        return
    task = Task(what, total, FIRST_SECONDS if after is None else after)
    try:
        _DISPLAY.begin(task)
        yield task
    finally:
        _DISPLAY.end(task)


def _time(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def _ignore(count: int = 1) -> None:
    """Stand in for ``advance`` while progress is off."""


@contextmanager
def show_progress(on: bool = True) -> Iterator[None]:
    """Turn progress messages on or off inside. Only rank 0 shows them.

    Example:
        >>> from heptane.base.progress import show_progress
        >>> with show_progress(False):
        ...     pass
    """

    before = _DISPLAY.on
    allowed = os.environ.get("RANK", "0") == "0" and os.environ.get("HEPTANE_PROGRESS", "").lower() != "off"
    if on and not before:
        _DISPLAY.shown_at = now()
    _DISPLAY.on = on and allowed
    try:
        yield
    finally:
        _DISPLAY.on = before


@contextmanager
def progress_shown() -> Iterator[None]:
    """Turn progress on inside; the outermost call also reports ``still working`` while no named task runs."""
    with show_progress():
        if _DISPLAY.tasks:
            yield
        else:
            with working("still working", after=EVERY_SECONDS):
                yield


@contextmanager
def redirect_progress(draw: Callable[[str], None] | None) -> Iterator[None]:
    """Let another display own the screen: about twice a second the progress thread gives ``draw`` the message of a task
    started inside; None shows nothing."""
    owner = Owner(draw, len(_DISPLAY.tasks))
    with _DISPLAY.lock:
        _DISPLAY.clear()
        _DISPLAY.owners.append(owner)
    try:
        yield
    finally:
        with _DISPLAY.lock:
            _DISPLAY.owners.remove(owner)
        clear_progress()


def clear_progress() -> None:
    """Erase the progress line and postpone the next message; call it before or after printing something."""
    _DISPLAY.clear()
    _DISPLAY.shown_at = now()


def can_redraw() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    isatty = getattr(sys.stderr, "isatty", None)
    return bool(isatty and isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _can_encode(text: str) -> bool:
    """Whether stderr's encoding has these characters."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
