"""A run's stream of events for its user; displays, files and loggers subscribe to it.

Levels: ``progress`` (where the run is, for displays only), ``info`` (records), ``note`` (a decision or a fact that the user
should know), ``warning`` (something went wrong, and training continued).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MAX_WARNINGS = 100  # kept, so that a fault at every step does not fill the memory


@dataclass(frozen=True)
class Event:
    """One event: its level, its kind (one word), its text, and data."""

    level: str
    kind: str
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


class Events:
    """The kept events, and the listeners for further ones."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.listeners: list[Callable[[Event], None]] = []

    def subscribe(self, listener: Callable[[Event], None], *, replay: bool = True) -> None:
        """Call ``listener`` with each further event, and first with the kept ones, unless ``replay`` is False."""
        for event in self.events if replay else ():
            listener(event)
        self.listeners.append(listener)

    def unsubscribe(self, listener: Callable[[Event], None]) -> None:
        """Stop calling ``listener``."""
        if listener in self.listeners:
            self.listeners.remove(listener)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Drop all events inside."""
        events, listeners = self.events, self.listeners
        self.events, self.listeners = [], []
        try:
            yield
        finally:
            self.events, self.listeners = events, listeners

    def emit(self, event: Event) -> None:
        """Send an event to the listeners, and keep it if it is a note or a warning."""
        if event.level in ("note", "warning"):
            self.events.append(event)
        for listener in self.listeners:
            listener(event)

    def progress(self, kind: str, **data: Any) -> None:
        """Emit where the run is."""
        self.emit(Event("progress", kind, data=data))

    def info(self, kind: str, **data: Any) -> None:
        """Emit a record."""
        self.emit(Event("info", kind, data=data))

    def note(self, *texts: str) -> None:
        """Emit notes, each text only once."""
        for text in texts:
            if text not in self.notes:
                self.emit(Event("note", "note", text))

    def warn(self, text: str) -> None:
        """Emit a warning, up to ``MAX_WARNINGS``."""
        if len(self.warnings) < MAX_WARNINGS:
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
        """The notes, then the warnings, as results and reports show them."""
        return [*self.notes, *self.warnings]

    def replace_warnings(self, texts: list[str]) -> None:
        """Replace the warnings by those of a checkpoint, without calling listeners."""
        kept = [event for event in self.events if event.level != "warning"]
        self.events = kept + [Event("warning", "fault", text) for text in texts]
