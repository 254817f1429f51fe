"""What the race's page and tables read from its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]

RAN = ("reached", "missed", "stopped", "failed", "done")


def ran(arm: Record) -> bool:
    """Whether an arm has a run that began."""
    return any(run["status"] in RAN for run in arm["runs"])


def number(value: Any) -> float:
    """A number of ``race.json``, where an infinite one is text."""
    return math.nan if value is None else float(value)
