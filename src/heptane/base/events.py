"""The stream of events of a run: all that it tells its user, once, with a level; displays, files and loggers subscribe.

Levels are ``info`` (progress, records), ``note`` (a decision or a fact that the user should know) and ``warning`` (something
went wrong, and training continued).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LEVELS = ("info", "note", "warning")
MOST_WARNINGS = 100  # kept: a fault at every step must not fill the memory


@dataclass(frozen=True)
class Event:
    """One thing that happened: its level, its kind (one word), its text, and data."""

    level: str
    kind: str
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class Events:
    """A list of events, and those who want to hear of the next ones."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.listeners: list[Callable[[Event], None]] = []

    def subscribe(self, listener: Callable[[Event], None], *, replay: bool = True) -> None:
        """Have ``listener`` called with each event; first with those that are kept, unless ``replay`` is False."""
        for event in self.events if replay else ():
            listener(event)
        self.listeners.append(listener)

    def unsubscribe(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` no more."""
        if listener in self.listeners:
            self.listeners.remove(listener)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """While it lasts, nothing is kept, and nobody is told."""
        events, listeners = self.events, self.listeners
        self.events, self.listeners = [], []
        try:
            yield
        finally:
            self.events, self.listeners = events, listeners

    def emit(self, event: Event) -> None:
        """Tell the listeners; keep what is not ``info``."""
        if event.level != "info":
            self.events.append(event)
        for listener in self.listeners:
            listener(event)

    def info(self, kind: str, **data: Any) -> None:
        """A record or progress."""
        self.emit(Event("info", kind, data=data))

    def note(self, *texts: str) -> None:
        """Facts to know, each said once."""
        for text in texts:
            if text not in self.notes:
                self.emit(Event("note", "note", text))

    def warn(self, text: str) -> None:
        """Something went wrong, and training continues."""
        if len(self.warnings) < MOST_WARNINGS:
            self.emit(Event("warning", "fault", text))

    @property
    def notes(self) -> list[str]:
        """The texts of all notes, in order."""
        return [event.text for event in self.events if event.level == "note"]

    @property
    def warnings(self) -> list[str]:
        """The texts of all warnings, in order."""
        return [event.text for event in self.events if event.level == "warning"]

    @property
    def texts(self) -> list[str]:
        """The notes, then the warnings: what a result and a report show."""
        return [*self.notes, *self.warnings]

    def replace_warnings(self, texts: list[str]) -> None:
        """Put the warnings of a checkpoint in the place of the present ones; nobody is told of them again."""
        kept = [event for event in self.events if event.level != "warning"]
        self.events = kept + [Event("warning", "fault", text) for text in texts]
