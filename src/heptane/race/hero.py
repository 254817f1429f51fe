"""The top of a race's page: one large number or "not proven", and the few figures that were measured beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from heptane.race.arms import ALL, PLAIN
from heptane.race.reading import RAN
from heptane.race.verdicts import HELPS, HURTS, NO_DIFFERENCE
from heptane.report import duration, label, measure

Record = Mapping[str, Any]


def race_hero(race: Record) -> dict[str, Any]:
    """The result in one number, where a verdict stands behind it."""
    speedup, timed = race["speedup"], race["target"]["value"] is not None
    proven = speedup["verdict"] in (HELPS, HURTS) and speedup["estimate"] is not None
    if not proven:
        same = speedup["verdict"] == NO_DIFFERENCE
        return {
            "big": "no difference" if same else "not proven",
            "what": race["headline"],
            "on": speedup["why"],
            "tone": "",
            "words": True,
        }
    value = float(speedup["estimate"])
    low, high = (float(end) for end in speedup["interval"])
    tone = "good" if speedup["verdict"] == HELPS else "bad"
    if timed:
        slower = value < 1
        value, low, high = (1 / value, 1 / high, 1 / low if low else math.inf) if slower else (value, low, high)
        big, ends = f"{value:.3g}×", f"{low:.3g} to {'any number' if math.isinf(high) else format(high, '.3g')}"
        what = f"{'slower' if slower else 'faster'} to {_goal(race)} with the tricks than without"
    else:
        big, ends = f"{100 * value:+.2g} points", f"{100 * low:+.2g} to {100 * high:+.2g}"
        what = f"of accuracy after {duration(race['target']['seconds'])} of training with the tricks"
    count = speedup["num_seeds"]
    on = f"on this machine; {100 * speedup['confidence']:g}% interval {ends}, {count} seed{'' if count == 1 else 's'}"
    return {"big": big, "what": what, "on": on, "tone": tone, "words": not timed}


def race_glance(race: Record) -> list[dict[str, str]]:
    """Both sides' times (or accuracies), the seeds, and how long it all took; nothing that was not measured."""
    found = []
    for name, title in ((PLAIN, "without tricks"), (ALL, "with tricks")):
        arm = next((arm for arm in race["arms"] if arm["name"] == name), None)
        text, detail = arm_median(race, arm) if arm else ("", "")
        if text:
            found.append({"name": title, "value": text, "detail": detail, "tone": ""})
    count = sum(any(_ran(run, seed) for arm in race["arms"] for run in arm["runs"]) for seed in race["plan"]["seeds"])
    if count:
        runs = sum(run["status"] in RAN for arm in race["arms"] for run in arm["runs"])
        found.append(
            {"name": "seeds", "value": str(count), "detail": f"{runs} runs, the same seeds in each arm", "tone": ""}
        )
    if race.get("elapsed_seconds"):
        found.append(
            {"name": "the race took", "value": duration(race["elapsed_seconds"]), "detail": "with tuning", "tone": ""}
        )
    return found


def arm_median(race: Record, arm: Record) -> tuple[str, str]:
    """The middle of an arm's times or accuracies, and what it is the middle of; empty where nothing ran."""
    metric, runs = race["target"]["metric"], [run for run in arm["runs"] if run["status"] in RAN]
    if not runs:
        return "", ""
    if race["target"]["value"] is None:
        values = sorted(run["best"] for run in runs if run["best"] is not None)
        return (measure(metric, middle_of(values)), f"median of {len(values)}") if values else ("", "")
    times = [math.inf if run["seconds"] is None else float(run["seconds"]) for run in runs]
    arrived = sum(map(math.isfinite, times))
    half = middle_of(sorted(times))
    if not math.isfinite(half):
        return "not reached", f"{arrived} of {len(times)} runs reached {_goal(race)}"
    return duration(half), f"median; {arrived} of {len(times)} runs reached it" if arrived < len(
        times
    ) else f"median of {arrived}"


def middle_of(values: Sequence[float]) -> float:
    """The median of sorted values; infinite where an infinite one is in the middle."""
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def _ran(run: Record, seed: int) -> bool:
    return bool(run["seed"] == seed and run["status"] in RAN)


def _goal(race: Record) -> str:
    """The target in a few words: ``91.0%``, ``validation loss 0.3``."""
    metric, value = race["target"]["metric"], race["target"]["value"]
    return measure("accuracy", value) if metric == "valid_accuracy" else f"{label(metric)} {value:g}"
