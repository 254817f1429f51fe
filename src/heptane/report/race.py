"""A race on one page, and as tables at the terminal."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heptane.race.arms import ALL, PLAIN
from heptane.race.findings import middle
from heptane.race.verdicts import HELPS, HURTS
from heptane.report import duration, figure, label, measure, section, settings_text
from heptane.report.console import make_console, make_table, printable
from heptane.report.curves import Line, line_chart
from heptane.report.html import byline, facts, fill, write_page
from heptane.report.live import knob_text, outcome_text
from heptane.report.race_charts import accuracy_against_time, number, time_to_target, worth_of_tricks

Record = Mapping[str, Any]


def write_race_report(race: Record, path: str | os.PathLike[str]) -> None:
    """Write ``report.html`` of a race.

    Args:
        race: the content of ``race.json``, finished or not.
        path: where to write; the file is replaced in one step.
    """
    from heptane.report.race_page import race_page

    write_page(race_page(race), path)


def render(race: Record) -> str:
    """The page of a race as text."""
    seeds = race["plan"]["seeds"]
    return fill(
        "race.html.j2",
        title=race["headline"],
        headline=race["headline"],
        byline=byline(race),
        cards=_cards(race),
        notes=_notes(race),
        summary=race["summary"],
        charts=_charts(race),
        effects=[_effect_row(race, effect) for effect in race["effects"]],
        seeds=seeds,
        arms=[_arm_row(race, arm, seeds) for arm in race["arms"]],
        facts=[(title, pairs) for title, pairs in facts(race) if title not in ("All measures", "Clocks")],
        tuning=_tuning_rows(race),
        command=str(race.get("command") or ""),
    )


def race_summary(race: Record, files: Mapping[str, str | Path]) -> None:
    """Print what a race came to: arms by seeds, what each trick is worth, the paragraph, the files, the headline."""
    console = make_console(sys.stdout)
    seeds = race["plan"]["seeds"]
    arms = make_table(
        ("arm", None), *((f"seed {seed}", None) for seed in seeds), ("median", None), ("test", None), heading=True
    )
    for arm in race["arms"]:
        row = _arm_row(race, arm, seeds)
        arms.add_row(*(printable(cell, sys.stdout) for cell in (row["title"], *row["cells"], row["median"], row["test"])))
    tricks = make_table(("trick", None), ("worth", None), ("alone", None), ("left out", None), heading=True)
    for effect in race["effects"]:
        row = _effect_row(race, effect)
        worth = "; ".join(filter(None, [effect["words"], effect["why"]]))
        tricks.add_row(*(printable(text, sys.stdout) for text in (row["title"], worth, row["alone"], row["without"])))
    for table in (arms, tricks) if race["effects"] else (arms,):
        console.print()
        console.print(table)
    for text in (not_raced_text(race), *_notes(race), race["summary"]):
        if text:
            console.print()
            console.print(printable(text, sys.stdout))
    console.print()
    width = max(map(len, files), default=0)
    for name, path in files.items():
        console.print(f"{name:<{width}}  {printable(str(path), sys.stdout)}", soft_wrap=True)
    console.print()
    console.print(printable(race["headline"], sys.stdout), style="bold", soft_wrap=True)


def not_raced_text(race: Record) -> str:
    """One line that names the tricks that were not measured, with the reason of each; empty where all were."""
    named = [f"{label(row['trick'])} ({row['why']})" for row in race["not_raced"]]
    return f"Not raced: {', '.join(named)}." if named else ""


def _cards(race: Record) -> list[dict[str, str]]:
    speedup, timed = race["speedup"], race["target"]["value"] is not None
    proven = speedup["verdict"] in (HELPS, HURTS) and speedup["estimate"] is not None
    value = _side_value(speedup, timed) if proven else "not proven"
    tone = {HELPS: "good", HURTS: "bad"}.get(speedup["verdict"], "")
    cards = [_card("all against plain", value, _interval_text(speedup, timed) if proven else speedup["words"], tone)]
    for name in (PLAIN, ALL):
        arm = next((arm for arm in race["arms"] if arm["name"] == name), None)
        if arm:
            row = _arm_row(race, arm, [])
            cards.append(_card(name, row["median"], f"test accuracy {row['test']}" if row["test"] != "–" else "", ""))
    cards.append(_card("seeds", str(speedup["num_seeds"]), "paired", ""))
    return [*cards, _card("the race took", duration(race["elapsed_seconds"]), "tuning included", "")]


def _card(name: str, value: str, detail: str, tone: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail, "tone": tone}


def _notes(race: Record) -> list[str]:
    notes = [str(note) for note in race.get("notes") or []]
    if race["status"] != "done":
        notes.append(f"This race is {race['status']}: what is missing has not been run yet.")
    alike: dict[str, list[str]] = {}
    for arm in race["arms"]:
        for run in arm["runs"]:
            if run["status"] in ("failed", "refused", "stopped", "not run"):
                what = run["note"] if run["status"] == "stopped" else f"{run['status']}: {run['note']}"
                alike.setdefault(what, []).append(f"{arm['title']}, seed {run['seed']}")
    for what, which in alike.items():
        notes.append(f"{'; '.join(which) if len(which) <= 3 else f'{len(which)} runs'}: {what}")
    return notes


def _charts(race: Record) -> list[dict[str, Any]]:
    import markupsafe

    every = next((arm for arm in race["arms"] if arm["name"] == ALL), None)
    schedule = next((run["schedule"] for run in every["runs"] if run["schedule"]), None) if every else None
    rate = ""
    if schedule:
        line = Line(name="learning rate", x=schedule["step"], y=schedule["learning_rate"])
        rate = line_chart([line], ident="rate", description="Learning rate of all by step", x_label="step")
    charts = [
        ("What each trick is worth", worth_of_tricks(race), "Lines are the intervals; arrows lie outside the picture."),
        ("Time to the target", time_to_target(race), "A bar ends at the median, a dot is a seed; an open mark missed."),
        (label(race["target"]["metric"]), accuracy_against_time(race), "A line is a seed; the band is their spread."),
        ("Learning rate of all", rate, ""),
    ]
    return [{"title": t, "svg": markupsafe.Markup(svg), "caption": caption} for t, svg, caption in charts if svg]


def _effect_row(race: Record, effect: Record) -> dict[str, str]:
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
    ends = _interval_text(side, timed)
    return f"{_side_value(side, timed)} ({ends})" if ends else f"{_side_value(side, timed)} (one seed)"


def _side_value(side: Record, timed: bool) -> str:
    value = number(side["estimate"])
    return f"{value:.3g}x" if timed else f"{100 * value:+.2f} points"


def _interval_text(side: Record, timed: bool) -> str:
    low, high = (number(end) for end in side["interval"])
    if not all(map(math.isfinite, (low, high))):
        return ""
    scale, form = (1, ".3g") if timed else (100, "+.2f")
    return " to ".join(format(scale * end, form) for end in (low, high))


def _arm_row(race: Record, arm: Record, seeds: list[int]) -> dict[str, Any]:
    metric, runs = race["target"]["metric"], {run["seed"]: run for run in arm["runs"]}
    ran = [run for run in arm["runs"] if run["status"] in ("reached", "missed", "stopped", "failed", "done")]
    if race["target"]["value"] is None:
        values = sorted(run["best"] for run in ran if run["best"] is not None)
        median = measure(metric, middle(values), 2) if values else "–"
    else:
        times = [float("inf") if run["seconds"] is None else run["seconds"] for run in ran]
        median = "–" if not times else "missed" if middle(times) == float("inf") else duration(middle(times))
    tests = sorted(run["metrics"]["test_accuracy"] for run in ran if "test_accuracy" in run["metrics"])
    return {
        "name": arm["name"],
        "title": arm["title"],
        "cells": [outcome_text(runs[seed], metric) if seed in runs else "–" for seed in seeds],
        "median": median,
        "test": measure("test_accuracy", middle(tests), 2) if tests else "–",
        "plan": f"rate times {figure(arm['rate'])}, at most {arm['epochs']:.3g} epochs",
        "settings": [(name.replace("_", " "), settings_text(settings)) for name, settings in arm["tricks"].items()],
    }


def _tuning_rows(race: Record) -> list[dict[str, str]]:
    rows = []
    for side, tuned in section(race, "tuning").items():
        for trial in race["trials"]:
            if trial["side"] == side:
                again = ", second seed" if trial["again"] else ""
                text = outcome_text(trial["attempt"], race["target"]["metric"])
                chosen = "chosen" if trial["value"] == tuned["chosen"] else ""
                rows.append(
                    {"side": side, "knob": knob_text(tuned["knob"], trial["value"]) + again, "text": text, "chosen": chosen}
                )
    return rows
