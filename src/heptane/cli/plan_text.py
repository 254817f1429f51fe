"""The plan as text: at most ten lines, each a choice and its reason."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from heptane.recommend import DataFacts, expected_seconds
from heptane.report import format_duration

if TYPE_CHECKING:
    from heptane.cli.planning import Planned
    from heptane.data import Data

WIDTH = 118  # characters of a line


def plan_lines(planned: Planned) -> list[str]:
    """A line each on data, images, model, batch, length, learning rate, augmentation, tricks and time."""
    settings, made, facts = planned.settings, planned.choices, planned.data_facts

    def why(name: str) -> str:
        reason = made.made[name].why if name in made.made else "given"
        return "as in the resumed run" if planned.resumed and reason == "given" else reason

    steps = -(-facts.num_train // max(1, min(settings.batch_size or 1, facts.num_train)))
    rows = [("data", _data(planned.data, facts))]
    if facts.survey is not None:
        rows.append(("images", f"{settings.image_size}x{settings.image_size} pixels: {why('image_size')}"))
    rows += [
        ("model", f"{settings.model}: {why('model')}"),
        ("batch", f"{settings.batch_size}: {why('batch_size')}"),
        ("length", f"{settings.epochs:g} epochs of {steps:,} steps: {why('epochs')}"),
        ("rate", f"learning rate {settings.lr:g}, {settings.optimizer}: {why('lr')}"),
    ]
    if facts.kind == "images":
        rows.append(("augment", f"{settings.augment}: {why('augment')}"))
    rows += [("tricks", _tricks(planned)), ("time", _time(planned))]
    return [f"{name:9}{textwrap.shorten(text, WIDTH - 9, placeholder=' ...')}" for name, text in rows]


def _data(data: Data, facts: DataFacts) -> str:
    parts = [
        (name, getattr(data, part)) for name, part in (("training", "train"), ("validation", "valid"), ("test", "test"))
    ]
    sizes = ", ".join(f"{len(part[1]):,} {name}" for name, part in parts if part is not None)
    text = f"{data.name}: {sizes} samples"
    if data.num_classes is None:
        return f"{text}, regression"
    counts = data.class_counts
    if not counts:
        return f"{text}, {data.num_classes} classes"
    low, high = min(counts), max(counts)
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    odd = "; imbalanced: see the balanced accuracy" if high >= 3 * max(low, 1) else ""
    return f"{text} of {data.num_classes} classes, {each}{odd}"


def _tricks(planned: Planned) -> str:
    on = ", ".join(name.replace("_", " ") for name in planned.tricks.on)
    if planned.resumed or not on or planned.tricks.mixup is not None:
        return on or "none"
    return f"{on}; no mixup: {planned.reasons['mixup']}"


def _time(planned: Planned) -> str:
    seconds = expected_seconds(planned.data_facts, planned.machine, planned.choices)
    if planned.deadline is not None:
        end = ", within the budget"
    elif seconds is None:
        end = "" if planned.race or planned.resumed else "; --budget sets a limit"
    elif planned.race:
        end = " for a run of all epochs"
    elif planned.resumed:
        end = " for the whole run"
    else:
        end = ", including start and report; --budget 5m plans for 5 minutes"
    expected = "unknown for this model" if seconds is None else f"about {format_duration(seconds)}"
    return f"{expected} on {planned.machine}{end}"
