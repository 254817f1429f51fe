"""User-defined metrics: functions, objects and collections, tried before training, and their direction."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import fit
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp
from heptane.core.custom_metrics import takes_model
from heptane.core.metric_direction import direction, known_direction
from heptane.session.history import best_step, check_target, reached

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.fixture(scope="module")
def torchmetrics() -> Any:
    """Importing it takes seconds, which only the process that runs this file should spend."""
    import torchmetrics.classification

    return torchmetrics


def fit_measured(
    valid: Any = (X, Y), model: torch.nn.Module | None = None, train: Any = (X, Y), **settings: Any
) -> hp.Result:
    torch.manual_seed(0)
    return fit(model or torch.nn.Linear(4, 2), train, valid, **settings)


def right(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (predictions.argmax(1) == targets).float().mean()


@pytest.mark.parametrize(
    "valid", [(X, Y), DataLoader(TensorDataset(X, Y), 7), TensorDataset(X, Y)], ids=["pair", "loader", "set"]
)
def test_a_function_of_predictions_and_targets_sees_the_whole_set(valid: Any) -> None:
    sizes: list[int] = []

    def own(predictions: torch.Tensor, targets: torch.Tensor) -> float:
        sizes.append(len(targets))
        return float(right(predictions, targets))

    result = fit_measured(valid, metrics={"right": own, "anonymous": lambda p, t: right(p, t)})
    assert result.metrics["valid_right"] == pytest.approx(result.metrics["valid_accuracy"], abs=1e-6)
    assert result.metrics["valid_anonymous"] == result.metrics["valid_right"]
    assert sizes[1:] == [50, 50]
    found = hp.evaluate(result.model, valid, metrics={"right": right}, batch_size=11)
    assert found["right"] == result.metrics["valid_right"]


def test_how_a_function_is_told_by_its_names() -> None:
    assert takes_model(lambda model, data: 0.0)
    assert takes_model(lambda net, _: 0.0)
    assert not takes_model(right)
    assert not takes_model(lambda a, b: 0.0)
    assert not takes_model(max)


def test_functions_with_the_targets_first_are_given_them_first() -> None:
    def recall(y_true: torch.Tensor, y_pred: torch.Tensor) -> float:
        assert y_pred.ndim == 2
        return float((y_pred.argmax(1)[y_true == 1] == 1).float().mean())

    assert 0 <= fit_measured(metrics={"recall": recall}).metrics["valid_recall"] <= 1


def test_collections_alone_and_in_a_dict(torchmetrics: Any) -> None:
    whole = torchmetrics.MetricCollection(
        {
            "acc": torchmetrics.classification.MulticlassAccuracy(2, average="micro"),
            "f1": torchmetrics.classification.MulticlassF1Score(2),
        }
    )
    result = fit_measured(metrics=whole)
    assert result.metrics["valid_acc"] == pytest.approx(result.metrics["valid_accuracy"], abs=1e-6)
    inside = fit_measured(metrics={"all": whole, "right": right})
    assert inside.metrics["valid_all_f1"] == result.metrics["valid_f1"]
    assert fit_measured(metrics=whole, target=("valid_f1", 0.0)).reached is not None


def test_predictions_are_in_the_shape_of_the_targets(torchmetrics: Any) -> None:
    reals = X @ torch.tensor([1.0, 2.0, 0.0, 0.0])
    metrics = {
        "mse": torchmetrics.MeanSquaredError(),
        "own": lambda predictions, targets: ((predictions - targets) ** 2).mean(),
    }
    result = fit_measured((X, reals), torch.nn.Linear(4, 1), (X, reals), metrics=metrics)
    assert result.metrics["valid_mse"] == pytest.approx(result.metrics["valid_loss"], rel=1e-5)
    assert result.metrics["valid_own"] == pytest.approx(result.metrics["valid_loss"], rel=1e-5)


class Fails:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def update(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        if self.value is None:
            raise KeyError("no such thing")

    def compute(self) -> Any:
        return self.value

    def reset(self) -> None: ...


@pytest.mark.parametrize("valid", [(X, Y), DataLoader(TensorDataset(X, Y), 7)], ids=["pair", "loader"])
@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            lambda predictions, targets: predictions.mean(1),
            r"metrics\['m'\] returned a value of shape \(\d+,\): expected one",
        ),
        (lambda predictions, targets: predictions @ targets.float(), r"metrics\['m'\] fails on \d+ samples of valid"),
        (lambda model, data: model.nothing, r"metrics\['m'\] fails .*AttributeError"),
        (Fails(), r"metrics\['m'\] fails .*KeyError"),
        (Fails(torch.ones(3)), r"returned a value of shape \(3,\)"),
        (Fails({"a": 1}), r"returned a value of type dict"),
        (3, r"metrics\['m'\] of type int: expected a function"),
    ],
)
def test_a_metric_that_fails_is_an_error_before_training(metric: Any, message: str, valid: Any) -> None:
    model = torch.nn.Linear(4, 2)
    before = model.weight.clone()
    with pytest.raises(hp.InputError, match=message):
        fit_measured(valid, model, metrics={"m": metric})
    assert torch.equal(model.weight, before)


def test_what_was_trained_is_saved_where_a_metric_fails_later(tmp_path: Path) -> None:
    calls: list[int] = []

    def late(predictions: torch.Tensor, targets: torch.Tensor) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the disk of the metric is full")
        return 1.0

    with pytest.raises(RuntimeError, match="disk of the metric"):
        fit_measured(metrics={"late": late}, run_dir=tmp_path)
    resumed = fit_measured(metrics={"late": late}, run_dir=tmp_path, resume=True)
    assert torch.equal(resumed.model.weight, fit_measured(metrics={"late": late}).model.weight)


# Which way is better


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("valid_loss", "min"), ("valid_wer", "min"), ("valid_word_error_rate", "min"), ("valid_CER", "min"), ("rmse", "min"),
        ("valid_perplexity", "min"), ("MeanAbsoluteError", "min"), ("valid_brier_score", "min"), ("neg_mse", "max"),
        ("valid_accuracy", "max"), ("valid_top5_accuracy", "max"), ("valid_f1", "max"), ("valid_macro_f1", "max"),
        ("valid_auroc", "max"), ("valid_r2", "max"), ("valid_mAP50", "max"), ("valid_bleu4", "max"), ("meanIoU", "max"),
        ("valid_gloss", None), ("valid_foo", None), ("valid_lossless", None), ("valid_accuracy_loss", None),
        ("valid_errorless_rows", None), ("valid_accuracy_drop", None), ("valid_1_minus_accuracy", None),
        ("valid_f1_std", None), ("valid_error_reduction", None), ("valid_inverse_recall", None), ("valid_no_errors", None),
    ],
)  # fmt: skip
def test_the_direction_of_a_known_name_goes_by_whole_words(name: str, way: str | None) -> None:
    assert known_direction(name) == way


class Wer:
    higher_is_better = False


def test_the_metric_itself_comes_first_and_an_unknown_one_is_asked_about(torchmetrics: Any) -> None:
    assert direction("valid_accuracy", Wer()) == "min"
    assert direction("valid_foo", torchmetrics.classification.MulticlassAccuracy(2)) == "max"
    assert direction("valid_foo", torchmetrics.MeanSquaredError()) == "min"
    numpys = lambda predictions, targets: 0.0  # noqa: E731
    numpys.higher_is_better = np.False_  # type: ignore[attr-defined]
    assert direction("valid_foo", numpys) == "min"
    with pytest.raises(hp.InputError, match=r"'valid_foo'.*pass target=\('valid_foo', value, 'min'\)"):
        fit_measured(metrics={"foo": lambda p, t: 1.0}, target=("valid_foo", 0.3))
    with pytest.raises(hp.InputError, match=r"'down' is not known.*: expected one of min, max"):
        fit_measured(metrics={"foo": lambda p, t: 1.0}, target=("valid_foo", 0.3, "down"))


@pytest.mark.parametrize("target", [("valid_wer", 0.3), ("valid_foo", 0.3, "min")])
def test_a_target_is_reached_from_the_right_side(target: Any) -> None:
    goal = check_target(target, (X, Y), {target[0].removeprefix("valid_"): lambda p, t: 0.0})
    history = [{target[0]: value, "train_seconds": at, "step": at} for at, value in enumerate([0.9, 0.8, 0.25, 0.4])]
    for again in (goal, pickle.loads(pickle.dumps(goal))):
        assert reached(history, again) == 2
        assert best_step(history, again) == 2
        assert again[:2] == target[:2]


def test_a_run_to_an_error_rate_goes_on_until_it_is_low() -> None:
    values = iter([0.5, 0.9, 0.8, 0.25, 0.1])
    result = fit_measured(metrics={"wer": lambda p, t: next(values)}, target=("valid_wer", 0.3), epochs=4)
    assert [record["valid_wer"] for record in result.history] == [0.9, 0.8, 0.25]
    assert result.best_step == result.history[-1]["step"]


# What is not finite


@pytest.mark.parametrize("kind", ["pair", "loader"])
def test_outputs_that_are_not_finite_count_as_wrong_in_every_metric(kind: str, torchmetrics: Any) -> None:
    bad = X.clone()
    bad[:30] = math.nan
    valid: Any = (bad, torch.zeros(50, dtype=torch.long))
    valid = DataLoader(TensorDataset(*valid), 9) if kind == "loader" else valid
    metrics = {
        "accuracy2": torchmetrics.classification.MulticlassAccuracy(2, average="micro"),
        "right": right,
        "old": lambda model, data: 1.0,
    }
    result = fit_measured(valid, metrics=metrics, target=("valid_accuracy", 0.9))
    assert result.reached is None
    assert result.metrics["valid_accuracy"] <= 0.4
    assert result.metrics["valid_right"] == pytest.approx(result.metrics["valid_accuracy"])
    assert result.metrics["valid_accuracy2"] == pytest.approx(result.metrics["valid_accuracy"])
    assert math.isnan(result.metrics["valid_old"])
    assert result.best_step is None
    assert "validation data: 30 of 50 outputs are not finite and count as wrong" in result.notes
    with pytest.warns(UserWarning, match="30 of 50 outputs are not finite"):
        assert hp.evaluate(result.model, valid)["accuracy"] <= 0.4


def test_a_regression_with_outputs_that_are_not_finite_has_no_metric() -> None:
    reals, bad = X.sum(1), X.clone()
    bad[3] = math.inf
    metrics = {"own": lambda p, t: 0.0}
    result = fit_measured((bad, reals), torch.nn.Linear(4, 1), (X, reals), metrics=metrics, target=("valid_loss", 1e9))
    assert math.isnan(result.metrics["valid_own"])
    assert result.reached is None


class Mangled:
    """Works in place on what it is given, as metrics that clamp or sort do."""

    higher_is_better = True

    def update(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        output.zero_()
        targets.zero_()

    def compute(self) -> float:
        return 1.0

    def reset(self) -> None: ...


def mangling(predictions: torch.Tensor, targets: torch.Tensor) -> float:
    predictions.numpy()[:] = 0
    targets.add_(1)
    return 1.0


def in_place_loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.nll_loss(output.sub_(output.logsumexp(1, keepdim=True).detach()), targets.mul_(0))


@pytest.mark.parametrize("kind", ["pair", "loader"])
@pytest.mark.parametrize("loss", [None, in_place_loss], ids=["cross-entropy", "in place"])
def test_no_metric_and_no_loss_sees_what_another_one_wrote(kind: str, loss: Any, torchmetrics: Any) -> None:
    valid: Any = (X.clone(), Y.clone())
    given = DataLoader(TensorDataset(*valid), 9) if kind == "loader" else valid
    metrics = {
        "a": Mangled(),
        "b": mangling,
        "right": right,
        "micro": torchmetrics.classification.MulticlassAccuracy(2, average="micro"),
    }
    result = fit_measured(given, metrics=metrics, loss=loss)
    truth = float(right(result.model(X), Y))
    for name in ("accuracy", "right", "micro"):
        assert result.metrics[f"valid_{name}"] == pytest.approx(truth), name
    assert torch.equal(valid[0], X)
    assert torch.equal(valid[1], Y)


class Reused(torch.nn.Module):
    """Gives one buffer again and again in evaluation, as a compiled graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)
        self.register_buffer("buffer", torch.zeros(50, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.linear(x)
        return output if torch.is_grad_enabled() else self.buffer[: len(x)].copy_(output)


def test_a_model_that_fills_one_buffer_again_and_again() -> None:
    result = fit_measured(DataLoader(TensorDataset(X, Y), 10), Reused(), metrics={"right": right})
    assert result.metrics["valid_right"] == pytest.approx(result.metrics["valid_accuracy"])


class Several(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"box": torch.zeros(len(x), 4), "classes": self.linear(x)}


def test_outputs_of_several_parts_that_are_not_finite_have_no_metric() -> None:
    bad = X.clone()
    bad[:10] = math.nan
    loss = lambda output, targets: torch.nn.functional.cross_entropy(output["classes"], targets)  # noqa: E731
    result = fit_measured(
        (bad, Y), Several(), metrics={"one": lambda p, t: 1.0}, loss=loss, target=("valid_one", 0.5, "max")
    )
    assert math.isnan(result.metrics["valid_one"])
    assert result.reached is None
    assert "validation data: 10 of 50 outputs are not finite and count as wrong" in result.notes


def test_metrics_are_given_contiguous_outputs_whatever_the_memory_format() -> None:
    images, masks = torch.randn(8, 3, 4, 4), torch.randint(0, 2, (8, 4, 4))
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"))
    flat = lambda predictions, targets: predictions.view(len(predictions), -1).mean()  # noqa: E731
    settings = {"metrics": {"flat": flat}, "tricks": tricks, "batch_size": 4}
    assert "valid_flat" in fit_measured((images, masks), torch.nn.Conv2d(3, 2, 1), (images, masks), **settings).metrics
