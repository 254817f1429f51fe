"""The plan in words: at most ten lines, each with what was chosen and the reason."""

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
    """Data, images, model, batch, length, learning rate, augmentation, tricks, time: a line each."""
    settings, made, look = planned.settings, planned.choices, planned.look

    def why(name: str) -> str:
        reason = made.made[name].why if name in made.made else "given"
        return "as the run began" if planned.resumed and reason == "given" else reason

    steps = -(-look.num_train // max(1, min(settings.batch_size or 1, look.num_train)))
    rows = [("data", _data(planned.data, look))]
    if look.survey is not None:
        rows.append(("images", f"{settings.image_size}x{settings.image_size} pixels: {why('image_size')}"))
    rows += [
        ("model", f"{settings.model}: {why('model')}"),
        ("batch", f"{settings.batch_size}: {why('batch_size')}"),
        ("length", f"{settings.epochs:g} epochs of {steps:,} steps: {why('epochs')}"),
        ("rate", f"learning rate {settings.lr:g}, {settings.optimizer}: {why('lr')}"),
    ]
    if look.kind == "images":
        rows.append(("augment", f"{settings.augment}: {why('augment')}"))
    rows += [("tricks", _tricks(planned)), ("time", _time(planned))]
    return [f"{name:9}{textwrap.shorten(text, WIDTH - 9, placeholder=' ...')}" for name, text in rows]


def _data(data: Data, look: DataFacts) -> str:
    parts = [
        (name, getattr(data, part)) for name, part in (("training", "train"), ("validation", "valid"), ("test", "test"))
    ]
    sizes = ", ".join(f"{len(part[1]):,} {name}" for name, part in parts if part is not None)
    text = f"{data.name}: {sizes} samples"
    if data.num_classes is None:
        return f"{text}, numbers as targets"
    counts = data.class_counts
    if not counts:
        return f"{text}, {data.num_classes} classes"
    low, high = min(counts), max(counts)
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    odd = "; out of balance: look at the balanced accuracy" if high >= 3 * max(low, 1) else ""
    return f"{text} of {data.num_classes} classes, {each}{odd}"


def _tricks(planned: Planned) -> str:
    on = ", ".join(name.replace("_", " ") for name in planned.tricks.on) or "none"
    quiet = planned.resumed or not planned.tricks.on
    off = [name.replace("_", " ") for name in ("mixup",) if name not in planned.tricks.on and not quiet]
    return on + "".join(f"; no {name}: {planned.reasons[name.replace(' ', '_')]}" for name in off)


def _time(planned: Planned) -> str:
    seconds = expected_seconds(planned.look, planned.machine, planned.choices)
    about = "unknown for this model" if seconds is None else f"about {format_duration(seconds)}"
    if planned.race:
        end = " for a run that takes all its epochs"
    elif planned.deadline is not None:
        end = ", and no more than the budget"
    elif planned.resumed:
        end = " for the whole run"
    else:
        end = (
            "; --budget 5m keeps to a time"
            if seconds is None
            else ", start and report included; --budget 5m plans for another"
        )
    return f"{about} on {planned.machine}{end}"
