"""What a race found: the speed-up, what each trick is worth, and a paragraph that says it in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median as _median
from typing import Any

from heptane.probe import NOTHING_PAYS
from heptane.race import statistics
from heptane.race.arms import ALL, PLAIN
from heptane.race.attempt import FAILED, NOT_RUN, REFUSED
from heptane.race.statistics import HELPS, HURTS, NO_EFFECT, NOT_APPLICABLE, Effect, Estimate
from heptane.report import duration, measure
from heptane.tricks import KINDS

Record = Mapping[str, Any]


def findings(race: Record, reasons: Mapping[str, str]) -> dict[str, Any]:
    """``speedup``, ``effects``, ``sentence`` and ``summary`` of a race's record, as far as it has got.

    Args:
        race: the content of ``race.json``.
        reasons: for each trick why it was chosen or not.
    """
    speedup, kind = _speedup(race)
    found: dict[str, Any] = {"speedup": {"kind": kind, **speedup.record()}}
    found["effects"] = [_effect(race, name, reasons.get(name, "")) for name in KINDS]
    found["sentence"] = sentence(race, speedup)
    found["summary"] = _summary(race, found)
    return found


def outcomes(race: Record, name: str) -> list[float | None]:
    """Per seed what an arm came to: seconds to the target (None where it missed) or accuracy; NaN where it was not run."""
    runs = {run["seed"]: run for run in _arm(race, name)["runs"]}
    return [_outcome(race, runs.get(seed)) for seed in race["plan"]["seeds"]]


def sentence(race: Record, speedup: Estimate) -> str:
    """The result in one sentence: ``3.4 times faster to 91.0% on this machine (95% interval 2.9 to 4.0, ...)``."""
    goal, median = goal_text(race), speedup.median
    absent = [name for name in (PLAIN, ALL) if not any(arm["name"] == name for arm in race["arms"])]
    if absent:
        return f"No speed-up is known: this race has no arm {' and none '.join(absent)}."
    plain, every = outcomes(race, PLAIN), outcomes(race, ALL)
    if race["target"]["value"] is None:
        if median is None:
            return f"No seed has both plain and all {goal}."
        more = "more" if median >= 0 else "less"
        return f"{100 * abs(median):.2f} points {more} accuracy {goal} ({interval_text(speedup, points=True)})"
    if median is None:
        bound = _at_least(race, every)
        if bound:
            return bound
        tried = sum(value is None for value in (*plain, *every))
        return f"Neither plain nor all reached {goal}." if tried else f"No seed has both plain and all to {goal} yet."
    if median == math.inf:
        seconds = [value for value in every if value is not None and not math.isnan(value)]
        took = f" in {duration(middle(seconds))}" if seconds else ""
        return f"With the tricks it reached {goal}{took} {_count(every, True)}; plain did not, {_count(plain, False)}."
    if median == 0:
        return f"Plain reached {goal} {_count(plain, True)}; with the tricks it did not, {_count(every, False)}."
    factor, word = (median, "faster") if median >= 1 else (1 / median, "slower")
    return f"{factor:.3g} times {word} to {goal} on this machine ({interval_text(speedup, inverse=median < 1)})"


def _at_least(race: Record, every: Sequence[float | None]) -> str:
    """What is known where all arrived and the budget ended while plain, with the same seed, was still on its way."""
    runs = {run["seed"]: run for run in _arm(race, PLAIN)["runs"] if run["status"] == NOT_RUN}
    tried = [runs.get(seed, {}).get("clocks", {}).get("train", 0.0) for seed in race["plan"]["seeds"]]
    pairs = [(cut / took, took, cut) for cut, took in zip(tried, every, strict=True) if took and cut > took]
    if not pairs:
        return ""
    ratio, took, cut = min(pairs)
    seeds = f"{len(pairs)} seed{'' if len(pairs) == 1 else 's'}"
    return (
        f"At least {math.floor(10 * ratio) / 10:g} times faster to {goal_text(race)} on this machine ({duration(took)} with "
        f"the tricks; plain had not reached it after {duration(cut)}, when the budget ended; {seeds}: no interval)"
    )


def goal_text(race: Record) -> str:
    """The target in a few words: ``91.0%``, ``a validation loss of 0.3``, ``in 60 s``."""
    target = race["target"]
    if target["value"] is None:
        return f"in {duration(target['seconds'])} of training"
    if target["metric"] == "valid_accuracy":
        return measure("accuracy", target["value"])
    return f"{target['metric'].replace('valid_', 'a validation ').replace('_', ' ')} of {target['value']:g}"


def interval_text(estimate: Estimate, *, inverse: bool = False, points: bool = False) -> str:
    """``95% interval 2.9 to 4.0, 5 seeds``; with few seeds it says that the interval is weak."""
    count = len(estimate.values)
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    if count < 2 or estimate.low is None or estimate.high is None:
        return f"{seeds}: no interval"
    low, high = (estimate.low, estimate.high) if not inverse else (1 / estimate.high, 1 / (estimate.low or 1e-300))
    scale, form = (100, ".2f") if points else (1, ".3g")
    ends = " to ".join("any number" if math.isinf(end) else format(scale * end, form) for end in (low, high))
    unit = " points" if points else ""
    unit += ", no difference among them" if estimate.low <= (0 if points else 1) <= estimate.high else ""
    weak = f": a weak interval, {statistics.ENOUGH_SEEDS} would do" if estimate.weak else ""
    return f"95% interval {ends}{unit}, {seeds}{weak}"


def middle(times: Sequence[float]) -> float:
    """The median; infinite where an infinite time is in the middle."""
    return float(_median(times))


def _count(values: Sequence[float | None], reached: bool) -> str:
    """``in 2 of 3 seeds``: of those that were run, how many reached the target, or did not."""
    ran = [value for value in values if value is None or not math.isnan(value)]
    return f"in {sum((value is not None) == reached for value in ran)} of {len(ran)} seeds"


def _speedup(race: Record) -> tuple[Estimate, str]:
    plain, every = outcomes(race, PLAIN), outcomes(race, ALL)
    if race["target"]["value"] is None:
        return statistics.gain(_numbers(plain), _numbers(every)), "points"
    return statistics.speedup(plain, every), "ratio"


def _effect(race: Record, trick: str, reason: str) -> dict[str, Any]:
    """One trick's row."""
    blocked = _not_applicable(race, trick, reason)
    if blocked:
        return {"trick": trick, "verdict": NOT_APPLICABLE, "why": blocked, "alone": None, "without": None, "estimate": None}
    alone, without = _side(race, f"plain+{trick}", trick, added=True), _side(race, f"all-{trick}", trick, added=False)
    if alone is None and without is None:
        why = "not measured: this race had no arm that tells; run it with all arms"
        return {"trick": trick, "verdict": NOT_APPLICABLE, "why": why, "alone": None, "without": None, "estimate": None}
    plain, every = outcomes(race, PLAIN), outcomes(race, ALL)
    if race["target"]["value"] is None:
        sides = [None if side is None else _numbers(side) for side in (alone, without)]
        effect: Effect = statistics.effect_on_accuracy(_numbers(plain), _numbers(every), *sides)
    else:
        effect = statistics.effect_on_time(plain, every, alone, without)
    parts = {"alone": effect.alone, "without": effect.without, "estimate": effect.pooled}
    return {
        "trick": trick,
        "verdict": effect.verdict,
        "why": effect.why,
        **{key: None if part is None else part.record() for key, part in parts.items()},
    }


