"""What an examination found, as the page's template draws it: classes, mistakes, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heptane.report import figure, is_finite, label, percent, section
from heptane.report.curves import COLOURS, INK, draw_svg, dress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from heptane.report.examination.look import Pictures

MOST_CLASSES = 30  # of a confusion matrix that can be read
MOST_BARS = 40
OUT_OF_BALANCE = 3.0  # times as many samples of the largest class as of the smallest

Record = Mapping[str, Any]


def examination(result: Record, pictures: Pictures) -> dict[str, Any]:
    """The parts of the page that an examination fills; each is empty where there is nothing to show."""
    seen = section(result, "examination")
    return {
        "on": part_text(seen),
        "samples": _samples(pictures),
        "classes": _classes(seen),
        "labels": _labels(seen),
        "matrix": _matrix(seen),
        "pairs": _pairs(seen),
        "mistakes": _mistakes(result, seen, pictures),
        "scatters": _scatters(seen),
    }


def part_text(seen: Record) -> str:
    """What was examined: ``359 test samples``."""
    count, part = seen.get("num_samples"), str(seen.get("part") or "")
    return f"{figure(count)} {label(part)} sample{'' if count == 1 else 's'}" if count else ""


def out_of_balance(result: Record) -> bool:
    """Whether some class has several times as many samples as another, so that plain accuracy can deceive.

    Example:
        >>> out_of_balance({"examination": {"train_counts": [90, 10]}})
        True
    """
    seen = section(result, "examination")
    counts = seen.get("train_counts") or [row["count"] for row in seen.get("per_class") or []]
    counts = [count for count in counts if count]
    return seen.get("kind", "classes") == "classes" and len(counts) > 1 and max(counts) >= OUT_OF_BALANCE * min(counts)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share that was measured on ``count`` samples.

    Example:
        >>> [round(end, 3) for end in interval(0.9, 100)]
        [0.826, 0.945]
    """
    z = 1.959964
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def _samples(pictures: Pictures) -> dict[str, Any]:
    size = pictures.size
    seen = f"{size[0]} × {size[1]} pixels" if size else ""
    how = "as the model saw them in training, with random changes" if pictures.augmented else "as the model saw them"
    return {"groups": pictures.samples, "caption": f"{how}: {seen}", "sharp": bool(size and max(size) <= 48)}


def _classes(seen: Record) -> dict[str, Any]:
    """A bar per class: the share of its samples that were right."""
    if seen.get("kind") != "classes":
        return {}
    trained = seen.get("train_counts") or []
    rows = []
    for at, row in enumerate(seen["per_class"]):
        count = row["count"]
        share = row["correct"] / count if count else None
        rows.append(
            {
                "name": row["class"],
                "share": None if share is None else round(100 * share, 1),
                "text": "none to judge by" if share is None else percent(share, 0 if count < 200 else 1),
                "count": f"{row['correct']:,} of {count:,}" if count else "",
                "trained": figure(trained[at]) if at < len(trained) else "",
            }
        )
    left_out = ""
    if len(rows) > MOST_BARS:
        rows = sorted(rows, key=lambda row: math.inf if row["share"] is None else row["share"])
        left_out = f"The {MOST_BARS} classes with the lowest accuracy; {len(rows) - MOST_BARS:,} others did better."
        rows = rows[:MOST_BARS]
    return {"rows": rows, "trained": any(row["trained"] for row in rows), "left_out": left_out}


def _labels(seen: Record) -> list[dict[str, str]]:
    """Of several labels per sample: how many of those that are there were found, and how many that were found are there."""
    if seen.get("kind") != "labels":
        return []
    return [
        {
            "name": row["class"],
            "there": figure(row["count"]),
            "found": percent(row["correct"] / row["count"]) if row["count"] else "–",
            "right": percent(row["correct"] / row["predicted"]) if row["predicted"] else "–",
        }
        for row in seen["per_class"][:MOST_BARS]
    ]


