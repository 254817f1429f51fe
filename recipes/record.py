"""Shared parts of the recipes: flags, tables over seeds, verdicts and the result file."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.race.statistics import student_quantile

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from results import FOLDER, save, spread

BETTER, WORSE, UNDECIDED = "better here", "worse here", "no difference detected here"


def flags(doc: str | None, seeds: int, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``--seeds``, ``--quick`` and ``--out`` from ``argv``, by default the command line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs of each arm, at least 1 (default {seeds})")
    parser.add_argument("--quick", action="store_true", help="one seed, little data, few steps; written only with --out")
    parser.add_argument("--out", type=Path, help="folder for the result file (default benchmarks/results)")
    found = parser.parse_args(argv)
    if found.seeds < 1:
        parser.error(f"--seeds {found.seeds}: expected at least 1")
    if found.quick:
        found.seeds = 1
    elif found.out is None:
        found.out = FOLDER
    return found


@dataclass
class Record:
    """What a recipe measures: for each arm, each metric's value per seed.

    ``metrics`` maps a metric's name to whether more of it is better; the first one is compared. An arm may lack others.
    """

    name: str
    question: str
    metrics: Mapping[str, bool]
    arms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def add(self, arm: str, found: Mapping[str, float]) -> None:
        """Add a seed of an arm and print it."""
        known = {metric: float(found[metric]) for metric in self.metrics if metric in found}
        for metric, value in known.items():
            self.arms.setdefault(arm, {}).setdefault(metric, []).append(value)
        print(f"{arm}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in known.items()), flush=True)

    def compare(self, arm: str, other: str) -> None:
        """Compare ``arm`` with ``other``: the mean of the paired differences, with a 95% interval."""
        metric, more_is_better = next(iter(self.metrics.items()))
        gains = [b - a for a, b in zip(self.arms[other][metric], self.arms[arm][metric], strict=True)]
        mean, said = statistics.fmean(gains), "(one seed: no interval)"
        if len(gains) > 1:
            half = student_quantile(0.05, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))
            higher, lower = (BETTER, WORSE) if more_is_better else (WORSE, BETTER)
            verdict = higher if mean - half > 0 else lower if mean + half < 0 else UNDECIDED
            said = f"(95% interval {mean - half:+.3g} to {mean + half:+.3g}): {verdict}"
        self.verdicts.append(f"{arm} against {other}: {metric} {mean:+.3g} {said}")

    def finish(self, out: Path | None, **facts: Any) -> None:
        """Print the table and the verdicts; write ``out/recipe-NAME.json`` with ``facts``, unless ``out`` is None."""
        spreads = {arm: {metric: spread(seeds) for metric, seeds in values.items()} for arm, values in self.arms.items()}
        width = max(map(len, spreads))
        print("\n" + " " * width, *(f"{metric:>20}" for metric in self.metrics))
        for arm, values in spreads.items():
            print(f"{arm:{width}}", *(f"{_plus_minus(values.get(metric)):>20}" for metric in self.metrics))
        print("\n".join(["", *self.verdicts]))
        if out is not None:
            seeds = list(range(max(len(seeds) for values in self.arms.values() for seeds in values.values())))
            content = {"metrics": dict(self.metrics), "arms": spreads, "verdicts": self.verdicts}
            facts |= {"seconds": round(time.perf_counter() - self.started), "seeds": seeds}
            save(f"recipe-{self.name}", self.question, {**facts, **content}, out)


def _plus_minus(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "-"
    return f"{float(values['mean']):.4g}" + (f" ± {values['std']:.2g}" if values["std"] is not None else "")


def run(main: Callable[[], None]) -> None:
    """Run a recipe; missing data and other wrong input end in one line."""
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
