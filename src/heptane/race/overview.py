"""The top of a race's page: the speed-up or "not proven", and the key figures beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from heptane.race.arms import ALL, PLAIN
from heptane.race.rows import RAN, arm_median
from heptane.race.target import goal_text
from heptane.race.verdicts import HELPS, HURTS, NO_DIFFERENCE
from heptane.report import format_duration

Record = Mapping[str, Any]


def main_result(race: Record) -> dict[str, Any]:
    """The speed-up as one number, if there is a verdict on it."""
    speedup, timed = race["speedup"], race["target"]["value"] is not None
    if speedup["verdict"] not in (HELPS, HURTS) or speedup["estimate"] is None:
        big = "no difference" if speedup["verdict"] == NO_DIFFERENCE else "not proven"
        return {"big": big, "what": race["headline"], "on": speedup["why"], "tone": "", "words": True}
    value = float(speedup["estimate"])
    low, high = (float(end) for end in speedup["interval"])
    tone = "good" if speedup["verdict"] == HELPS else "bad"
    if timed:
        slower = value < 1
        value, low, high = (1 / value, 1 / high, 1 / low if low else math.inf) if slower else (value, low, high)
        big, ends = f"{value:.3g}×", f"{low:.3g}× to {'any number' if math.isinf(high) else f'{high:.3g}×'}"
        what = f"{'slower' if slower else 'faster'} to {goal_text(race)} with the tricks than without"
    else:
        big, ends = f"{100 * value:+.2g} points", f"{100 * low:+.2g} to {100 * high:+.2g}"
        what = f"of accuracy after {format_duration(race['target']['seconds'])} of training with the tricks"
    count = speedup["num_seeds"]
    on = f"on this machine; {100 * speedup['confidence']:g}% interval {ends}, {count} seed{'' if count == 1 else 's'}"
    return {"big": big, "what": what, "on": on, "tone": tone, "words": not timed}


def key_figures(race: Record) -> list[dict[str, str]]:
    """The median of plain and of all, the number of seeds, and the duration of the race."""
    found = []
    for name, title in ((PLAIN, "without tricks"), (ALL, "with tricks")):
        arm = next((arm for arm in race["arms"] if arm["name"] == name), None)
        text, detail = arm_median(race, arm) if arm else ("", "")
        if text:
            found.append({"name": title, "value": text, "detail": detail, "tone": ""})
    runs = [run for arm in race["arms"] for run in arm["runs"] if run["status"] in RAN]
    seeds = {run["seed"] for run in runs}.intersection(race["plan"]["seeds"])
    if seeds:
        detail = f"{len(runs)} runs, the same seeds in each arm"
        found.append({"name": "seeds", "value": str(len(seeds)), "detail": detail, "tone": ""})
    if race.get("elapsed_seconds"):
        text = format_duration(race["elapsed_seconds"])
        found.append({"name": "race duration", "value": text, "detail": "including tuning", "tone": ""})
    return found
