"""The findings of a race: the speed-up, the effect of each trick, a headline and a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from heptane.core.precision.choose import keeps_plain
from heptane.race.arms import ALL, PLAIN, find_arm
from heptane.race.attempt import FAILED, NOT_RUN, REFUSED
from heptane.race.headline import headline, sentence
from heptane.race.outcomes import UNKNOWN, outcome_of
from heptane.race.statistics import json_number
from heptane.race.target import too_few_samples
from heptane.race.verdict_text import arrival_counts, verdict_text
from heptane.race.verdicts import (
    ARRIVES_LESS,
    ARRIVES_MORE,
    HELPS,
    HURTS,
    NO_DIFFERENCE,
    NO_VERDICT,
    NOT_SETTLED,
    POINTS,
    SETTLED,
    TIME,
    Judgement,
    Strata,
    side_interval,
    verdicts,
)
from heptane.report import format_duration, readable_name, section
from heptane.report.overview import subject
from heptane.tricks import KINDS

Record = Mapping[str, Any]


def findings(race: Record) -> dict[str, Any]:
    """``speedup``, ``effects``, ``not_raced``, ``headline``, ``sentence`` and ``summary`` of a race so far.

    Args:
        race: the content of ``race.json``; its ``reasons`` say per trick why it was chosen or not.
    """
    timed = race["target"]["value"] is not None
    strata, left_out = trick_strata(race)
    overall, judged = judge_race(race, strata)
    found: dict[str, Any] = {
        "speedup": {
            "kind": "ratio" if timed else "points",
            **_judged(race, overall),
            "values": _values(race, (PLAIN, ALL)),
            "at_least": _at_least(race) if timed and overall.estimate is None else None,
        },
        "effects": [_effect(race, name, made, strata[name]) for name, made in judged.items()],
        "not_raced": [{"trick": name, "why": why} for name, why in left_out.items()],
    }
    found["headline"] = headline(race, found["speedup"])
    found["sentence"] = sentence(race, found["speedup"])
    found["summary"] = _summary(race, found)
    return found


def trick_strata(race: Record) -> tuple[dict[str, Strata], dict[str, str]]:
    """The pairs of arms that measure each trick, and why other tricks were not measured."""
    strata: dict[str, Strata] = {}
    left_out = {}
    for name in KINDS:
        why = _not_applicable(race, name, race["reasons"].get(name, ""))
        added, without = _arm_with(race, {name}), _arm_with(race, set(find_arm(race, ALL)["tricks"]) - {name})
        pairs = [(PLAIN, added)] if added else []
        pairs += [(without, ALL)] if without and (without, ALL) not in pairs else []
        if why or not pairs:
            left_out[name] = why or "not measured: none of its arms was run"
        else:
            strata[name] = [(one, other) for one, other in pairs if one is not None and other is not None]
    return strata, left_out


def judge_race(race: Record, strata: Mapping[str, Strata]) -> tuple[Judgement, dict[str, Judgement]]:
    """The verdict on all tricks against plain, and on each trick."""
    timed, seeds = race["target"]["value"] is not None, race["plan"]["seeds"]
    table = {}
    for arm in race["arms"]:
        runs = {run["seed"]: run for run in arm["runs"]}
        table[arm["name"]] = [outcome_of(runs.get(seed), timed) for seed in seeds]
    for name in (PLAIN, ALL):
        table.setdefault(name, [outcome_of(None, timed)] * len(seeds))
    done = [{run["seed"] for run in arm["runs"]} for arm in race["arms"]]
    complete = next((at for at, seed in enumerate(seeds) if not all(seed in some for some in done)), len(seeds))
    fixed = bool(race["plan"].get("fixed_seeds"))
    return verdicts(table, strata, [(PLAIN, ALL)], TIME if timed else POINTS, complete_seeds=complete, fixed=fixed)


def settled_arms(race: Record) -> set[str]:
    """The arms that need no more runs, since every verdict they serve is settled."""
    if race["plan"].get("fixed_seeds") or too_few_samples(race):
        return set()
    strata, _ = trick_strata(race)
    overall, judged = judge_race(race, strata)
    open_arms = {
        name for trick, made in judged.items() if made.verdict not in SETTLED for pair in strata[trick] for name in pair
    }
    if open_arms or overall.verdict not in SETTLED:
        open_arms |= {PLAIN, ALL}
    return {arm["name"] for arm in race["arms"]} - open_arms


def arm_results(race: Record, name: str) -> list[float]:
    """An arm's result per seed: seconds to the target (infinite: missed) or accuracy; NaN if not run."""
    ran = {run["seed"]: run for run in find_arm(race, name)["runs"] if run["status"] not in (NOT_RUN, REFUSED)}
    if race["target"]["value"] is None:
        values = {seed: run["best"] for seed, run in ran.items() if run["status"] != FAILED and run["best"] is not None}
    else:
        values = {seed: math.inf if run["seconds"] is None else run["seconds"] for seed, run in ran.items()}
    return [float(values.get(seed, math.nan)) for seed in race["plan"]["seeds"]]


