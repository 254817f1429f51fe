"""``heptane tricks``: a table of the seven tricks with their measured effects.

The figures are in ``measured.json``, which ``docs/build.py`` makes from the files in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from heptane.tricks import KINDS

TEXTS = {
    "data_parallel": (
        "Splits each batch over several processes or GPUs, and averages their gradients.",
        "You have one CPU: a single process already uses all its cores.",
    ),
    "lr_scaling": (
        "Adapts a learning rate to another batch size, with a warm-up.",
        "The learning rate was chosen for the batch size that you use.",
    ),
    "cyclical": (
        "Raises the learning rate to a peak, the lr that you set, then lowers it to almost zero at the end.",
        "You do not know the length of the run in advance.",
    ),
    "mixup": (
        "Trains on blends of two samples and of their labels, which reduces overfitting.",
        "The run is shorter than about 50 epochs: mixup slows learning down.",
    ),
    "label_smoothing": (
        "Spreads a part of each label, by default 10%, over all classes.",
        "You predict numbers, need calibrated probabilities, or distil the model later.",
    ),
    "transfer": (
        "Starts from the weights of a model trained on much more data.",
        "You have a lot of data, or data very unlike those of the pretrained model.",
    ),
    "mixed_precision": (
        "Computes in 16 bits if a measurement on your machine shows a gain.",
        "The processor has no 16-bit units, like most laptops: it then stays off.",
    ),
}


def tricks(_: argparse.Namespace) -> int:
    """Print the table."""
    from heptane.report.console import tricks_table

    found = measured()
    rows = [(name, TEXTS[name][0], measured_text(found, name), TEXTS[name][1]) for name in KINDS]
    tricks_table(("trick", "what it does", "measured", "not when"), rows, found["about"])
    return 0


def measured() -> dict[str, Any]:
    """Measured effects: ``about``, how they were measured, and per trick ``step`` and ``words``."""
    content: dict[str, Any] = json.loads((Path(__file__).parent / "measured.json").read_text())
    return content


def measured_text(found: dict[str, Any], name: str) -> str:
    """The measured effect and cost of a trick."""
    row = found["tricks"].get(name)
    if row is None:
        return "not measured"
    if row["step"] is None:
        return str(row["words"])
    ratio, low, high = row["step"]
    cost = f"a step takes {ratio:.2f}x as long ({low:.2f}x to {high:.2f}x)" if low > 1 else "no cost per step detected"
    return f"{row['words']}; {cost}"
