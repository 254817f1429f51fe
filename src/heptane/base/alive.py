"""Signs of life: while something takes long, stderr says what it is, how far it is, and for how long it has been going on.

A thread of its own writes them, so that work that blocks shows them too. They are off in a library's ordinary use; the
command line switches them on, and so does ``fit(progress=True)`` while it runs. ``HEPTANE_PROGRESS=off`` in the environment
keeps them off.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

FIRST_SECONDS = 2.0  # what takes less shows nothing
EVERY_SECONDS = 5.0  # between two lines, where stderr is no terminal
REDRAW_SECONDS = 0.5  # of the line on a terminal
SPINNER, PLAIN_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"


now = time.monotonic


class Work:
    """One piece of work under way; calling it says that ``count`` more of its ``total`` are done."""

    def __init__(self, what: str, total: int | None, after: float) -> None:
        self.what, self.total, self.after = what, total, after
        self.done, self.began, self.shown = 0, now(), False
        self._lock = threading.Lock()

    def __call__(self, count: int = 1) -> None:
        with self._lock:  # several threads may read images
            self.done += count

    def text(self) -> str:
        """Such as ``reading 1,200 images: 400 (33%), 6 s``."""
        seconds = int(now() - self.began)
        time_text = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min {seconds % 60} s"
        if not self.done:
            return f"{self.what}: {time_text}"
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        return f"{self.what}: {self.done:,}{share}, {time_text}"


class Owner(NamedTuple):
    """Who has the screen: only work that began after it, from ``floor``, is shown, and by its own ``draw``."""

    draw: Callable[[str], None] | None
    floor: int


class Board:
    """What is under way, innermost last, and the thread that shows it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As at first; also in a process that was forked, where the thread is gone and the lock may be held for ever."""
        self.on, self.lock = False, threading.RLock()
        self.works: list[Work] = []
        self.owners: list[Owner] = []
        self.spoke_at, self._turn, self._width = now(), 0, 0
        self._thread: threading.Thread | None = None

    def begin(self, work: Work) -> None:
        with self.lock:
            self.works.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="heptane-alive", daemon=True)
                self._thread.start()

    def end(self, work: Work) -> None:
        with self.lock:
            if work in self.works:
                self.works.remove(work)
            if work.shown:
                self.clear()

    def clear(self) -> None:
        """Take the line off the terminal; whoever speaks next begins at the left."""
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
                if not self.works:
                    self._thread = None
                    return
                if self.on:
                    self.tick()

    def tick(self) -> None:
        """Show what is to be shown now."""
        at = now()
        owner = self.owners[-1] if self.owners else Owner(None, 0)
        works = self.works[owner.floor :]
        silent = at - self.spoke_at >= EVERY_SECONDS
        old = [work for work in works if at - work.began >= work.after]
        work = old[-1] if old else works[-1] if works and silent and not self.owners else None
        if self.owners:
            if owner.draw is not None and work is not None:
                owner.draw(work.text())
        elif work is not None and redraws():
            self._draw(work.text())
            work.shown, self.spoke_at = True, at
        elif work is not None and (silent or (not work.shown and at - self.spoke_at >= FIRST_SECONDS)):
            self._write(work.text() + "\n")
            work.shown, self.spoke_at = True, at

    def _draw(self, text: str) -> None:
        self._turn += 1
        spinner = SPINNER if _says(SPINNER) else PLAIN_SPINNER
        text = f"{spinner[self._turn % len(spinner)]} {text}"[: max(shutil.get_terminal_size().columns - 1, 1)]
        # The cursor goes back to the left: what somebody else prints now is legible.
        self._write("\r" + text.ljust(self._width) + "\r")
        self._width = len(text)

    def _write(self, text: str) -> None:
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        try:
            sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads it any more
            self.on = False


_BOARD = Board()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BOARD.reset)


@contextmanager
def working(what: str, total: int | None = None, *, after: float | None = None) -> Iterator[Callable[..., None]]:
    """Show a sign of life while the body runs, should it take long and should signs be on (:func:`show`).

    Args:
        what: what is done, as a phrase such as ``reading 1,200 images``.
        total: how many pieces it consists of, where that is known.
        after: seconds before the first sign, at least 0; None for ``FIRST_SECONDS``.

    Returns:
        A context, whose value is called as ``advance(count=1)`` when pieces are done.

    Example:
        >>> from heptane.base.alive import working
        >>> with working("reading 3 images", total=3) as advance:
        ...     for _ in range(3):
        ...         advance()
    """
    if not _BOARD.on:
        yield _ignore
        return
    work = Work(what, total, FIRST_SECONDS if after is None else after)
    try:
        _BOARD.begin(work)
        yield work
    finally:
        _BOARD.end(work)


def _ignore(count: int = 1) -> None:
    """What ``advance`` is while signs are off."""


class show:
    """Switch the signs of life on or off; as a context, put back at its end what was before.

    Of several workers only the first shows any.

    Example:
        >>> from heptane.base.alive import show
        >>> with show(False):
        ...     pass
    """

    def __init__(self, on: bool = True) -> None:
        self._before = _BOARD.on
        allowed = os.environ.get("RANK", "0") == "0" and os.environ.get("HEPTANE_PROGRESS", "").lower() != "off"
        if on and not self._before:
            _BOARD.spoke_at = now()
        _BOARD.on = on and allowed

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _BOARD.on = self._before


@contextmanager
def watched() -> Iterator[None]:
    """Signs are on within, also for what nobody has a name for: the outermost call then says that work goes on."""
    with show():
        if _BOARD.works:
            yield
        else:
            with working("still working", after=EVERY_SECONDS):
                yield


@contextmanager
def drawn_by(draw: Callable[[str], None] | None) -> Iterator[None]:
    """Within, another display has the screen: ``draw`` gets the text of what began inside, about twice a second, from the
    thread; None shows nothing."""
    owner = Owner(draw, len(_BOARD.works))
    with _BOARD.lock:
        _BOARD.clear()
        _BOARD.owners.append(owner)
    try:
        yield
    finally:
        with _BOARD.lock:
            _BOARD.owners.remove(owner)
        spoke()


def spoke() -> None:
    """Say that something was printed, or is about to be: the next sign can wait, and its line gives way."""
    _BOARD.clear()
    _BOARD.spoke_at = now()


def redraws() -> bool:
    """Whether stderr is a terminal that can draw a line anew."""
    isatty = getattr(sys.stderr, "isatty", None)
    return bool(isatty and isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _says(text: str) -> bool:
    """Whether stderr's encoding has these letters."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
