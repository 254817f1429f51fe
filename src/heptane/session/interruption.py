"""Handle Ctrl-C, SIGTERM and SIGUSR1 (preemption): finish the current step, save, and exit resumable."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from heptane.base.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
SAME_SECONDS = 0.5  # a launcher forwards the Ctrl-C that its workers already got from the terminal


class Interruption:
    """Signal handlers, as a context manager: the first signal is raised as :class:`Interrupted`, or noted while
    :meth:`waiting`; a second Ctrl-C raises ``KeyboardInterrupt`` at once."""

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.asked = ""
        self._at, self._waits = 0.0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for name in NAMES if self.active else ():
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this context, a signal is only noted, in :attr:`asked`."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context, a signal is raised as :class:`Interrupted`: the work can be repeated."""
        before, self._waits = self._waits, False
        try:
            if self.asked and before:
                raise Interrupted(self.asked)
            yield
        finally:
            self._waits = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self._at > SAME_SECONDS:
            raise KeyboardInterrupt
        again, self.asked, self._at = bool(self.asked), self.asked or signal.Signals(number).name, now
        if not self._waits and not again:
            raise Interrupted(self.asked)
