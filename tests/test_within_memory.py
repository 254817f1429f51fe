"""Evaluation batches: no more memory than training takes, and halved where that is too much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import random_data, sgd
from tests.workers import TWO
from torch import nn

import heptane as hp
from heptane.core.evaluation import BatchSplitter, eval_batch_size


class Seen(nn.Module):
    """Notes how many samples come at once in evaluation, and has room for so many."""

    def __init__(self, room: int = 1 << 30, wide: int = 1) -> None:
        super().__init__()
        self.first, self.head, self.room = nn.Linear(4, wide), nn.Linear(wide, 3), room
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            object.__setattr__(self, "sizes", [*self.sizes, len(x)])
        if len(x) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return self.head(self.first(x))


def test_small_models_are_evaluated_512_at_once_and_wide_ones_as_training_takes() -> None:
    x = random_data(8)[0]
    assert eval_batch_size(Seen(), x, least=8) == 512
    wide = Seen(wide=1 << 20)  # 4 MiB per sample
    assert eval_batch_size(wide, x, least=8) == 32
    assert eval_batch_size(wide, x, least=100) == 100
    assert eval_batch_size(Seen(), x, least=1000) == 512
    assert eval_batch_size(wide, x, least=8, tries=False) == 512
    assert not wide._forward_hooks
    assert wide.sizes == []


def test_a_run_evaluates_within_what_training_takes() -> None:
    model, data = Seen(wide=1 << 20), random_data(48)
    hp.fit(model, data, data, optimizer=sgd, epochs=1, batch_size=8)
    assert max(model.sizes) == 32


def test_a_batch_size_that_is_given_to_evaluate_holds() -> None:
    model, data = Seen(wide=1 << 20), random_data(48)
    hp.evaluate(model, data, batch_size=48)
    assert model.sizes[-1] == 48
    hp.evaluate(model, data)
    assert model.sizes[-2:] == [32, 16]


@pytest.mark.parametrize("loss", [None, lambda output, targets: nn.functional.cross_entropy(output, targets)])
def test_where_memory_is_short_an_evaluation_goes_on_in_halves_with_the_same_numbers(loss: Any) -> None:
    data, model = random_data(100), Seen()
    metrics = {"mean": lambda predictions, targets: float(predictions.double().mean())}
    whole = hp.evaluate(model, data, loss=loss, metrics=metrics)
    model.room = 13
    model.sizes = []
    assert hp.evaluate(model, data, loss=loss, metrics=metrics, batch_size=64) == pytest.approx(whole, rel=1e-6)
    assert [size for size in model.sizes if size > 13] in ([64, 32, 16], [32, 64, 32, 16])  # tried once, not again


def test_one_sample_that_does_not_fit_and_other_errors_are_raised() -> None:
    def raising(text: str) -> Any:
        def compute(inputs: Any, targets: Any) -> Any:
            raise RuntimeError(text)

        return compute

    inputs, targets = random_data(4)
    for text in ("out of memory", "shapes cannot be multiplied"):
        with pytest.raises(RuntimeError, match=text):
            list(BatchSplitter(raising(text)).of(inputs, targets))


@pytest.mark.usefixtures("forked", "undrawn")
def test_a_metric_that_raises_on_several_workers_loses_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = list(zip(*random_data(64), strict=True))

    class Items(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(valid)

        def __getitem__(self, index: int) -> Any:
            return valid[index]

    def much(predictions: torch.Tensor, targets: torch.Tensor) -> float:
        if len(targets) > 32:  # more than the trial before training reads of a data set
            raise ValueError("too many for me")
        return 0.5

    model = nn.Linear(4, 3)
    with pytest.raises(RuntimeError, match=r"metrics\['much'\] failed: ValueError: too many for me"):
        hp.fit(
            model,
            random_data(64),
            Items(),
            optimizer=sgd,
            epochs=1,
            batch_size=16,
            tricks=TWO,
            metrics={"much": much},
            run_dir=tmp_path / "run",
        )
    result = hp.fit(
        model,
        random_data(64),
        Items(),
        optimizer=sgd,
        epochs=1,
        batch_size=16,
        tricks=TWO,
        run_dir=tmp_path / "run",
        resume=True,
    )
    assert result.history[-1]["step"] == 4
    assert list((tmp_path / "run").glob("checkpoints/*4*"))
