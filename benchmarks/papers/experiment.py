"""Shared parts of the experiments: training with any schedule, paired differences, tables, plots and verdicts.

An experiment repeats a claim of a paper in miniature: Fashion-MNIST, a network with one hidden layer, minutes on two
cores. It tests the direction of the claim, not its size.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.core.schedule import Rates, Schedule
from heptane.pretrained.models import mlp
from heptane.race.statistics import student_quantile

sys.path.insert(0, str(Path(__file__).parents[1]))
from results import FOLDER, save

SEEDS = range(5)
HOLDS, FAILS, UNDECIDED = "holds here", "does not hold here", "no difference detected here"
Pair = tuple[Tensor, Tensor]


@dataclass
class Outcome:
    """Results of an experiment: rows of (setting, arm, values per seed), the name of the value, and verdicts."""

    name: str
    claim: str
    source: str
    value: str
    rows: list[tuple[Any, str, list[float]]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)

    def add(self, setting: Any, arm: str, values: list[float]) -> None:
        """Add a row to the table and print it."""
        self.rows.append((setting, arm, values))
        print(f"{self.name}: {setting!s:>8}  {arm:32} {fmean(values):8.4f}", flush=True)

    def values(self, setting: Any, arm: str) -> list[float]:
        """The values of a row, by seed."""
        return next(values for at, name, values in self.rows if (at, name) == (setting, arm))

    def compare(self, setting: Any, better: str, worse: str, *, lower: bool = False) -> None:
        """Compare two arms at ``setting``: the mean of the paired differences, with its interval."""
        pairs = zip(*(self.values(setting, arm) for arm in (worse, better)), strict=True)
        gains = [high - low for low, high in pairs]
        half = student_quantile(0.05, len(gains) - 1) * stdev(gains) / math.sqrt(len(gains))
        low, high = fmean(gains) - half, fmean(gains) + half
        best, worst = (-low, -high) if lower else (high, low)
        verdict = HOLDS if worst > 0 else FAILS if best < 0 else UNDECIDED
        ends = f"{low:+.4f} to {high:+.4f}"
        self.verdicts.append(f"{setting}: {better} against {worse}: {fmean(gains):+.4f} (95% interval {ends}): {verdict}")
        print(self.verdicts[-1], flush=True)

    def write(self, x: str, **more: Any) -> None:
        """Write the result file and the plot."""
        rows = [{"setting": setting, "arm": arm, "values": values} for setting, arm, values in self.rows]
        content = {
            "claim": self.claim,
            "source": self.source,
            "value": self.value,
            "seeds": list(range(len(rows[0]["values"]))),
            "rows": rows,
        }
        save(f"papers-{self.name}", self.claim, {**content, "verdicts": self.verdicts, **more})
        self._plot(x)

    def _plot(self, x: str) -> None:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        settings = list(dict.fromkeys(setting for setting, _, _ in self.rows))
        for arm in dict.fromkeys(arm for _, arm, _ in self.rows):
            found = [(settings.index(at), values) for at, name, values in self.rows if name == arm]
            axes.plot([at for at, _ in found], [fmean(values) for _, values in found], marker="o", label=arm)
            axes.scatter(
                [at for at, values in found for _ in values], [v for _, values in found for v in values], s=8, alpha=0.5
            )
        axes.set_xticks(range(len(settings)), [str(setting) for setting in settings])
        axes.set_xlabel(x)
        axes.set_ylabel(self.value)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(FOLDER / f"papers-{self.name}.svg", metadata={"Date": None})


@cache
def data() -> tuple[Pair, Pair, Pair]:
    """Fashion-MNIST: train, valid, test."""
    found = hp.load_data("fashion-mnist")
    assert found.valid is not None
    assert found.test is not None
    return found.train, found.valid, found.test


def trained(
    train: Pair,
    *,
    lr: float,
    batch: int,
    epochs: float,
    seed: int,
    tricks: hp.Tricks | None = None,
    schedule: Callable[[int, int], Schedule] | None = None,
    decay: float = 5e-4,
    hidden: int = 256,
    batch_norm: bool = False,
) -> nn.Module:
    """Train with Nesterov momentum; ``schedule(steps, steps_per_epoch)`` returns the factor of the learning rate."""
    torch.manual_seed(seed)
    model = mlp(10, (1, 28, 28), hidden)
    if batch_norm:
        flatten, linear, *rest = model
        model = nn.Sequential(flatten, linear, nn.BatchNorm1d(hidden), *rest)
    sgd = torch.optim.SGD
    run = assemble(
        model,
        train,
        Plan.of(
            optimizer=lambda params: sgd(params, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay),
            epochs=epochs,
            batch_size=batch,
            seed=seed,
        ),
        tricks=tricks,
    )
    if schedule:
        run.rates = Rates(schedule(run.total_steps, run.source.steps_per_epoch))
    try:
        for _ in steps(run):
            pass
    except FloatingPointError:  # it diverged: what is left of it guesses
        for parameter in model.parameters():
            parameter.data.nan_to_num_(0.0, 0.0, 0.0)
    return model


def accuracy(model: nn.Module, part: Pair) -> float:
    """Share of correct predictions."""
    return hp.evaluate(model, part)["accuracy"]


def best(values: Sequence[float], score: Callable[[float], float]) -> float:
    """The value with the highest score, to tune a learning rate on the validation split and an unused seed."""
    return max(values, key=score)
