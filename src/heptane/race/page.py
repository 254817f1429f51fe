"""The page of a race: the speed-up, the effect of each trick, and charts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from heptane.race.arms import ALL, PLAIN, find_arm
from heptane.race.headline import factors
from heptane.race.live import knob_text, outcome_text
from heptane.race.pictures import accuracy_against_time, time_to_target, worth_of_tricks
from heptane.race.rows import RAN, arm_median, arm_row, effect_row, not_raced_text, notes, ran
from heptane.race.target import goal_text
from heptane.race.verdicts import HELPS, HURTS, NO_DIFFERENCE
from heptane.report import format_duration, readable_name, section
from heptane.report.curves import Line, line_chart
from heptane.report.html import byline, facts, render_template, write_page
from heptane.report.overview import Figure, MainResult, subject

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


def main_result(race: Record) -> MainResult:
    """The speed-up as one number, if there is a verdict on it."""
    speedup, timed = race["speedup"], race["target"]["value"] is not None
    if speedup["verdict"] not in (HELPS, HURTS) or speedup["estimate"] is None:
        big = "no difference" if speedup["verdict"] == NO_DIFFERENCE else "not proven"
        return MainResult(big, race["headline"], speedup["why"], words=True)
    tone = "good" if speedup["verdict"] == HELPS else "bad"
    if timed:
        value, low, high = factors(speedup)
        big, ends = f"{value:.3g}×", f"{low:.3g}× to {'any number' if math.isinf(high) else f'{high:.3g}×'}"
        slower = float(speedup["estimate"]) < 1
        what = f"{'slower' if slower else 'faster'} to {goal_text(race)} with the tricks than without"
    else:
        value, low, high = (float(number) for number in (speedup["estimate"], *speedup["interval"]))
        big, ends = f"{100 * value:+.2g} points", f"{100 * low:+.2g} to {100 * high:+.2g}"
        what = f"of accuracy after {format_duration(race['target']['seconds'])} of training with the tricks"
    count = speedup["num_seeds"]
    on = f"on this machine; {100 * speedup['confidence']:g}% interval {ends}, {count} seed{'' if count == 1 else 's'}"
    return MainResult(big, what, on, tone, words=not timed)


def key_figures(race: Record) -> list[Figure]:
    """The median of plain and of all, the number of seeds, and the duration of the race."""
    found = []
    for name, title in ((PLAIN, "without tricks"), (ALL, "with tricks")):
        text, detail = arm_median(race, find_arm(race, name))
        if text:
            found.append(Figure(title, text, detail))
    runs = [run for arm in race["arms"] for run in arm["runs"] if run["status"] in RAN]
    seeds = {run["seed"] for run in runs}.intersection(race["plan"]["seeds"])
    if seeds:
        found.append(Figure("seeds", str(len(seeds)), f"{len(runs)} runs, the same seeds in each arm"))
    if race.get("elapsed_seconds"):
        found.append(Figure("race duration", format_duration(race["elapsed_seconds"]), "including tuning"))
    return found


def _charts(race: Record) -> list[dict[str, Any]]:
    import markupsafe

    schedule = next((run["schedule"] for run in find_arm(race, ALL)["runs"] if run["schedule"]), None)
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