def _side(race: Record, name: str, trick: str, *, added: bool) -> list[float | None] | None:
    """The outcomes of the arm ``name``, or of the one that runs the same tricks under another name; None without one."""
    chosen = list(_arm(race, ALL)["tricks"])
    wanted = {trick} if added else set(chosen) - {trick}
    arm = next((arm for arm in race["arms"] if set(arm["tricks"]) == wanted), None)
    if arm is None:
        return None
    found = outcomes(race, arm["name"])
    return None if all(value is not None and math.isnan(value) for value in found) else found


def _not_applicable(race: Record, trick: str, reason: str) -> str:
    if trick not in _arm(race, ALL)["tricks"]:
        return reason or "not in the set that was raced"
    with_it = [run for name in (ALL, f"plain+{trick}") for run in _arm(race, name)["runs"]]
    decided = [run["why"][trick] for run in with_it if trick in run["why"]]
    if decided and all(NOTHING_PAYS in why for why in decided):
        return str(decided[0])
    refused = [
        run["note"] for arm in race["arms"] for run in arm["runs"] if run["status"] == REFUSED and trick in arm["name"]
    ]
    return refused[0] if refused else ""


def _arm(race: Record, name: str) -> Record:
    none: Record = {"name": name, "tricks": {}, "runs": []}
    return next((arm for arm in race["arms"] if arm["name"] == name), none)


