"""The loss chosen from the targets, in whole runs: it learns, says what was chosen, and evaluation agrees."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.helpers import fit, sgd
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0.3).long()


def fit_long(model: torch.nn.Module, train: Any, valid: Any = None, **settings: Any) -> hp.Result:
    return fit(model, train, valid, **{"epochs": 6, **settings})


def net(outputs: int = 1) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(4, outputs)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"tricks": hp.Tricks(mixup=hp.Mixup())}], ids=str)
@pytest.mark.parametrize("column", [False, True])
def test_one_logit_learns_two_classes_and_says_so(dtype: torch.dtype, settings: dict[str, Any], column: bool) -> None:
    targets = LABELS.to(dtype).reshape(-1, *[1] * column)
    result = fit_long(net(), (X, targets), (X, targets), **settings)
    assert result.metrics["valid_accuracy"] > 0.9
    assert "loss binary_cross_entropy: the targets are 0 and 1, and there is one logit for each" in result.notes
    plain = fit_long(net(), (X, LABELS.float()[:, None]), loss="binary_cross_entropy", **settings)
    assert torch.equal(plain.model.weight, result.model.weight)
    found = hp.evaluate(result.model, (X, targets))
    assert found["accuracy"] == result.metrics["valid_accuracy"]


def test_one_logit_with_smoothing_and_a_loader() -> None:
    loader = DataLoader(TensorDataset(X, LABELS), 20)
    result = fit_long(net(), loader, loader, tricks=hp.Tricks(label_smoothing=hp.LabelSmoothing()))
    assert result.metrics["valid_accuracy"] > 0.9


def test_a_named_loss_wins() -> None:
    result = fit_long(net(), (X, LABELS.float()), (X, LABELS.float()), loss="mse", optimizer=torch.optim.AdamW)
    assert "valid_accuracy" not in result.metrics
    assert "loss mse: asked for" in result.notes


def test_a_first_batch_that_looked_like_labels_is_found_out() -> None:
    targets = torch.cat([torch.zeros(60), torch.full((60,), 2.5)])
    loader = DataLoader(TensorDataset(X, targets), 20)
    with pytest.raises(hp.InputError, match=r"a target is 2.5, but in the first batch all were labels in \[0, 1\]"):
        fit_long(net(), loader)
    with pytest.raises(hp.InputError, match=r"a target is 2.5"):
        fit_long(net(), (X, LABELS), DataLoader(TensorDataset(X, targets), 120))


def test_labels_beyond_a_binary_loss_are_refused_before_training() -> None:
    for targets in (LABELS * 2 - 1, LABELS.float() * 3):
        with pytest.raises(hp.InputError, match=r"which needs each in \[0, 1\]: .*pass loss='mse'"):
            fit_long(net(), (X, targets), loss=torch.nn.BCEWithLogitsLoss())
    with pytest.raises(hp.InputError, match=r"has one output.*pass loss='binary_cross_entropy'"):
        fit_long(net(), (X, LABELS), loss="cross_entropy")


@pytest.mark.parametrize("loss", [torch.nn.SmoothL1Loss(), torch.nn.HuberLoss(), lambda o, t: ((o - t) ** 2).mean()])
def test_a_loss_on_n_by_1_and_n_learns_the_targets_and_not_their_mean(loss: Any) -> None:
    targets = X @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    result = fit_long(
        net(), (X, targets), (X, targets), loss=loss, epochs=20, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    assert result.metrics["valid_loss"] < 0.05


def test_targets_that_are_distributions_in_the_first_batch_only_are_refused() -> None:
    one_hot = torch.eye(3)[torch.arange(64) % 3]
    several = torch.cat([one_hot[:16], torch.ones(48, 3)])
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4), several), 16)
    with pytest.raises(hp.InputError, match=r"a row of targets sums to 3, .*loss='binary_cross_entropy'"):
        hp.fit(torch.nn.Linear(4, 3), data, optimizer=sgd, epochs=1)
    hp.fit(torch.nn.Linear(4, 3), data, optimizer=sgd, epochs=1, loss="binary_cross_entropy")
    hp.fit(torch.nn.Linear(4, 3), data, optimizer=sgd, epochs=1, loss="cross_entropy")


class Stream(torch.utils.data.IterableDataset[Any]):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        yield from zip(self.x, self.y, strict=True)


class Counts(torch.nn.Module):
    """Notes how often it was called in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.steps = torch.nn.Linear(4, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training and torch.is_grad_enabled()
        return self.linear(x)


def made(kind: str, x: torch.Tensor, y: torch.Tensor) -> Any:
    data = torch.utils.data.TensorDataset(x, y)
    return {
        "tensors": lambda: (x, y),
        "data set": lambda: data,
        "loader": lambda: torch.utils.data.DataLoader(data, 16, shuffle=True),
        "readers": lambda: torch.utils.data.DataLoader(data, 16, num_workers=1),
        "sampled": lambda: torch.utils.data.DataLoader(data, batch_sampler=[[0, 1], [2, 3]]),
        "batches": lambda: torch.utils.data.DataLoader(
            Stream(x.view(4, 16, 4), y.view(4, 16, *y.shape[1:])), batch_size=None
        ),
        "stream": lambda: torch.utils.data.DataLoader(Stream(x, y), 16),
    }[kind]()


KINDS = ["tensors", "data set", "loader", "readers", "sampled", "batches", "stream"]
INPUTS, CLASSES = torch.randn(64, 4), torch.randint(0, 3, (64,))
own = lambda output, targets: (output * targets).mean()  # noqa: E731


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("train", "valid", "loss", "message"),
    [
        (CLASSES, CLASSES + 5, None, r"valid.*out of range: .*labels are 0 to 2"),
        (CLASSES, torch.rand(64, 7), None, r"valid: soft targets of shape \(7,\)"),
        (torch.randn(64, 3), torch.randn(64, 5), "mse", r"valid: outputs of shape \(3,\) and targets of shape \(5,\)"),
        (torch.randn(64, 3), torch.randn(64, 5), own, r"valid: the loss fails on the first samples .*targets of shape"),
    ],
    ids=["labels", "distributions", "mse", "own"],
)
def test_validation_targets_that_do_not_fit_are_refused_before_training(
    kind: str, train: torch.Tensor, valid: torch.Tensor, loss: Any, message: str
) -> None:
    model = Counts()
    with pytest.raises(hp.InputError, match=message):
        hp.fit(model, (INPUTS, train), made(kind, INPUTS, valid), loss=loss, optimizer="sgd", epochs=1, batch_size=16)
    assert model.steps == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_at_validation_data_changes_nothing(kind: str) -> None:
    found = []
    for look in (True, False):
        torch.manual_seed(0)
        model, valid = Counts(), made(kind, INPUTS, CLASSES)
        with pytest.MonkeyPatch.context() as patch:
            if not look:
                patch.setattr(sys.modules["heptane.training"], "check_evaluation", lambda *args, **more: [])
            result = hp.fit(model, (INPUTS, CLASSES), valid, optimizer="sgd", epochs=2, batch_size=16)
        found.append((result.history[-1]["valid_loss"], model.linear.weight.tolist(), torch.rand(1).item()))
    assert found[0] == found[1]


class Once(torch.utils.data.IterableDataset[Any]):
    """Can be read once."""

    def __init__(self) -> None:
        self.left = iter(zip(INPUTS, CLASSES, strict=True))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.left)


def test_data_that_can_be_read_once_are_not_looked_at() -> None:
    seen: list[int] = []

    def count(predictions: torch.Tensor, targets: torch.Tensor) -> float:
        seen.append(len(targets))
        return 0.0

    valid = torch.utils.data.DataLoader(Once(), 16)
    hp.fit(Counts(), (INPUTS, CLASSES), valid, metrics={"count": count}, optimizer="sgd", epochs=1, batch_size=16)
    assert seen == [64]
