"""Charts of a race: accuracy over time, time to the target, effect of each trick."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from heptane.core.metric_direction import lower_is_better
from heptane.race.arms import ALL, PLAIN
from heptane.race.rows import number
from heptane.race.verdicts import HELPS, HURTS
from heptane.report import format_duration, format_metric, readable_name
from heptane.report.curves import BAD, COLOURS, GOOD, INK, draw_svg, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_OF_ARM = {PLAIN: COLOURS[1], ALL: COLOURS[0]}
_ROW = 0.34  # inches of height per row
LEVELS = 80  # points of a median curve


def accuracy_against_time(race: Record) -> str:
    """The target's metric over training time: each arm's median curve; single seeds of plain and all are faint."""
    arms = [arm for arm in race["arms"] if any(run["curve"] for run in arm["runs"])]
    if not arms:
        return ""
    metric, target = race["target"]["metric"], race["target"]["value"]

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for arm in sorted(arms, key=lambda arm: arm["name"] in _OF_ARM):
            _curves(axes, race, arm)
        if target is not None:
            axes.axhline(target, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (3, 3)), label="target")
        style_axes(axes, "training time in seconds", "accuracy" in metric)
        _zoom(axes, arms)
        picture.legend(loc="outside upper left", ncols=4, frameon=False, handlelength=1.6, columnspacing=1.2)

    spans = "; ".join(f"{arm['title']} reaches {format_metric(metric, _best(race, arm))}" for arm in arms)
    return draw_svg(draw, ident="accuracy-time", description=f"{readable_name(metric)} over training time: {spans}")


def time_to_target(race: Record) -> str:
    """Per arm, a bar to the median time and a dot per seed.

    An open mark is where a run ended that missed the target. An arm whose median run missed has no bar.
    """
    arms = [arm for arm in race["arms"] if any(_tried(run) is not None for run in arm["runs"])]
    if not arms or race["target"]["value"] is None:
        return ""

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        for row, arm in enumerate(arms):
            colour = _OF_ARM.get(arm["name"], INK)
            reached = sorted(run["seconds"] for run in arm["runs"] if run["seconds"] is not None)
            missed = [_tried(run) or 0.0 for run in arm["runs"] if run["seconds"] is None and _tried(run) is not None]
            middle = _median_time(arm)
            if middle is not None:
                axes.barh(row, middle, height=0.62, color=colour, alpha=0.3)
            axes.plot(reached, [row] * len(reached), "o", color=colour, markersize=3.5)
            axes.plot(missed, [row] * len(missed), ">", color=colour, markersize=5, fillstyle="none")
            end = max([middle or 0.0, *reached, *missed]), row
            axes.annotate(_words(arm), end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        _rows(axes, [arm["title"] for arm in arms], "training time to the target in seconds")
        axes.set_xlim(0, 1.3 * axes.get_xlim()[1])

    words = "; ".join(f"{arm['title']} {_words(arm)}" for arm in arms)
    height = 0.75 + _ROW * len(arms)
    return draw_svg(draw, ident="time-to-target", description=f"Time to the target: {words}", height=height)


def worth_of_tricks(race: Record) -> str:
    """A forest plot: per trick, its estimate and the interval of its verdict; right of the line it helps."""
    rows = [row for row in race["effects"] if row["estimate"] is not None and _ends(row)]
    if not rows:
        return ""
    ratio = race["target"]["value"] is not None

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        if ratio:
            axes.set_xscale("log")
        seen = [end for row in rows for end in [*_ends(row), number(row["estimate"])] if _drawable(end, ratio)]
        far = max((abs(math.log(end)) if ratio else abs(end) for end in seen), default=0.1) * 1.15 + 0.05 * ratio
        axes.set_xlim(*((math.exp(-far), math.exp(far)) if ratio else (-far, far)))
        axes.axvline(1 if ratio else 0, color=INK, alpha=0.55, linewidth=1)
        for index, row in enumerate(rows):
            _interval(axes, row, index)
        times = "speed-up with the trick (right of the line: helps)"
        _rows(axes, [readable_name(row["trick"]) for row in rows], times if ratio else "accuracy gained")
        if ratio:
            _plain_ticks(axes)

    words = "; ".join(f"{readable_name(row['trick'])} {row['words']}" for row in rows)
    height = 0.75 + 1.1 * _ROW * len(rows)
    return draw_svg(draw, ident="worth", description=f"Effect of each trick: {words}", height=height)


def median_curve(race: Record, arm: Record) -> tuple[list[float], list[float]]:
    """Seconds and values of an arm's median curve: per value, the median of the times at which the seeds first had it.

    In a race to a target the curve ends at the median time, or below the target if the median run missed it. In a race for
    accuracy it is the median of the values at each time.
    """
    runs = [run for run in arm["runs"] if run["curve"]]
    if race["target"]["value"] is None:
        return _median_values([run["curve"] for run in runs])
    sign = -1.0 if _lower_is_better(race) else 1.0
    target = sign * race["target"]["value"]
    climbs = [list(_climb(run, sign, target)) for run in runs]
    low = max(climb[0][1] for climb in climbs)
    high = min(target, max(climb[-1][1] for climb in climbs))
    if high <= low:
        return [], []
    found: list[tuple[float, float]] = []
    for step in range(LEVELS + 1):
        level = high if step == LEVELS else low + (high - low) * step / LEVELS  # the last one exact: it may be the target
        at = median(_when(climb, level) for climb in climbs)
        if not math.isfinite(at):
            break
        found.append((at, sign * level))
    return [at for at, _ in found], [value for _, value in found]


def _climb(run: Record, sign: float, target: float) -> Iterator[tuple[float, float]]:
    """A run's best value so far, up to the target, which it reaches at the recorded time."""
    best = -math.inf
    for point in run["curve"]:
        value = sign * point["value"]
        if run["seconds"] is not None and (point["seconds"] >= run["seconds"] or value >= target):
            continue
        if value > best:
            best = min(value, target) if run["seconds"] is not None else value
            yield point["seconds"], best
    if run["seconds"] is not None:
        yield run["seconds"], target
    elif best == -math.inf:
        yield 0.0, best


