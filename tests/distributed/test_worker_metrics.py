"""User-defined metrics on several workers see the whole evaluation and the whole model."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from tests.helpers import random_data, seeded
from tests.workers import IN_GROUP, TWO, fit_epoch, launch
from torch import nn

import heptane as hp

# Metrics of the user's own


class Own:
    """A metric with its own state, which is no torchmetrics: the largest logit that was seen, and how many samples."""

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.seen = 0.0, 0

    def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
        self.total += float(predictions.amax(1).sum())
        self.seen += len(targets)

    def compute(self) -> float:
        return self.total / self.seen + self.seen


def deep(width: int = 8) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.mark.usefixtures("forked")
def test_a_metric_with_its_own_state_sees_the_whole_evaluation() -> None:
    values = []
    for tricks in (hp.Tricks(), TWO):
        metric = Own()
        result = fit_epoch(
            deep(), valid=random_data(30), tricks=tricks, metrics={"own": metric}, target=("valid_own", 1000.0)
        )
        values.append(result.metrics["valid_own"])
    assert values[1] == pytest.approx(values[0], abs=1e-5)


def derived(reduction: str | None) -> Any:
    """A metric that is derived from torchmetrics', and holds more than its states."""
    torchmetrics = pytest.importorskip("torchmetrics")

    class Derived(torchmetrics.Metric):  # type: ignore[misc]
        higher_is_better = True

        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.tensor(0.0), dist_reduce_fx=reduction)
            self.count = 0

        def reset(self) -> None:
            super().reset()
            self.count = 0

        def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
            self.total = self.total + predictions.sum()
            self.count += len(targets)

        def compute(self) -> torch.Tensor:
            return self.total.max() / self.count + self.count

    return Derived()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("reduction", ["sum", None])
def test_a_metric_derived_from_torchmetrics_sees_the_whole_evaluation(reduction: str | None) -> None:
    values = []
    for tricks in (hp.Tricks(), TWO):
        metrics = {"own": derived(reduction)}
        values.append(fit_epoch(deep(), valid=random_data(30), tricks=tricks, metrics=metrics).metrics["valid_own"])
    assert values[1] == pytest.approx(values[0], abs=1e-5)


def evaluated_on_one() -> dict[str, float]:
    """As a script under torchrun evaluates: on its first worker only."""
    import torchmetrics

    class Samples(torchmetrics.SumMetric):  # type: ignore[misc]
        def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
            super().update(torch.ones(len(targets)))

    fit_epoch(seeded(0), tricks=IN_GROUP)
    accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro")
    only = hp.evaluate(seeded(0), random_data(31), metrics={"a": accuracy}) if os.environ["RANK"] == "0" else {}
    return only | hp.evaluate(seeded(0), random_data(31), metrics={"samples": Samples()})


def test_one_worker_can_evaluate_alone_and_counts_nothing_twice() -> None:
    pytest.importorskip("torchmetrics")
    found = launch(evaluated_on_one, {}, 2)
    assert found["samples"] == 31
    assert found["a"] == pytest.approx(found["accuracy"])


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_function_of_the_model_sees_all_of_a_sharded_one(decay: float | None) -> None:
    def parameters(model: nn.Module, data: Any) -> float:
        return float(sum(p.detach().square().sum() for p in model.parameters())) + sum(p.numel() for p in model.parameters())

    values = []
    for tricks in (hp.Tricks(), hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy="fsdp"))):
        result = fit_epoch(deep(), valid=random_data(30), tricks=tricks, metrics={"norm": parameters}, average_decay=decay)
        values.append(result.metrics["valid_norm"])
    assert values[1] == pytest.approx(values[0], abs=1e-4)


def labels() -> Any:
    """The mean label, as AUROC and others keep the labels that they saw."""
    torchmetrics = pytest.importorskip("torchmetrics")

    class Labels(torchmetrics.Metric):  # type: ignore[misc]
        higher_is_better = True

        def __init__(self) -> None:
            super().__init__()
            self.add_state("seen", [], dist_reduce_fx="cat")

        def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
            self.seen.append(targets)

        def compute(self) -> torch.Tensor:
            return torchmetrics.utilities.dim_zero_cat(self.seen).float().mean()  # type: ignore[no-any-return]

    return Labels()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("samples", [1, 30])
def test_torchmetrics_with_lists_as_states_also_with_fewer_samples_than_workers(samples: int) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    values = []
    for tricks in (hp.Tricks(), TWO):
        metrics = {
            "calibration": torchmetrics.classification.MulticlassCalibrationError(num_classes=3),  # lists
            "accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro"),  # sums
            "labels": labels(),  # a list of integers, of which a worker without samples knows no type
        }
        if samples > 1:
            metrics["auroc"] = torchmetrics.AUROC(task="multiclass", num_classes=3, thresholds=None)
        values.append(fit_epoch(deep(), valid=random_data(samples), tricks=tricks, metrics=metrics).metrics)
    assert {k: round(v, 5) for k, v in values[0].items()} == {k: round(v, 5) for k, v in values[1].items()}
