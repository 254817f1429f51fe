"""``heptane tricks``: the seven as a table: what each does, what it cost and brought in a measured race, when not to use it.

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
        "Splits each batch over several processes or GPUs, which together compute the step of one.",
        "You have one CPU: a single process already uses all its cores.",
    ),
    "lr_scaling": (
        "Carries a learning rate that suits one batch size over to another, after a warm-up.",
        "The learning rate was chosen for the batch size in use.",
    ),
    "cyclical": (
        "Raises the learning rate to a peak, then lowers it to almost nothing by the end.",
        "You cannot say beforehand how long the run will be.",
    ),
    "mixup": (
        "Trains on blends of two samples and of their labels, against overfitting.",
        "The run is short, below about 50 epochs: it slows learning.",
    ),
    "label_smoothing": (
        "Leaves a little doubt in every label: 10% is spread over all classes.",
        "You predict numbers, need exact probabilities, or will distil the model.",
    ),
    "transfer": (
        "Starts from the weights of a model that has seen many more data.",
        "You have very many data, or data unlike any that such a model has seen.",
    ),
    "mixed_precision": (
        "Computes in 16 bits where this machine measurably gains from it.",
        "The processor has no 16-bit units, as in most laptops: it then stays off.",
    ),
}


def tricks() -> int:
    """Print the seven."""
    from heptane.report.console import tricks_table

    found = measured()
    rows = [(name, TEXTS[name][0], measured_text(found, name), TEXTS[name][1]) for name in KINDS]
    tricks_table(("trick", "what it does", "measured", "not when"), rows, found["about"])
    return 0


def measured() -> dict[str, Any]:
    """What races came to: ``about``, how they were measured, and per trick its ``step`` and ``words``."""
    content: dict[str, Any] = json.loads((Path(__file__).parent / "measured.json").read_text())
    return content


def measured_text(found: dict[str, Any], name: str) -> str:
    """What a trick cost and brought, in a few words."""
    row = found["tricks"].get(name)
    if row is None:
        return "not raced"
    if row["step"] is None:
        return str(row["words"])
    ratio, low, high = row["step"]
    cost = f"a step takes {ratio:.2f} times as long ({low:.2f} to {high:.2f})" if low > 1 else "no cost per step detected"
    return f"{row['words']}; {cost}"


def title(name: str) -> str:
    """The first line of a trick's module docstring."""
    return _docstring(name).split("\n", 1)[0]


def sections(name: str, *, joined: bool = True) -> dict[str, str]:
    """The sections of a trick's module docstring by their headings, each on one line if ``joined``."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _docstring(name).splitlines()[1:]:
        if line and not line.startswith(" "):
            heading = line
        elif heading:
            found.setdefault(heading, []).append(line.strip())
    texts = {heading: "\n".join(lines).strip() for heading, lines in found.items()}
    return {heading: _joined(text) if joined else text for heading, text in texts.items()}


def _joined(text: str) -> str:
    """On one line, without markup."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").split())


def _docstring(name: str) -> str:
    return inspect.cleandoc(sys.modules[KINDS[name].__module__].__doc__ or "")
