"""The pictures of a race: accuracy against time, time to the target, what each trick is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heptane.metric_direction import lower_is_better
from heptane.race.arms import ALL, PLAIN
from heptane.race.findings import middle
from heptane.report import duration, label, measure
from heptane.report.curves import COLOURS, INK, draw_svg, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_OF_ARM = {PLAIN: COLOURS[1], ALL: COLOURS[0]}
_SIDES = {"alone": ("added to plain", -0.14, COLOURS[1], "o"), "without": ("left out of all", 0.14, COLOURS[0], "s")}
_ROW = 0.34  # inches of height per row


def accuracy_against_time(race: Record) -> str:
    """Validation accuracy (or the target's metric) against training seconds: a line per seed, a band over plain and all."""
    arms = [arm for arm in race["arms"] if any(run["curve"] for run in arm["runs"])]
    if not arms:
        return ""
    metric, target = race["target"]["metric"], race["target"]["value"]

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for arm in sorted(arms, key=lambda arm: arm["name"] in _OF_ARM):
            _curves(axes, arm)
        if target is not None:
            axes.axhline(target, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (3, 3)), label="target")
        dress(axes, "seconds of training", "accuracy" in metric)
        _zoom(axes, arms)
        picture.legend(loc="outside upper left", ncols=4, frameon=False, handlelength=1.6, columnspacing=1.2)

    spans = "; ".join(f"{arm['title']} reaches {measure(metric, _best(race, arm))}" for arm in arms)
    return draw_svg(draw, ident="accuracy-time", description=f"{label(metric)} against seconds of training: {spans}")


def time_to_target(race: Record) -> str:
    """A bar per arm to its median time, a dot per seed; a run that missed is an open mark where it gave up."""
    arms = [arm for arm in race["arms"] if any(_tried(run) is not None for run in arm["runs"])]
    if not arms or race["target"]["value"] is None:
        return ""

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for row, arm in enumerate(arms):
            colour = _OF_ARM.get(arm["name"], INK)
            reached = sorted(run["seconds"] for run in arm["runs"] if run["seconds"] is not None)
            missed = [_tried(run) or 0.0 for run in arm["runs"] if run["seconds"] is None and _tried(run) is not None]
            median = _median_time(arm)
            length = median if median is not None else max(missed, default=0.0)
            axes.barh(row, length, height=0.62, color=colour, alpha=0.35 if median is not None else 0.12)
            axes.plot(reached, [row] * len(reached), "o", color=colour, markersize=3.5)
            axes.plot(missed, [row] * len(missed), ">", color=colour, markersize=5, fillstyle="none")
            words = duration(median) if median is not None else "missed"
            end = max([length, *reached, *missed]), row
            axes.annotate(words, end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        _rows(axes, [arm["title"] for arm in arms], "seconds of training to the target")
        axes.set_xlim(0, 1.18 * axes.get_xlim()[1])

    words = "; ".join(f"{arm['title']} {_words(arm)}" for arm in arms)
    height = 0.75 + _ROW * len(arms)
    return draw_svg(draw, ident="time-to-target", description=f"Time to the target: {words}", height=height)


def worth_of_tricks(race: Record) -> str:
    """A forest plot: per trick what it saves alone and what is lost without it, with intervals; right of 1 it helps."""
    rows = [row for row in race["effects"] if any(row[key] and row[key]["estimate"] is not None for key in _SIDES)]
    if not rows:
        return ""
    ratio = race["target"]["value"] is not None

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        if ratio:
            axes.set_xscale("log")
        ends = [end for row in rows for key in ("alone", "without") for end in _ends(row[key]) if _drawable(end, ratio)]
        far = max((abs(math.log(end)) if ratio else abs(end) for end in ends), default=0.1) * 1.25 + 0.05 * ratio
        axes.set_xlim(*((math.exp(-far), math.exp(far)) if ratio else (-far, far)))
        axes.axvline(1 if ratio else 0, color=INK, alpha=0.55, linewidth=1)
        for index, row in enumerate(rows):
            for key, (_, shift, colour, mark) in _SIDES.items():
                _interval(axes, row[key], index + shift, colour, mark)
        for name, _, colour, mark in _SIDES.values():
            axes.plot([], [], color=colour, marker=mark, markersize=5, linewidth=1.6, label=name)
        times = "times the training time it saves; right of the line it helps"
        _rows(axes, [label(row["trick"]) for row in rows], times if ratio else "accuracy it brings")
        if ratio:
            _plain_ticks(axes)
        picture.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.6)

    words = "; ".join(f"{label(row['trick'])} {row['words']}" for row in rows)
    height = 1.0 + 1.35 * _ROW * len(rows)
    return draw_svg(draw, ident="worth", description=f"What each trick is worth: {words}", height=height)


