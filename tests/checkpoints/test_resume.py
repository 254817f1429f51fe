"""A resumed run ends bit for bit where an uninterrupted one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import VALID, adamw, assert_equal_weights, fit, make_images, sgd
from torch.utils.data import DataLoader, Dataset, TensorDataset

import heptane as hp

pytestmark = pytest.mark.usefixtures("undrawn")


def net(seed: int = 0) -> torch.nn.Module:
    """With BatchNorm and dropout: statistics and randomness that have to go on too."""
    torch.manual_seed(seed)
    hidden = (torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3))
    return torch.nn.Sequential(torch.nn.Flatten(), *hidden, torch.nn.Linear(16, 4))


TRAIN = make_images(50)  # the last batch of an epoch is short
nesterov = partial(sgd, nesterov=True)


class Map(Dataset[Any]):
    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return TRAIN[0][index] + self.noise * torch.randn(1, 8, 8), TRAIN[1][index]


def loader(**settings: Any) -> Any:
    return DataLoader(TensorDataset(*TRAIN), 16, shuffle=True, **settings)


class Interrupt:
    """A validation set that, the n-th time it is read, raises what Ctrl-C does."""

    def __init__(self, at: int) -> None:
        self.at, self.times = at + 1, 0  # it is looked at once before training

    def __len__(self) -> int:
        return len(VALID[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.times += index == 0
        if self.times == self.at:
            raise KeyboardInterrupt
        return VALID[0][index], VALID[1][index]


def fit_in(model: torch.nn.Module, data: Any, valid: Any, folder: Path, **settings: Any) -> hp.Result:
    return fit(model, data, valid, run_dir=folder, **{"optimizer": nesterov, "epochs": 4, "test": VALID, **settings})


def timeless(value: Any) -> Any:
    """A record without its times."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return {k: v for k, v in value.items() if "seconds" not in k} if isinstance(value, dict) else value


def compare(folder: Path, data: Callable[[], Any], at: int = 3, **settings: Any) -> hp.Result:
    whole = fit_in(net(), data(), VALID, folder / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        fit_in(net(), data(), Interrupt(at), folder / "parts", **settings)
    again = fit_in(net(seed=8), data(), VALID, folder / "parts", resume=True, **settings)
    assert_equal_weights(whole.model, again.model)
    assert timeless(again.history) == timeless(whole.history)
    assert again.metrics == whole.metrics
    assert again.steps == whole.steps
    return again


CYCLE = hp.Tricks(cyclical=hp.Cyclical())
DATA: dict[str, Callable[[], Any]] = {"tensors": lambda: TRAIN, "dataset": Map, "loader": loader}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("optimizer", [nesterov, adamw])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(data: str, optimizer: Any, tmp_path: Path) -> None:
    compare(tmp_path, DATA[data], optimizer=optimizer)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    "tricks",
    [
        hp.Tricks(mixup=hp.Mixup(alpha=0.4)),
        hp.Tricks(mixup=hp.Mixup(alpha=0.4, cutmix_alpha=1.0), label_smoothing=hp.LabelSmoothing(), cyclical=hp.Cyclical()),
        hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16"), lr_scaling=hp.LRScaling(reference_batch=8)),
    ],
)
def test_a_resumed_run_with_tricks_is_too(data: str, tricks: hp.Tricks, tmp_path: Path) -> None:
    compare(tmp_path, DATA[data], tricks=tricks)


@pytest.mark.parametrize("data", DATA)
def test_so_is_one_that_accumulates_clips_and_augments(data: str, tmp_path: Path) -> None:
    even = {} if data == "loader" else {"batch_size": 10}  # BatchNorm cannot learn from a part of one sample
    compare(tmp_path, DATA[data], tricks=CYCLE, accumulate=2, clip_norm=0.5, augment=hp.CropFlip(), **even)


@pytest.mark.parametrize("at", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("data", DATA)
def test_so_is_one_that_goes_on_in_the_middle_of_an_epoch(data: str, at: int, tmp_path: Path) -> None:
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=0.4), cyclical=hp.Cyclical())
    compare(tmp_path, DATA[data], at=at, tricks=tricks, evaluate_every_epochs=0.5)


def test_so_is_one_whose_dataset_draws_at_random(tmp_path: Path) -> None:
    compare(tmp_path, lambda: Map(noise=0.5))
    compare(tmp_path / "middle", lambda: Map(noise=0.5), at=4, evaluate_every_epochs=0.5)


def test_so_is_one_whose_loader_has_a_generator_of_its_own(tmp_path: Path) -> None:
    compare(tmp_path, lambda: loader(generator=torch.Generator().manual_seed(3)))


def test_so_is_one_that_was_interrupted_twice(tmp_path: Path) -> None:
    whole = fit_in(net(), TRAIN, VALID, tmp_path / "whole", optimizer=adamw)
    for at, resume in ((2, False), (3, True)):
        with pytest.raises(KeyboardInterrupt):
            fit_in(net(seed=9 * resume), TRAIN, Interrupt(at), tmp_path / "parts", resume=resume, optimizer=adamw)
    again = fit_in(net(seed=8), TRAIN, VALID, tmp_path / "parts", resume=True, optimizer=adamw)
    assert [record["epoch"] for record in again.history] == [1, 2, 3, 4]
    assert_equal_weights(whole.model, again.model)


def test_transfer_goes_on_in_its_phase(tmp_path: Path) -> None:
    tricks = hp.Tricks(transfer=hp.Transfer(freeze=1, unfreeze_every_epochs=1.0))
    for at in (2, 3):
        compare(tmp_path / str(at), lambda: TRAIN, at=at, tricks=tricks)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit_in(net(), TRAIN, VALID, tmp_path)
    again = fit_in(net(seed=8), TRAIN, VALID, tmp_path, resume=True)
    assert_equal_weights(first.model, again.model)
    assert timeless(again.history) == timeless(first.history)
    assert again.metrics == first.metrics


def test_a_run_that_reached_its_target_is_not_trained_past_it(tmp_path: Path) -> None:
    first = fit_in(net(), TRAIN, VALID, tmp_path, target=0.5, epochs=20)
    assert first.reached is not None
    again = fit_in(net(seed=8), TRAIN, VALID, tmp_path, resume=True, target=0.5, epochs=20)
    assert again.steps["applied"] == first.steps["applied"]
    assert again.reached == first.reached


def test_a_folder_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    fresh = fit_in(net(), TRAIN, VALID, tmp_path / "a")
    resumed = fit_in(net(), TRAIN, VALID, tmp_path / "b", resume=True)
    assert_equal_weights(fresh.model, resumed.model)


def test_another_runs_folder_is_refused_and_kept(tmp_path: Path) -> None:
    fit_in(net(), TRAIN, VALID, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(hp.InputError, match="written with seed 0, and this run has 1"):
        fit_in(net(), TRAIN, VALID, tmp_path, resume=True, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_clocks_and_events_of_both_parts_are_in_the_result(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_in(net(), TRAIN, Interrupt(3), tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    again = fit_in(net(), TRAIN, VALID, tmp_path, resume=True)
    assert again.seconds["train"] > events[-1]["train_seconds"] == again.history[1]["train_seconds"]
    assert again.seconds["wall"] >= again.seconds["train"]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event.get("epoch") for event in events if event["event"] != "note"] == [1, 2, 3, 4, None]
    found = json.loads((tmp_path / "result.json").read_text())
    assert timeless(found["history"]) == timeless(again.history)
