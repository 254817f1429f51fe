"""``heptane tricks``: a table of the seven tricks with their measured effects.

The figures are in ``measured.json``, which ``docs/build.py`` makes from the files in ``benchmarks/results``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from heptane.tricks import KINDS

COSTS = "Costs, and when it does not help"
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


def tricks() -> int:
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


def title(name: str) -> str:
    """The first paragraph of a trick's module docstring, on one line."""
    return _joined(_docstring(name).split("\n\n", 1)[0])


def sections(name: str, *, joined: bool = True) -> dict[str, str]:
    """The sections of a trick's module docstring by heading, each on one line if ``joined``."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _docstring(name).partition("\n\n")[2].splitlines():
        if line and not line.startswith(" "):
            heading = line
        elif heading:
            found.setdefault(heading, []).append(line.strip())
    texts = {heading: "\n".join(lines).strip() for heading, lines in found.items()}
    return {heading: _joined(text) if joined else text for heading, text in texts.items()}


def _joined(text: str) -> str:
    """``text`` on one line, without markup."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").split())


def _docstring(name: str) -> str:
    return inspect.cleandoc(sys.modules[KINDS[name].__module__].__doc__ or "")