def _matrix(seen: Record) -> dict[str, Any]:
    """The confusion matrix, where it can be read; each cell's colour is its share of the row."""
    counts, names = seen.get("confusion"), seen.get("class_names") or []
    if not counts or not 2 <= len(names) <= MOST_CLASSES:
        return {}
    rows = []
    for at, row in enumerate(counts):
        total = sum(row)
        cells = [
            {"text": f"{n:,}" if n else "", "share": round(n / total, 3) if total else 0, "right": at == to}
            for to, n in enumerate(row)
        ]
        rows.append({"name": names[at], "cells": cells})
    longest = max(map(len, names))
    return {"names": names, "rows": rows, "upright": longest > 9 or (longest > 3 and len(names) > 4)}


def _pairs(seen: Record) -> list[Record]:
    """The most confused pairs, where there are too many classes for a matrix."""
    return list(seen.get("confused") or []) if len(seen.get("class_names") or []) > MOST_CLASSES else []


def _mistakes(result: Record, seen: Record, pictures: Pictures) -> dict[str, Any]:
    """The worst predictions, with their pictures where there are any."""
    found = list(seen.get("mistakes") or [])
    shown = []
    for at, one in enumerate(found):
        chance = one.get("probability")
        shown.append(
            {
                "picture": pictures.mistakes[at] if at < len(pictures.mistakes) else "",
                "name": str(one.get("file") or f"sample {one['index']}"),
                "true": _answer(one["true"]),
                "predicted": _answer(one["predicted"]),
                "chance": percent(chance, 0) if is_finite(chance) else "",
                "error": _error(one) if seen.get("kind") == "numbers" else "",
            }
        )
    total = seen.get("num_mistakes")
    caption = f"{figure(total)} of {part_text(seen)} are wrong; " if total else ""
    caption += "The largest errors first." if seen.get("kind") == "numbers" else "the surest first." if shown else ""
    if seen.get("kind") == "labels" and shown:
        caption = f"{figure(total)} of {part_text(seen)} have a wrong label; those with the most first."
    pictured = bool(shown) and all(one["picture"] for one in shown)
    size = pictures.size
    return {
        "rows": shown if pictured else shown[:12],
        "caption": caption,
        "pictured": pictured,
        "sharp": bool(size and max(size) <= 48),
        "perfect": total == 0 and bool(seen),
        "chances": any(one["chance"] for one in shown),
        "errors": any(one["error"] for one in shown),
    }


def _answer(value: Any) -> str:
    if isinstance(value, (list, tuple)) and not value:
        return "none"
    return figure(value)


def _error(one: Record) -> str:
    true, said = one["true"], one["predicted"]
    if isinstance(true, (list, tuple)):
        return ""
    return f"{said - true:+.4g}" if is_finite(true) and is_finite(said) else "–"


def _scatters(seen: Record) -> list[dict[str, Any]]:
    """Predicted against true values, a picture per column of numbers."""
    import markupsafe

    found = []
    for at, column in enumerate(seen.get("columns") or []):
        points = [pair for pair in (seen.get("points") or [])[at] if all(map(is_finite, pair))]
        facts = [
            ("mean absolute error", figure(column["mean_absolute_error"])),
            ("root mean square error", figure(column["root_mean_square_error"])),
            ("predicting the mean would have", figure(column["spread"])),
            ("R²", "–" if column["r2"] is None else f"{column['r2']:.3f}"),
        ]
        title = column["name"] if len(seen["columns"]) > 1 or not str(column["name"]).isdigit() else "Predicted and true"
        svg = scatter(points, ident=f"scatter-{at}", name=str(title)) if at < 6 and points else ""
        found.append({"title": title, "svg": markupsafe.Markup(svg), "facts": facts})
    return found


def scatter(points: Sequence[Sequence[float]], *, ident: str, name: str) -> str:
    """Dots at (true, predicted), and the line on which they would lie if all were right."""
    true, said = [pair[0] for pair in points], [pair[1] for pair in points]
    low, high = min(*true, *said), max(*true, *said)
    edge = 0.04 * (high - low) or 1.0

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        ends = [low - edge, high + edge]
        axes.plot(ends, ends, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (3, 3)), label="all right")
        axes.plot(true, said, "o", color=COLOURS[0], alpha=0.6, markersize=3.5, markeredgewidth=0, label="a sample")
        dress(axes, "true", False)
        axes.set_ylabel("predicted")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        picture.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.6)

    words = f"{name}: predicted against true values of {len(points)} samples, from {figure(low)} to {figure(high)}"
    return draw_svg(draw, ident=ident, description=words, height=3.6)