def number(value: Any) -> float:
    """A number of ``race.json``, where an infinite one is text."""
    return math.nan if value is None else float(value)


def _curves(axes: Axes, arm: Record) -> None:
    shown = arm["name"] in _OF_ARM
    colour = _OF_ARM.get(arm["name"], INK)
    runs = [run["curve"] for run in arm["runs"] if run["curve"]]
    for index, curve in enumerate(runs):
        axes.plot(
            [point["seconds"] for point in curve],
            [point["value"] for point in curve],
            color=colour,
            alpha=1 if shown else 0.22,
            linewidth=1.3 if shown else 0.8,
            label=arm["title"] if shown and not index else "other arms" if not index and not _labelled(axes) else None,
        )
    if shown and len(runs) > 1:
        times, low, high = _band(runs)
        axes.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)


def _labelled(axes: Axes) -> bool:
    return "other arms" in axes.get_legend_handles_labels()[1]


def _band(runs: Sequence[Sequence[Record]]) -> tuple[list[float], list[float], list[float]]:
    """The lowest and the highest of the seeds at 60 times that all of them have."""
    import numpy as np

    begin = max(curve[0]["seconds"] for curve in runs)
    end = min(curve[-1]["seconds"] for curve in runs)
    if end <= begin:
        return [], [], []
    times = np.linspace(begin, end, 60)
    values = np.array([np.interp(times, [p["seconds"] for p in c], [p["value"] for p in c]) for c in runs])
    return times.tolist(), values.min(axis=0).tolist(), values.max(axis=0).tolist()


def _zoom(axes: Axes, arms: Sequence[Record]) -> None:
    """Leave out the first climb, which would press all that matters into one line."""
    values = sorted(point["value"] for arm in arms for run in arm["runs"] for point in run["curve"])
    low, high = values[len(values) // 20], values[-1]
    axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.08 * (high - low) + 1e-9)
    axes.set_xlim(left=0)


def _interval(axes: Axes, side: Record | None, row: float, colour: str, mark: str) -> None:
    if not side or side["estimate"] is None:
        return
    left, right = axes.get_xlim()
    at = min(max(number(side["estimate"]), left), right)
    ends = [min(max(end, left), right) for end in _ends(side)]
    axes.plot(ends, [row] * len(ends), color=colour, linewidth=1.6)
    beyond = number(side["estimate"]) != at
    axes.plot(
        [at],
        [row],
        ">" if beyond and at == right else "<" if beyond else mark,
        color=colour,
        markersize=5,
        clip_on=False,
    )


def _ends(side: Record | None) -> list[float]:
    return [number(end) for end in side["interval"] if end is not None] if side and side["estimate"] is not None else []


def _drawable(end: float, ratio: bool) -> bool:
    """Whether an end of an interval may widen the picture: not if it is infinite, or so far off that it says nothing."""
    return 0.1 < end < 10 if ratio else math.isfinite(end)


def _rows(axes: Axes, names: Sequence[str], x_label: str) -> None:
    dress(axes, x_label, False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=INK, alpha=0.14, linewidth=0.7)


def _plain_ticks(axes: Axes) -> None:
    """1, 2, 5 and their like as they are, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _tried(run: Record) -> float | None:
    found: float | None = run["clocks"].get("train") if run["status"] in ("reached", "missed", "stopped") else None
    return found


def _median_time(arm: Record) -> float | None:
    """The median over the seeds that ran; None where it is a time that was missed."""
    times = [math.inf if run["seconds"] is None else run["seconds"] for run in arm["runs"] if _tried(run) is not None]
    median = middle(times) if times else math.inf
    return None if math.isinf(median) else median


def _words(arm: Record) -> str:
    median = _median_time(arm)
    return "missed it" if median is None else duration(median)


def _best(race: Record, arm: Record) -> float | None:
    known = [run["best"] for run in arm["runs"] if run["best"] is not None]
    target = race["target"]
    pick = min if target.get("lower", lower_is_better(target["metric"])) else max
    return pick(known, default=None)
