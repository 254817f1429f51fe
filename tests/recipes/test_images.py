"""The images recipe on made-up images, with a small network in place of EfficientNet."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import heptane as hp
import images


def clothes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright patch per class, at another place each."""
    labels = torch.arange(count) % 10
    pictures = 0.1 * torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        picture[0, 5 * (label // 5) : 5 * (label // 5) + 10, 5 * (label % 5) : 5 * (label % 5) + 5] += 2
    return pictures, labels


class Small(nn.Sequential):
    """Takes what EfficientNet takes."""

    def __init__(self, num_classes: int) -> None:
        body = [nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nn.Flatten()]
        super().__init__(*body, nn.Linear(8 * 64, num_classes))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = clothes(300, 0), clothes(100, 1), clothes(60, 2)
    made = hp.Data("made-up", *parts, 10, (), (), "this file", (0.0,), (1.0,))
    monkeypatch.setattr(images, "data", lambda: made)
    monkeypatch.setattr(images, "efficientnet_lite0", lambda num_classes, pretrained: Small(num_classes))
    scratch, head, last, whole = images.ARMS
    last = replace(last, transfer=replace(last.transfer, freeze=1))  # there are two groups, not nineteen
    monkeypatch.setattr(images, "ARMS", (scratch, head, last, whole))


def test_images_are_enlarged_and_of_each_class_there_are_as_many():
    pictures, labels = images.images(3)
    assert pictures.shape == (30, 3, 64, 64)
    assert labels.bincount().tolist() == [3] * 10
    assert images.first(images.data().test, 20)[0].shape == (20, 3, 64, 64)


def test_only_the_head_learns_where_the_rest_is_frozen(monkeypatch):
    start = Small(10)
    monkeypatch.setattr(
        images, "efficientnet_lite0", lambda *_, pretrained: copy.deepcopy(start) if pretrained else Small(10)
    )
    train, valid, test = images.images(10), images.first(images.data().valid, 50), images.first(images.data().test, 50)
    scratch, head, last, whole = images.ARMS
    for arm, moved in ((head, {"5.weight", "5.bias"}), (last, {"5.weight", "5.bias"}), (whole, set(start.state_dict()))):
        trained = images.train_arm(arm, 2, train, valid, test, seed=0).model.state_dict()
        assert {name for name, tensor in start.state_dict().items() if not torch.equal(tensor, trained[name])} == moved
    assert images.train_arm(scratch, 8, train, valid, test, seed=0).metrics["test_accuracy"] > 0.9


def test_when_the_best_of_scratch_is_reached():
    history = [{"valid_accuracy": a, "train_seconds": s} for a, s in ((0.2, 1.0), (0.6, 2.0), (0.5, 3.0), (0.7, 4.0))]
    done = hp.Result(Small(10), history, {"test_accuracy": 0.65}, {"train": 4.5}, None, None, {}, {}, hp.Tricks())
    assert images.measured(done, 0.55) == {
        "test accuracy": 0.65,
        "seconds to scratch's best": 2.0,
        "training seconds": 4.5,
    }
    assert images.measured(done, 0.8)["seconds to scratch's best"] == float("inf")


def test_the_short_version_measures_every_arm(tmp_path, capsys):
    images.main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "recipe-images.json").read_text())
    assert list(found["arms"]) == [f"10 labels, {arm.name}" for arm in images.ARMS]
    seconds = found["arms"]["10 labels, scratch"]["seconds to scratch's best"]["mean"]
    assert 0 < seconds <= found["arms"]["10 labels, scratch"]["training seconds"]["mean"]
    assert list(found["times_faster_to_scratch_best"]) == [f"10 labels, {arm.name}" for arm in images.ARMS[1:]]
