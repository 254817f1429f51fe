"""A race's record as its page reads it: verdicts with their words, only what was measured, and what was not raced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]

HELPS, HURTS, NO_DIFFERENCE, NO_VERDICT = "helps", "hurts", "no difference", "no verdict"
RAN = ("reached", "missed", "stopped", "failed", "done")


def judged(race: Record) -> dict[str, Any]:
    """``race`` with a verdict, words and one estimate in ``speedup`` and in each of ``effects``, and with ``not_raced``.

    A record without these (of a race before verdicts had words) is given them from its medians and intervals.
    """
    if "words" in race["speedup"]:
        return dict(race)
    timed = race["target"]["value"] is not None
    speedup = {**_estimated(race["speedup"]), "num_seeds": len(race["speedup"]["values"]), "confidence": 0.95}
    return {
        **race,
        "headline": race["sentence"],
        "speedup": {**speedup, "verdict": _verdict(speedup, 1.0 if timed else 0.0), "words": "", "why": ""},
        "effects": [_effect(row) for row in race["effects"] if row["verdict"] != "not applicable here"],
        "not_raced": [
            {"trick": row["trick"], "why": row["why"]} for row in race["effects"] if row["verdict"] == "not applicable here"
        ],
    }


def ran(arm: Record) -> bool:
    """Whether an arm has a run that began."""
    return any(run["status"] in RAN for run in arm["runs"])


def number(value: Any) -> float:
    """A number of ``race.json``, where an infinite one is text."""
    return math.nan if value is None else float(value)


def _effect(row: Record) -> dict[str, Any]:
    sides = {key: _estimated(row[key]) if row[key] else None for key in ("alone", "without")}
    both = _estimated(row["estimate"]) if row["estimate"] else {"estimate": None, "interval": [None, None]}
    return {"trick": row["trick"], "verdict": row["verdict"], "words": row["verdict"], "why": row["why"], **both, **sides}


def _estimated(side: Record) -> dict[str, Any]:
    median = side["median"]
    finite = median is not None and math.isfinite(number(median)) and number(median) != 0
    ends = side["interval"] if finite and len(side["values"]) > 1 else [None, None]
    return {"estimate": median if finite else None, "interval": ends}


def _verdict(speedup: Record, nothing: float) -> str:
    low, high = (number(end) for end in speedup["interval"])
    if speedup["estimate"] is None or math.isnan(low):
        return NO_VERDICT
    return HELPS if low > nothing else HURTS if high < nothing else "not settled"
