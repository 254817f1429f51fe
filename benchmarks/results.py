"""Result files: measurements with command, commit, machine and spread."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heptane.base.environment import describe
from heptane.race.statistics import json_number

FOLDER = Path(__file__).parent / "results"


def save(name: str, question: str, content: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write ``NAME.json`` to ``folder``, by default ``results/``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    facts = {
        "question": question,
        "command": " ".join(["python", _script(), *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "environment": describe(),
    }
    path.write_text(json.dumps({**facts, **content}, indent=1) + "\n")
    print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def _script() -> str:
    path, root = Path(sys.argv[0]).resolve(), FOLDER.parents[1]
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, mean, standard deviation (None for one value, or with infinite ones), extremes, and the values."""
    finite = all(map(math.isfinite, values))
    return {
        "median": json_number(statistics.median(values)),
        "mean": json_number(statistics.fmean(values)),
        "std": statistics.stdev(values) if len(values) > 1 and finite else None,
        "min": json_number(min(values)),
        "max": json_number(max(values)),
        "values": [json_number(value) for value in values],
    }