def _outcome(race: Record, run: Record | None) -> float | None:
    if run is None or run["status"] in (NOT_RUN, REFUSED):
        return math.nan
    if race["target"]["value"] is None:
        return math.nan if run["status"] == FAILED or run["best"] is None else float(run["best"])
    return None if run["seconds"] is None else float(run["seconds"])


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _summary(race: Record, found: Record) -> str:
    """A paragraph that could be pasted into a message."""
    environment, settings = race["environment"], race.get("settings") or {}
    model = (race.get("model") or {}).get("name") or "the model"
    data = (race.get("data") or {}).get("name") or "the data"
    machine = f"{environment.get('cores_usable') or environment.get('cores')} cores of {environment.get('cpu')}"
    gpus = environment.get("gpus") or []
    if gpus:
        machine = ", ".join(gpus)
    first = f"{model} on {data} ({machine}): {_lowered(found['sentence'])}".rstrip(".")
    plain, every = (_times(race, name) for name in (PLAIN, ALL))
    took = f" Training took {every} with the tricks and {plain} without." if plain and every else ""
    parts = [f"{first}.{took}", _effects_text(race, found["effects"])]
    effort = _effort(race)
    if effort:
        parts.append(effort)
    if settings.get("optimizer"):
        parts.append(f"Plain is {settings['optimizer']} in 32 bits at a constant rate, on the same loop and data.")
    return " ".join(part for part in parts if part)


def _times(race: Record, name: str) -> str:
    """The middle one of an arm's times; nothing where that one missed the target."""
    times = [math.inf if v is None else v for v in outcomes(race, name) if v is None or not math.isnan(v)]
    if race["target"]["value"] is None or not times or math.isinf(middle(times)):
        return ""
    return duration(middle(times))


def _effects_text(race: Record, effects: Sequence[Record]) -> str:
    said = []
    for verdict, word in ((HELPS, "helped"), (HURTS, "hurt here"), (NO_EFFECT, "had no effect that was detected")):
        found = [effect for effect in effects if effect["verdict"] == verdict]
        names = [effect["trick"].replace("_", " ") + _worth(race, effect) for effect in found]
        if names:
            said.append(f"{_list(names)} {word}")
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _worth(race: Record, effect: Record) -> str:
    median = effect["estimate"]["median"]
    if not isinstance(median, float) or effect["verdict"] == NO_EFFECT:
        return ""
    if median == 0:
        return " (without it the target is reached)"
    return f" ({median:.3g} times)" if race["target"]["value"] is not None else f" ({100 * median:+.2f} points)"


def _effort(race: Record) -> str:
    tuning = race.get("tuning") or {}
    if PLAIN not in tuning:
        return "Nothing was tuned before the race."
    sides = []
    for side, name in ((PLAIN, "of plain"), (ALL, "with the tricks")):
        if side in tuning:
            made = tuning[side]
            sides.append(f"the {made['knob']} {name} in {made['num_runs']} runs ({duration(made['seconds'])})")
    return f"Tuned before the race: {' and '.join(sides)}."


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