def _effect(race: Record, trick: str, made: Judgement, strata: Strata) -> dict[str, Any]:
    """The record of one trick's effect."""
    record = {"trick": trick, **_judged(race, made), "alone": None, "without": None}
    for at, pair in enumerate(strata):
        estimate, *interval = (_shown(race, number) for number in side_interval(made, at))
        record["alone" if pair[0] == PLAIN else "without"] = {
            "estimate": estimate,
            "interval": interval,
            "values": _values(race, pair),
            "pairs": made.evidence.pairs[at] if made.evidence.pairs else 0,
        }
    return record


def _judged(race: Record, made: Judgement) -> dict[str, Any]:
    """A judgement as JSON: ratios of times (without / with), or differences of accuracy."""
    evidence, coarse = made.evidence, too_few_samples(race)
    arrived = zip(evidence.arrived, evidence.known, strict=True)
    return {
        "verdict": NO_VERDICT if coarse else made.verdict,
        "words": NO_VERDICT if coarse else verdict_text(made, race["target"]["value"] is not None),
        "why": coarse or _why(made),
        "estimate": _shown(race, made.estimate),
        "interval": [_shown(race, made.low), _shown(race, made.high)],
        "confidence": round(1 - made.level, 6),
        "p": evidence.p if evidence.bounds else None,
        "pairs": sum(evidence.pairs),
        "arrived": {side: list(counts) for side, counts in zip(("without", "with"), arrived, strict=True)},
        "more_seeds": made.more_seeds,
        "num_seeds": made.seeds,
    }


def _why(made: Judgement) -> str:
    """What qualifies the verdict."""
    evidence = made.evidence
    parts = ["fewer than two complete pairs of runs"] if made.verdict == NO_VERDICT else []
    if evidence.arrived != evidence.known and made.verdict not in (ARRIVES_LESS, ARRIVES_MORE):
        parts.append(f"runs that arrived: {arrival_counts(made)} without")
    return "; ".join(filter(None, [*parts, _contrary(made)]))


def _contrary(made: Judgement) -> str:
    """A remark if a trick helps when added to plain but hurts among the others, or vice versa."""
    if len(made.evidence.pairs) < 2 or made.estimate is None:
        return ""
    (_, low, high), (_, other_low, other_high) = (side_interval(made, at) for at in (0, 1))
    if low is not None and other_high is not None and low > 0 > other_high:
        return "helps alone, hurts among the other tricks"
    if high is not None and other_low is not None and high < 0 < other_low:
        return "hurts alone, helps among the other tricks"
    return ""


def _shown(race: Record, difference: float | None) -> float | str | None:
    if difference is None or race["target"]["value"] is None:
        return json_number(difference)
    return json_number(math.exp(difference) if difference < 700 else math.inf)


def _values(race: Record, pair: tuple[str, str]) -> list[float | None]:
    """Per seed, the ratio of times (or difference of accuracies) of two arms; None if a run is missing."""
    timed, pairs = race["target"]["value"] is not None, zip(*(arm_results(race, name) for name in pair), strict=True)
    return [(a / b if timed else b - a) if math.isfinite(a) and math.isfinite(b) else None for a, b in pairs]


