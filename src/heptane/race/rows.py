"""A race's record as text, for its page and its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from heptane.race.live import outcome_text
from heptane.race.target import goal_text
from heptane.race.verdicts import HELPS, HURTS
from heptane.report import MISSING, format_duration, format_metric, format_value, readable_name

Record = Mapping[str, Any]

RAN = ("reached", "missed", "stopped", "failed", "done")


def ran(arm: Record) -> bool:
    """Whether any run of an arm began."""
    return any(run["status"] in RAN for run in arm["runs"])


def number(value: Any) -> float:
    """A number of ``race.json`` as a float; infinite numbers are stored as text."""
    return math.nan if value is None else float(value)


def arm_row(race: Record, arm: Record, seeds: list[int]) -> dict[str, Any]:
    """An arm's row: a result per seed, the median, the test accuracy, the plan."""
    metric, runs = race["target"]["metric"], {run["seed"]: run for run in arm["runs"]}
    tests = [
        run["metrics"]["test_accuracy"] for run in arm["runs"] if run["status"] in RAN and "test_accuracy" in run["metrics"]
    ]
    return {
        "title": arm["title"],
        "cells": [outcome_text(runs[seed], metric) if seed in runs else MISSING for seed in seeds],
        "median": arm_median(race, arm)[0] or MISSING,
        "test": format_metric("test_accuracy", median(tests), 2) if tests else "",
        "plan": f"{format_value(arm['rate'])}x learning rate, at most {arm['epochs']:.3g} epochs",
    }


def arm_median(race: Record, arm: Record) -> tuple[str, str]:
    """The median time or accuracy of an arm and a remark on it; empty if no run began."""
    metric, runs = race["target"]["metric"], [run for run in arm["runs"] if run["status"] in RAN]
    if not runs:
        return "", ""
    if race["target"]["value"] is None:
        values = [run["best"] for run in runs if run["best"] is not None]
        return (format_metric(metric, median(values)), f"median of {len(values)}") if values else ("", "")
    times = [math.inf if run["seconds"] is None else float(run["seconds"]) for run in runs]
    reached = sum(map(math.isfinite, times))
    middle = median(times)
    if math.isinf(middle):
        return "not reached", f"{reached} of {len(times)} runs reached {goal_text(race)}"
    every = reached == len(times)
    return format_duration(middle), f"median of {reached}" if every else f"median; {reached} of {len(times)} runs reached it"


def effect_row(race: Record, effect: Record) -> dict[str, str]:
    """A trick's row: the verdict, and the effect when added to plain and when removed from all."""
    timed = race["target"]["value"] is not None
    return {
        "title": readable_name(effect["trick"]),
        "alone": _effect_text(effect["alone"], timed),
        "without": _effect_text(effect["without"], timed),
        "verdict": effect["words"],
        "why": effect["why"],
        "tone": {HELPS: "good", HURTS: "bad"}.get(effect["verdict"], ""),
    }


def _effect_text(side: Record | None, timed: bool) -> str:
    if not side or side["estimate"] is None:
        return MISSING
    value, (low, high) = number(side["estimate"]), (number(end) for end in side["interval"])
    text = f"{value:.3g}x" if timed else f"{100 * value:+.2f} points"
    if not all(map(math.isfinite, (low, high))):
        return f"{text} (no interval)"
    return f"{text} ({low:.3g}x to {high:.3g}x)" if timed else f"{text} ({100 * low:+.2f} to {100 * high:+.2f})"


def not_raced_text(race: Record) -> str:
    """The tricks that were not measured, grouped by reason, in one line; empty if there are none."""
    by_reason: dict[str, list[str]] = {}
    for row in race["not_raced"]:
        by_reason.setdefault(row["why"], []).append(readable_name(row["trick"]))
    named = [f"{', '.join(tricks)} ({why})" if why else ", ".join(tricks) for why, tricks in by_reason.items()]
    return f"Not raced: {'; '.join(named)}." if named else ""


def notes(race: Record) -> list[str]:
    """The race's notes, its state if unfinished, and its irregular runs grouped by reason."""
    found = [str(note) for note in race.get("notes") or []]
    if race["status"] != "done":
        found.append(f"This race is {race['status']}: the results are incomplete.")
    by_reason: dict[str, list[str]] = {}
    for arm in race["arms"]:
        for run in arm["runs"]:
            if run["status"] in ("failed", "refused", "stopped", "not run"):
                reason = run["note"] if run["status"] == "stopped" else f"{run['status']}: {run['note']}"
                by_reason.setdefault(reason, []).append(f"{arm['title']}, seed {run['seed']}")
    for reason, runs in by_reason.items():
        found.append(f"{'; '.join(runs) if len(runs) <= 3 else f'{len(runs)} runs'}: {reason}")
    return found
