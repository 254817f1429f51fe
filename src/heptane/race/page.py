"""The page of a race: one large number or "not proven", what each trick is worth, and the pictures that say the same."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from heptane.race.arms import ALL
from heptane.race.hero import arm_median, middle_of, race_glance, race_hero
from heptane.race.live import knob_text, outcome_text
from heptane.race.pictures import accuracy_against_time, time_to_target, worth_of_tricks
from heptane.race.reading import RAN, not_raced_text, number, ran
from heptane.race.verdicts import HELPS, HURTS
from heptane.report import figure, label, measure, section
from heptane.report.curves import Line, line_chart
from heptane.report.first import subject
from heptane.report.html import byline, facts, fill, write_page

Record = Mapping[str, Any]


def write_race_report(race: Record, path: str | os.PathLike[str]) -> None:
    """Write ``report.html`` of a race; the file is replaced in one step."""
    write_page(race_page(race), path)


def race_page(race: Record) -> str:
    """The page of a race as text, from the content of ``race.json``, finished or not."""
    seeds = race["plan"]["seeds"]
    arms = [arm_row(race, arm, seeds) for arm in race["arms"] if ran(arm)]
    return fill(
        "race_page.html.j2",
        title=race["headline"],
        headline=f"Race: {subject(race)}",
        byline=byline(race),
        hero=race_hero(race),
        glance=race_glance(race),
        summary=race["summary"],
        effects=[effect_row(race, effect) for effect in race["effects"]],
        not_raced=not_raced_text(race),
        charts=_charts(race),
        seeds=seeds,
        arms=arms,
        tests=any(row["test"] for row in arms),
        notes=notes(race),
        facts=[(title, pairs) for title, pairs in facts(race) if title not in ("All measures", "Clocks")],
        tuning=_tuning_rows(race),
        command=str(race.get("command") or ""),
    )


def notes(race: Record) -> list[str]:
    """What is to be said of a race beside its figures."""
    said = [str(note) for note in race.get("notes") or []]
    if race["status"] != "done":
        said.append(f"This race is {race['status']}: what is missing has not been run yet.")
    alike: dict[str, list[str]] = {}
    for arm in race["arms"]:
        for run in arm["runs"]:
            if run["status"] in ("failed", "refused", "stopped", "not run"):
                what = run["note"] if run["status"] == "stopped" else f"{run['status']}: {run['note']}"
                alike.setdefault(what, []).append(f"{arm['title']}, seed {run['seed']}")
    for what, which in alike.items():
        said.append(f"{'; '.join(which) if len(which) <= 3 else f'{len(which)} runs'}: {what}")
    return said


def _charts(race: Record) -> list[dict[str, Any]]:
    import markupsafe

    every = next((arm for arm in race["arms"] if arm["name"] == ALL), None)
    schedule = next((run["schedule"] for run in every["runs"] if run["schedule"]), None) if every else None
    rate = ""
    if schedule and len(set(schedule["learning_rate"])) > 1:
        line = Line(name="learning rate", x=schedule["step"], y=schedule["learning_rate"])
        rate = line_chart([line], ident="rate", description="Learning rate of all by step", x_label="step")
    timed = race["target"]["value"] is not None
    middle = "The middle of the seeds, which are drawn faint" + ("; a dot is where it reaches the target." if timed else ".")
    bars = "A bar ends at the median, a dot is a seed; an open mark is a run that did not reach it."
    ends = "A line is the interval that the verdict goes by: green helps, orange hurts, grey is not settled."
    charts = [
        ("What each trick is worth", worth_of_tricks(race), ends),
        (f"{label(race['target']['metric'])} over training time", accuracy_against_time(race), middle),
        ("Time to the target", time_to_target(race), bars + _uneven(race)),
        ("Learning rate of all", rate, ""),
    ]
    return [{"title": t, "svg": markupsafe.Markup(svg), "caption": caption} for t, svg, caption in charts if svg]


def _uneven(race: Record) -> str:
    """A remark where bars stand for different seeds."""
    seeds = {frozenset(run["seed"] for run in arm["runs"] if run["status"] in RAN) for arm in race["arms"] if ran(arm)}
    return " Arms that ended early have fewer seeds: compare their dots, not their bars." if len(seeds) > 1 else ""


def effect_row(race: Record, effect: Record) -> dict[str, str]:
    """A trick's row as texts."""
    timed = race["target"]["value"] is not None
    return {
        "title": label(effect["trick"]),
        "alone": _side_text(effect["alone"], timed),
        "without": _side_text(effect["without"], timed),
        "verdict": effect["words"],
        "why": effect["why"],
        "tone": {HELPS: "good", HURTS: "bad"}.get(effect["verdict"], ""),
    }


def _side_text(side: Record | None, timed: bool) -> str:
    if not side or side["estimate"] is None:
        return "–"
    value, (low, high) = number(side["estimate"]), (number(end) for end in side["interval"])
    said = f"{value:.3g}x" if timed else f"{100 * value:+.2f} points"
    if not all(map(math.isfinite, (low, high))):
        return f"{said} (no interval)"
    scale, form = (1, ".3g") if timed else (100, "+.2f")
    return f"{said} ({scale * low:{form}} to {scale * high:{form}})"


def arm_row(race: Record, arm: Record, seeds: list[int]) -> dict[str, Any]:
    """An arm's row as texts: an outcome per seed, the median, the test accuracy, the plan."""
    metric, runs = race["target"]["metric"], {run["seed"]: run for run in arm["runs"]}
    tests = sorted(
        run["metrics"]["test_accuracy"] for run in arm["runs"] if run["status"] in RAN and "test_accuracy" in run["metrics"]
    )
    return {
        "title": arm["title"],
        "cells": [outcome_text(runs[seed], metric) if seed in runs else "–" for seed in seeds],
        "median": arm_median(race, arm)[0] or "–",
        "test": measure("test_accuracy", middle_of(tests), 2) if tests else "",
        "plan": f"rate times {figure(arm['rate'])}, at most {arm['epochs']:.3g} epochs",
    }


def _tuning_rows(race: Record) -> list[dict[str, str]]:
    rows = []
    for side, tuned in section(race, "tuning").items():
        for trial in race["trials"]:
            if trial["side"] == side:
                again = ", second seed" if trial["again"] else ""
                text = outcome_text(trial["attempt"], race["target"]["metric"])
                chosen = "chosen" if trial["value"] == tuned["chosen"] else ""
                knob = knob_text(tuned["knob"], trial["value"]) + again
                rows.append({"side": side, "knob": knob, "text": text, "chosen": chosen})
    return rows
