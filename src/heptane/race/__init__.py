"""Time to a target, and what each trick is worth: ``docs/protocol.md``."""

from heptane.race.race import RaceExtras, RaceResult, race

__all__ = ["RaceExtras", "RaceResult", "race"]