def _when(climb: Sequence[tuple[float, float]], level: float) -> float:
    """When a run first had a value, interpolated linearly between evaluations; infinite if never."""
    before: tuple[float, float] | None = None
    for at, value in climb:
        if value >= level:
            if before is None or value == before[1]:
                return at
            return before[0] + (at - before[0]) * (level - before[1]) / (value - before[1])
        before = at, value
    return math.inf


def _median_values(curves: Sequence[Sequence[Record]]) -> tuple[list[float], list[float]]:
    import numpy as np

    begin, end = max(curve[0]["seconds"] for curve in curves), min(curve[-1]["seconds"] for curve in curves)
    if end <= begin:
        return [], []
    times = np.linspace(begin, end, LEVELS)
    values = [np.interp(times, [p["seconds"] for p in curve], [p["value"] for p in curve]) for curve in curves]
    return times.tolist(), np.median(values, axis=0).tolist()


def _curves(axes: Axes, race: Record, arm: Record) -> None:
    shown = arm["name"] in _OF_ARM
    colour = _OF_ARM.get(arm["name"], INK)
    others = "with or without one trick"  # one entry in the legend for all of them
    name = arm["title"] if shown else None if others in axes.get_legend_handles_labels()[1] else others
    times, values = median_curve(race, arm)
    axes.plot(times, values, color=colour, alpha=1 if shown else 0.28, linewidth=2 if shown else 0.9, label=name)
    runs = [run for run in arm["runs"] if run["curve"]]
    for run in runs if shown and len(runs) > 1 else ():
        points = [(point["seconds"], point["value"]) for point in run["curve"]]
        axes.plot(*zip(*points, strict=True), color=colour, alpha=0.25, linewidth=0.9)
    middle = _median_time(arm)
    if shown and middle is not None and race["target"]["value"] is not None:
        axes.plot([middle], [race["target"]["value"]], "o", color=colour, markersize=5)


def _zoom(axes: Axes, arms: Sequence[Record]) -> None:
    """Crop the first steep part, which would flatten the rest."""
    values = sorted(point["value"] for arm in arms for run in arm["runs"] for point in run["curve"])
    low, high = values[len(values) // 20], values[-1]
    axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.08 * (high - low) + 1e-9)
    axes.set_xlim(left=0)


def _interval(axes: Axes, row: Record, place: float) -> None:
    """Draw one trick's estimate and interval; an arrow marks an end outside the chart."""
    left, right = axes.get_xlim()
    colour, alpha = {HELPS: (GOOD, 1.0), HURTS: (BAD, 1.0)}.get(row["verdict"], (INK, 0.55))
    low, high = _ends(row)
    axes.plot([max(low, left), min(high, right)], [place] * 2, color=colour, alpha=alpha, linewidth=2)
    for end, mark, edge in ((low, "<", left), (high, ">", right)):
        if not left <= end <= right:
            axes.plot([edge], [place], mark, color=colour, alpha=alpha, markersize=5, clip_on=False)
    at = number(row["estimate"])
    if left <= at <= right:
        axes.plot([at], [place], "o", color=colour, alpha=alpha, markersize=6)


def _ends(row: Record) -> list[float]:
    ends = [number(end) for end in row["interval"]]
    return [] if any(map(math.isnan, ends)) else ends


def _drawable(end: float, ratio: bool) -> bool:
    """Whether an end of an interval may widen the x axis: not if infinite or extreme."""
    return 0.1 < end < 10 if ratio else math.isfinite(end)


def _rows(axes: Axes, names: Sequence[str], x_label: str) -> None:
    style_axes(axes, x_label, False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=INK, alpha=0.14, linewidth=0.7)


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with plain numbers such as 1, 1.5 and 2."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    left, right = axes.get_xlim()
    steps = (1.05, 1.1, 1.2, 1.5, 2, 3, 5)
    far = max(right, 1 / left)
    chosen = [step for step in steps if step <= far]
    chosen = chosen[-2:] if len(chosen) > 2 else chosen
    axes.xaxis.set_major_locator(FixedLocator([*(1 / step for step in chosen[::-1]), 1, *chosen]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _tried(run: Record) -> float | None:
    found: float | None = run["clocks"].get("train") if run["status"] in ("reached", "missed", "stopped") else None
    return found


def _median_time(arm: Record) -> float | None:
    """The median time over the seeds that ran; None if the median run missed the target."""
    times = [math.inf if run["seconds"] is None else run["seconds"] for run in arm["runs"] if _tried(run) is not None]
    middle = median(times) if times else math.inf
    return middle if math.isfinite(middle) else None


def _words(arm: Record) -> str:
    runs = [run for run in arm["runs"] if _tried(run) is not None]
    arrived = sum(run["seconds"] is not None for run in runs)
    middle = _median_time(arm)
    if middle is None:
        return f"reached in {arrived} of {len(runs)}"
    return format_duration(middle) if arrived == len(runs) else f"{format_duration(middle)} ({arrived} of {len(runs)})"


def _best(race: Record, arm: Record) -> float | None:
    known = [run["best"] for run in arm["runs"] if run["best"] is not None]
    pick = min if _lower_is_better(race) else max
    return pick(known, default=None)


def _lower_is_better(race: Record) -> bool:
    return lower_is_better(race["target"]["metric"], race["target"].get("lower"))
