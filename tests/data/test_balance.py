"""Balanced sampling and class weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import sgd

import heptane as hp
from heptane.data.balance import balanced_order, class_weights
from heptane.data.batches import BatchTransform, TensorSource
from heptane.data.splits import out_of_balance

LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 6)
INPUTS = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))


def linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def fitted(data: Any = (INPUTS, LABELS), **extras: Any) -> torch.Tensor:
    more = {name: extras.pop(name) for name in ("tricks", "accumulate", "loss") if name in extras}
    settings = {"optimizer": sgd, "epochs": 2, "batch_size": 24, **more}
    return hp.fit(linear(), data, extras=hp.Extras(**extras), **settings).model.weight.detach().clone()


def test_each_class_is_as_likely_and_each_sample_of_it() -> None:
    drawn = torch.cat([balanced_order(LABELS, 3, epoch) for epoch in range(300)])
    by_class = LABELS[drawn].bincount() / len(drawn)
    assert torch.allclose(by_class, torch.full((3,), 1 / 3), atol=0.01)
    by_sample = drawn.bincount(minlength=96) / len(drawn) * 3 * LABELS.bincount()[LABELS]
    assert torch.allclose(by_sample, torch.ones(96), atol=0.4)
    assert by_sample[LABELS == 2].std() < 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40).filter(lambda labels: max(labels) >= 0), st.integers(0, 99))
def test_an_epoch_keeps_its_length_and_ignored_samples_are_never_drawn(labels: list[int], seed: int) -> None:
    found = balanced_order(torch.tensor(labels), seed, 1)
    assert found.shape == (len(labels),)
    assert all(labels[at] >= 0 for at in found.tolist())
    assert torch.equal(found, balanced_order(torch.tensor(labels), seed, 1))


def test_the_order_is_a_function_of_seed_and_epoch_and_starts_anywhere() -> None:
    def steps(start: int, seed: int = 1) -> list[list[int]]:
        source = TensorSource(INPUTS, LABELS, 24, seed, sampling="balanced")
        place = BatchTransform(torch.device("cpu"))
        return [batch.indices for _, batch in source.batches(start, 12, place)]

    assert steps(0)[5:] == steps(5)
    assert steps(0)[:4] != steps(0)[4:8]
    assert steps(0) != steps(0, seed=2)
    assert len(steps(0)) == 12


def test_balanced_sampling_in_a_run_is_a_loop_over_that_order() -> None:
    model = linear()
    optimizer = sgd(model.parameters())
    for epoch in range(2):
        for rows in balanced_order(LABELS, 0, epoch).split(24):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(INPUTS[rows]), LABELS[rows]).backward()
            optimizer.step()
    assert torch.equal(fitted(sampling="balanced"), model.weight)
    assert not torch.equal(fitted(), model.weight)
    assert torch.equal(fitted(sampling="shuffle"), fitted())


@pytest.mark.parametrize(
    ("wanted", "plain"), [("balanced", [96 / 180, 96 / 90, 96 / 18]), ([1, 2, 5], [1, 2, 5]), ("1,2,5", [1, 2, 5])]
)
def test_class_weights_in_a_run_are_those_of_the_loss(wanted: Any, plain: list[float]) -> None:
    weights = torch.tensor(plain, dtype=torch.float32)
    weights = weights / weights[LABELS].mean()
    assert torch.allclose(class_weights(wanted, LABELS, 3), weights)
    want = fitted(loss=torch.nn.CrossEntropyLoss(weight=weights))
    assert torch.allclose(fitted(class_weights=wanted), want, atol=1e-6)
    assert torch.allclose(fitted(class_weights=wanted, accumulate=3), want, atol=1e-6)
    assert not torch.allclose(fitted(), want, atol=1e-3)


def test_a_class_without_samples_weighs_1_and_the_mean_is_1() -> None:
    labels = torch.tensor([0, 0, 0, 2, -100])
    found = class_weights("balanced", labels, 4)
    assert found.tolist() == pytest.approx([2 / 3, 1, 2, 1])
    assert float(found[labels[:4]].mean()) == pytest.approx(1)


def test_weights_go_with_smoothing_and_mixup() -> None:
    tricks = hp.Tricks(label_smoothing=hp.LabelSmoothing(), mixup=hp.Mixup())
    weights = class_weights("balanced", LABELS, 3)
    want = fitted(loss=torch.nn.CrossEntropyLoss(weight=weights), tricks=tricks)
    assert torch.allclose(fitted(class_weights="balanced", tricks=tricks), want, atol=1e-6)


def test_a_resume_with_another_sampling_or_other_weights_is_refused(tmp_path: Any) -> None:
    def go(**extras: Any) -> None:
        settings = {"optimizer": sgd, "epochs": 1, "batch_size": 24, "run_dir": tmp_path / "run"}
        hp.fit(linear(), (INPUTS, LABELS), extras=hp.Extras(**extras), resume=True, **settings)

    go(sampling="balanced", class_weights="balanced")
    go(sampling="balanced", class_weights="balanced")
    with pytest.raises(hp.InputError, match="with sampling balanced, and this run has shuffle"):
        go(class_weights="balanced")
    with pytest.raises(hp.InputError, match=r"loss\.weight"):
        go(sampling="balanced", class_weights=[1, 2, 3])


@pytest.mark.parametrize("option", ["sampling", "class_weights"])
def test_data_without_classes_in_memory_are_refused(option: str) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, LABELS), 24)
    for data, message in (
        (loader, f"{option}.* needs the training data in memory.*WeightedRandomSampler"),
        ((INPUTS, torch.rand(96)), rf"{option}.* needs one class per sample, .* the targets are torch.float32 \(96,\)"),
        ((INPUTS, torch.rand(96, 3)), rf"{option}.* needs one class per sample, .* \(96, 3\)"),
    ):
        with pytest.raises(hp.InputError, match=message):
            hp.fit(linear(), data, optimizer=sgd, epochs=1, batch_size=24, extras=hp.Extras(**{option: "balanced"}))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"sampling": "even"}, "sampling='even' is not known.*expected one of shuffle, balanced"),
        ({"class_weights": "even"}, "class_weights='even' is not known"),
        ({"class_weights": "1,x"}, "class_weights='1,x': expected 'balanced' or a number for each class"),
        ({"class_weights": [1, -1]}, r"class_weights=-1\.0 is out of range"),
        ({"class_weights": [0, 0]}, "expected a weight above 0"),
        ({"class_weights": 3}, "class_weights=3: expected"),
        ({"class_weights": [1, 2]}, "has 2 numbers: expected one for each of the 3 classes"),
        ({"class_weights": "balanced", "loss": torch.nn.CrossEntropyLoss(weight=torch.ones(3))}, "weights of its own"),
        ({"class_weights": "balanced", "loss": lambda outputs, _: outputs.mean()}, "class_weights with loss own"),
    ],
)
def test_wrong_options_are_refused(extras: dict[str, Any], message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        fitted(**extras)


def test_the_note_on_imbalance_names_the_options() -> None:
    (note,) = out_of_balance([150, 60, 2], ["A", "B", "Z"])
    assert "--sampling balanced or --class-weights balanced (in Python hp.Extras)" in note
