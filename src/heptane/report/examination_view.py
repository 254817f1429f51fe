"""Prepare an examination for the page's template: classes, confusion matrix, mistakes, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heptane.report import format_percent, format_value, is_finite, readable_name, section
from heptane.report.curves import COLOURS, INK, draw_svg, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from heptane.report.examination.examine import Pictures

MOST_CLASSES = 30  # a larger confusion matrix is unreadable
MOST_BARS = 40
IMBALANCE = 3.0  # largest class over smallest

Record = Mapping[str, Any]


def examination_sections(result: Record, pictures: Pictures) -> dict[str, Any]:
    """The page's sections on the examination; empty where there is nothing to show."""
    seen = section(result, "examination")
    return {
        "on": describe_part(seen),
        "samples": _samples(pictures),
        "classes": _classes(seen),
        "labels": _labels(seen),
        "matrix": _matrix(seen),
        "pairs": _pairs(seen),
        "mistakes": _mistakes(result, seen, pictures),
        "scatters": _scatters(seen),
    }


def describe_part(seen: Record) -> str:
    """The examined samples: ``359 test samples``."""
    count, part = seen.get("num_samples"), str(seen.get("part") or "")
    return f"{format_value(count)} {readable_name(part)} sample{'' if count == 1 else 's'}" if count else ""


def is_imbalanced(result: Record) -> bool:
    """Whether classes differ so much in size that plain accuracy misleads.

    Example:
        >>> is_imbalanced({"examination": {"train_counts": [90, 10]}})
        True
    """
    seen = section(result, "examination")
    counts = seen.get("train_counts") or [row["count"] for row in seen.get("per_class") or []]
    counts = [count for count in counts if count]
    return seen.get("kind", "classes") == "classes" and len(counts) > 1 and max(counts) >= IMBALANCE * min(counts)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The Wilson 95% interval of a share measured on ``count`` samples.

    Example:
        >>> [round(end, 3) for end in wilson_interval(0.9, 100)]
        [0.826, 0.945]
    """
    z = 1.959964
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def _samples(pictures: Pictures) -> dict[str, Any]:
    size = pictures.size
    narrow = all(len(images) == 1 for _, images in pictures.samples)
    seen = f"{size[0]} × {size[1]} pixels" if size else ""
    how = "As the model saw them, augmented" if pictures.augmented else "As the model saw them"
    sharp = bool(size and max(size) <= 48)
    return {"groups": pictures.samples, "caption": f"{how}: {seen}", "sharp": sharp, "narrow": narrow}


def _classes(seen: Record) -> dict[str, Any]:
    """A bar per class: its accuracy."""
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
                "text": "no samples" if share is None else format_percent(share, 0 if count < 200 else 1),
                "count": f"{row['correct']:,} of {count:,}" if count else "",
                "trained": format_value(trained[at]) if at < len(trained) else "",
            }
        )
    left_out = ""
    if len(rows) > MOST_BARS:
        rows = sorted(rows, key=lambda row: math.inf if row["share"] is None else row["share"])
        left_out = f"The {MOST_BARS} classes with the lowest accuracy, out of {len(rows):,}."
        rows = rows[:MOST_BARS]
    return {"rows": rows, "trained": any(row["trained"] for row in rows), "left_out": left_out}


def _labels(seen: Record) -> list[dict[str, str]]:
    """Recall and precision per label, where samples have several labels."""
    if seen.get("kind") != "labels":
        return []
    return [
        {
            "name": row["class"],
            "there": format_value(row["count"]),
            "found": format_percent(row["correct"] / row["count"]) if row["count"] else "–",
            "right": format_percent(row["correct"] / row["predicted"]) if row["predicted"] else "–",
        }
        for row in seen["per_class"][:MOST_BARS]
    ]


def _matrix(seen: Record) -> dict[str, Any]:
    """The confusion matrix, unless it is too large to read; a cell's colour is its share of the row."""
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
    """The most confused pairs of classes, where there are too many classes for a matrix."""
    return list(seen.get("confused") or []) if len(seen.get("class_names") or []) > MOST_CLASSES else []


def _mistakes(result: Record, seen: Record, pictures: Pictures) -> dict[str, Any]:
    """The worst predictions, with their images if there are any."""
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
                "chance": format_percent(chance, 0) if is_finite(chance) else "",
                "error": _error(one) if seen.get("kind") == "numbers" else "",
            }
        )
    total = seen.get("num_mistakes")
    caption = f"{format_value(total)} of {describe_part(seen)} are wrong. " if total else ""
    caption += "Largest errors first." if seen.get("kind") == "numbers" else "Most confident first." if shown else ""
    if seen.get("kind") == "labels" and shown:
        caption = f"{format_value(total)} of {describe_part(seen)} have a wrong label. Most wrong labels first."
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
    return format_value(value)


def _error(one: Record) -> str:
    true, predicted = one["true"], one["predicted"]
    if isinstance(true, (list, tuple)):
        return ""
    return f"{predicted - true:+.4g}" if is_finite(true) and is_finite(predicted) else "–"


def _scatters(seen: Record) -> list[dict[str, Any]]:
    """A scatter plot of predicted against true values per output."""
    import markupsafe

    found = []
    for at, column in enumerate(seen.get("columns") or []):
        points = [pair for pair in (seen.get("points") or [])[at] if all(map(is_finite, pair))]
        facts = [
            ("mean absolute error", format_value(column["mean_absolute_error"])),
            ("root mean squared error", format_value(column["root_mean_square_error"])),
            ("RMSE of predicting the mean", format_value(column["spread"])),
            ("R²", "–" if column["r2"] is None else f"{column['r2']:.3f}"),
        ]
        title = column["name"] if len(seen["columns"]) > 1 or not str(column["name"]).isdigit() else "Predicted and true"
        svg = scatter(points, ident=f"scatter-{at}", name=str(title)) if at < 6 and points else ""
        found.append({"title": title, "svg": markupsafe.Markup(svg), "facts": facts})
    return found


def scatter(points: Sequence[Sequence[float]], *, ident: str, name: str) -> str:
    """A scatter plot of (true, predicted) with the diagonal on which all would be right."""
    true, predicted = [pair[0] for pair in points], [pair[1] for pair in points]
    low, high = min(*true, *predicted), max(*true, *predicted)
    edge = 0.04 * (high - low) or 1.0

    def draw(picture: Figure) -> None:
        axes = picture.add_subplot()
        ends = [low - edge, high + edge]
        axes.plot(ends, ends, color=INK, alpha=0.55, linewidth=1, linestyle=(0, (3, 3)), label="perfect")
        axes.plot(true, predicted, "o", color=COLOURS[0], alpha=0.6, markersize=3.5, markeredgewidth=0, label="sample")
        style_axes(axes, "true", False)
        axes.set_ylabel("predicted")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        picture.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.6)

    words = (
        f"{name}: predicted against true values of {len(points)} samples, from {format_value(low)} to {format_value(high)}"
    )
    return draw_svg(draw, ident=ident, description=words, height=3.6)