def _at_least(race: Record) -> dict[str, Any] | None:
    """A lower bound on the speed-up, from seeds in which all arrived and the budget ended before plain did."""
    runs = {run["seed"]: run for run in find_arm(race, PLAIN)["runs"] if run["status"] == NOT_RUN}
    tried = [runs.get(seed, {}).get("clocks", {}).get("train", 0.0) for seed in race["plan"]["seeds"]]
    pairs = [(cut / took, took, cut) for cut, took in zip(tried, arm_results(race, ALL), strict=True) if took and cut > took]
    if not pairs:
        return None
    ratio, took, cut = min(pairs)
    return {"ratio": math.floor(10 * ratio) / 10, "seeds": len(pairs), "seconds": took, "plain_seconds": cut}


def _arm_with(race: Record, tricks: set[str]) -> str | None:
    """The name of the arm with exactly these tricks, if it was run at least once."""
    arm = next((arm for arm in race["arms"] if set(arm["tricks"]) == tricks), None)
    timed = race["target"]["value"] is not None
    ran = arm is not None and any(outcome_of(run, timed).kind != UNKNOWN for run in arm["runs"])
    return arm["name"] if arm is not None and ran else None


def _not_applicable(race: Record, trick: str, reason: str) -> str:
    if trick not in find_arm(race, ALL)["tricks"]:
        return reason or "not in the raced set"
    with_it = [run for name in (ALL, f"plain+{trick}") for run in find_arm(race, name)["runs"]]
    decided = [run["why"][trick] for run in with_it if trick in run["why"]]
    if decided and all(map(keeps_plain, decided)):
        return str(decided[0])
    refused = [
        run["note"] for arm in race["arms"] for run in arm["runs"] if run["status"] == REFUSED and trick in arm["name"]
    ]
    return refused[0] if refused else ""


def _summary(race: Record, found: Record) -> str:
    """The race in one paragraph."""
    environment, settings = race["environment"], section(race, "settings")
    cores = f"{environment.get('cores_usable') or environment.get('cores')} cores of {environment.get('cpu')}"
    machine = ", ".join(environment.get("gpus") or []) or cores
    first = f"{subject(race)} ({machine}): {found['sentence'][:1].lower()}{found['sentence'][1:]}".rstrip(".")
    plain, every = (_times(race, name) for name in (PLAIN, ALL))
    took = f" Training took {every} with the tricks and {plain} without." if plain and every else ""
    parts = [f"{first}.{took}", _effects_text(found["effects"]), _effort(race)]
    if settings.get("optimizer"):
        parts.append(f"Plain is {settings['optimizer']} in float32 at a constant learning rate, on the same loop and data.")
    return " ".join(part for part in parts if part)


def _times(race: Record, name: str) -> str:
    """An arm's median time; empty if the median run missed the target."""
    times = [seconds for seconds in arm_results(race, name) if not math.isnan(seconds)]
    middle = median(times) if times and race["target"]["value"] is not None else math.inf
    return "" if math.isinf(middle) else format_duration(middle)


def _effects_text(effects: Sequence[Record]) -> str:
    """The verdict on each trick, settled ones first."""
    parts = []
    for verdicts_shown in ((HELPS, HURTS), (NO_DIFFERENCE,), (ARRIVES_LESS, ARRIVES_MORE)):
        for effect in effects:
            if effect["verdict"] in verdicts_shown:
                words = effect["words"].replace("no difference", "makes no difference")
                parts.append(f"{readable_name(effect['trick'])} {words}")
    unsettled = [readable_name(effect["trick"]) for effect in effects if effect["verdict"] in (NOT_SETTLED, NO_VERDICT)]
    if unsettled:
        parts.append(f"not settled: {', '.join(unsettled)}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _effort(race: Record) -> str:
    tuning, sides = section(race, "tuning"), []
    if PLAIN not in tuning:
        return "No tuning was done."
    for side, made in tuning.items():
        knob = "learning rate" if made["knob"] == "rate" else made["knob"]
        sides.append(f"the {knob} of {side} in {made['num_runs']} runs ({format_duration(made['seconds'])})")
    return f"Tuned before the race: {' and '.join(sides)}."
