"""What the race's page and tables read from its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from heptane.report import label

Record = Mapping[str, Any]

RAN = ("reached", "missed", "stopped", "failed", "done")


def ran(arm: Record) -> bool:
    """Whether an arm has a run that began."""
    return any(run["status"] in RAN for run in arm["runs"])


def number(value: Any) -> float:
    """A number of ``race.json``, where an infinite one is text."""
    return math.nan if value is None else float(value)


def not_raced_text(race: Record) -> str:
    """One line that names the tricks that were not measured, those with one reason together; empty where all were."""
    alike: dict[str, list[str]] = {}
    for row in race["not_raced"]:
        alike.setdefault(row["why"], []).append(label(row["trick"]))
    named = [f"{', '.join(tricks)} ({why})" if why else ", ".join(tricks) for why, tricks in alike.items()]
    return f"Not raced: {'; '.join(named)}." if named else ""
