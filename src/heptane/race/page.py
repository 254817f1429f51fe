"""The page of a race: the speed-up, the effect of each trick, and charts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from heptane.race.arms import ALL
from heptane.race.live import knob_text, outcome_text
from heptane.race.overview import key_figures, main_result
from heptane.race.pictures import accuracy_against_time, time_to_target, worth_of_tricks
from heptane.race.rows import RAN, arm_row, effect_row, not_raced_text, notes, ran
from heptane.report import readable_name, section
from heptane.report.curves import Line, line_chart
from heptane.report.html import byline, facts, render_template, write_page
from heptane.report.overview import subject

Record = Mapping[str, Any]


def write_race_report(race: Record, path: str | os.PathLike[str]) -> None:
    """Write ``report.html`` of a race; the file is replaced atomically."""
    write_page(race_page(race), path)


def race_page(race: Record) -> str:
    """The page of a race as HTML, from the content of ``race.json``, finished or not."""
    seeds = race["plan"]["seeds"]
    arms = [arm_row(race, arm, seeds) for arm in race["arms"] if ran(arm)]
    return render_template(
        "race_page.html.j2",
        title=race["headline"],
        headline=f"Race: {subject(race)}",
        byline=byline(race),
        main=main_result(race),
        key_figures=key_figures(race),
        summary=race["summary"],
        effects=[effect_row(race, effect) for effect in race["effects"]],
        not_raced=not_raced_text(race),
        charts=_charts(race),
        seeds=seeds,
        arms=arms,
        tests=any(row["test"] for row in arms),
        notes=notes(race),
        facts=[(title, pairs) for title, pairs in facts(race) if title not in ("All metrics", "Time")],
        tuning=_tuning_rows(race),
        command=str(race.get("command") or ""),
    )


def _charts(race: Record) -> list[dict[str, Any]]:
    import markupsafe

    every = next((arm for arm in race["arms"] if arm["name"] == ALL), None)
    schedule = next((run["schedule"] for run in every["runs"] if run["schedule"]), None) if every else None
    rate = ""
    if schedule and len(set(schedule["learning_rate"])) > 1:
        line = Line(name="learning rate", x=schedule["step"], y=schedule["learning_rate"])
        rate = line_chart([line], ident="rate", description="Learning rate of all by step", x_label="step")
    timed = race["target"]["value"] is not None
    curves = "Bold: median over the seeds. Faint: single seeds." + (" Dot: target reached." if timed else "")
    bars = "Bar: median. Dot: one seed. Open mark: a run that missed the target."
    intervals = "Line: the verdict's interval. Green helps, orange hurts, grey is not settled."
    charts = [
        ("Effect of each trick", worth_of_tricks(race), intervals),
        (f"{readable_name(race['target']['metric'])} over training time", accuracy_against_time(race), curves),
        ("Time to the target", time_to_target(race), bars + _uneven(race)),
        ("Learning rate of all", rate, ""),
    ]
    return [{"title": t, "svg": markupsafe.Markup(svg), "caption": caption} for t, svg, caption in charts if svg]


def _uneven(race: Record) -> str:
    """A remark if the bars stand for different seeds."""
    seeds = {frozenset(run["seed"] for run in arm["runs"] if run["status"] in RAN) for arm in race["arms"] if ran(arm)}
    return " Arms that ended early have fewer seeds: compare dots, not bars." if len(seeds) > 1 else ""


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
