"""The headline of a race, at most twelve words, and a sentence with the details."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from heptane.race.arms import ALL, PLAIN
from heptane.race.target import goal_text, too_few_samples
from heptane.race.verdict_text import range_text
from heptane.race.verdicts import ARRIVES_LESS, ARRIVES_MORE, HELPS, HURTS, NO_DIFFERENCE, NOT_SETTLED
from heptane.report import format_duration

Record = Mapping[str, Any]
MOST_WORDS = 12


def headline(race: Record, speedup: Record) -> str:
    """The result in at most twelve words: ``3.1x faster to 91.0% (2.4x to 4x, 5 seeds)``."""
    candidates = _candidates(race, speedup)
    return next((text for text in candidates if len(text.split()) <= MOST_WORDS), candidates[-1])


def sentence(race: Record, speedup: Record) -> str:
    """The headline with its interval, seeds, and what is missing."""
    confidence = f"{100 * speedup['confidence']:g}% interval"
    verdict, first = speedup["verdict"], headline(race, speedup)
    seeds = f"{speedup['num_seeds']} seed{'' if speedup['num_seeds'] == 1 else 's'}"
    bound = speedup["at_least"]
    if bound:
        took, cut = format_duration(bound["seconds"]), format_duration(bound["plain_seconds"])
        return f"{first}: {took} with the tricks, over {cut} without, when the budget ended. No verdict."
    if verdict in (HELPS, HURTS) and speedup["estimate"] is not None:
        return f"{_claim(race, speedup)} on this machine ({confidence} {_ends(speedup)}, {seeds})."
    if verdict in (NO_DIFFERENCE, NOT_SETTLED):
        words = f"{speedup['words'][:1].upper()}{speedup['words'][1:]}"
        return f"{words} ({_to(race)} on this machine, {confidence}, {seeds})."
    why = f"; {speedup['why']}" if speedup["why"] else ""
    return f"{first} ({_to(race)} on this machine{why})."


def _to(race: Record) -> str:
    """``to 91.0%``, or ``in 60 s of training``."""
    return goal_text(race) if race["target"]["value"] is None else f"to {goal_text(race)}"


def _candidates(race: Record, speedup: Record) -> list[str]:
    """Headlines, the fullest first; the last one always fits."""
    verdict, timed = speedup["verdict"], race["target"]["value"] is not None
    goal, to, count = goal_text(race), _to(race), speedup["num_seeds"]
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    absent = [name for name in (PLAIN, ALL) if not any(arm["name"] == name for arm in race["arms"])]
    if absent:
        return [f"No speed-up: this race has no arm {' or '.join(absent)}"]
    bound = speedup["at_least"]
    if bound:
        where = "this one seed" if bound["seeds"] == 1 else f"these {bound['seeds']} seeds"
        first = f"At least {bound['ratio']:g}x faster"
        return [f"{first} {to}, in {where}", f"{first}, in {where}"]
    if verdict in (HELPS, HURTS):
        claim = _claim(race, speedup)
        if speedup["estimate"] is None:
            return [claim, f"With the tricks: {speedup['words']}"]
        ends = _ends(speedup)
        return [f"{claim} ({ends}, {seeds})", f"{claim} ({ends})", claim, _change(race, float(speedup["estimate"]))]
    if verdict == NO_DIFFERENCE:
        size = "10%" if timed else "1 point"
        return [f"No difference beyond {size} {to} ({seeds})", f"No difference beyond {size} ({seeds})"]
    if verdict == NOT_SETTLED:
        ends = range_text(*_differences(speedup), timed)
        text = f"Not settled: {ends}"
        return [f"{text} ({to}, {seeds})", f"{text} ({seeds})", text, "Not settled"]
    without, with_it = speedup["arrived"]["without"], speedup["arrived"]["with"]
    tricks, plain = f"{with_it[0]} of {with_it[1]}", f"{without[0]} of {without[1]}"
    if verdict in (ARRIVES_LESS, ARRIVES_MORE):
        return [f"With tricks {tricks} runs reach {goal}, plain {plain}", f"Tricks reach it {tricks}, plain {plain}"]
    return _no_verdict(race, speedup, f"reached by tricks {tricks}, plain {plain}")


def _no_verdict(race: Record, speedup: Record, counts: str) -> list[str]:
    if too_few_samples(race):
        return ["No verdict: too few validation samples for this target"]
    arrived, tried = (sum(speedup["arrived"][side][at] for side in ("without", "with")) for at in (0, 1))
    if not tried:
        return ["No result yet: no seed has run both plain and all"]
    if not arrived:
        return [f"Neither plain nor the tricks reached {goal_text(race)}", "Neither plain nor the tricks reached the target"]
    if speedup["pairs"] == 1 and tried == 2:
        value = next(value for value in speedup["values"] if value is not None)
        return [f"No verdict: only one seed ({_change(race, value)})", "No verdict: only one seed"]
    return [f"No verdict: {counts}"]


def _claim(race: Record, speedup: Record) -> str:
    """``3.1x faster to 91.0%``."""
    if speedup["estimate"] is None:
        return f"With the tricks {_to(race)}: {speedup['words']}"
    return f"{_change(race, float(speedup['estimate']))} {_to(race)}"


def _change(race: Record, value: float) -> str:
    """``3.1x faster``, ``1.2 points more accuracy``."""
    if race["target"]["value"] is None:
        return f"{100 * abs(value):.2g} points {'more' if value > 0 else 'less'} accuracy"
    factor, word = (1 / value, "slower") if value < 1 else (value, "faster")
    return f"{factor:.3g}x {word}"


def factors(speedup: Record) -> tuple[float, float, float]:
    """A ratio and the ends of its interval, as factors above 1: of a slow-down, how much slower."""
    value, low, high = (float(number) for number in (speedup["estimate"], *speedup["interval"]))
    return (1 / value, 1 / high, 1 / low if low else math.inf) if value < 1 else (value, low, high)


def _ends(speedup: Record) -> str:
    if speedup["kind"] == "points":
        low, high = sorted(100 * abs(float(end)) for end in speedup["interval"])
        return f"{low:.2g} to {high:.2g}"
    _, low, high = factors(speedup)
    return f"{low:.3g}x to {high:.3g}x"


def _differences(speedup: Record) -> tuple[float, float]:
    """The interval as differences of log time or of accuracy."""
    low, high = (float(end) for end in speedup["interval"])
    if speedup["kind"] == "points":
        return low, high
    return (math.log(low) if low > 0 else -math.inf), (math.log(high) if math.isfinite(high) else math.inf)
