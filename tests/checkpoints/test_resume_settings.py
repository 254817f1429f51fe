"""Which settings may change on resume; the others are refused by name."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.facts import fit_with_facts
from tests.helpers import TRAIN, VALID, assert_equal_weights, fit, make_images, mlp, sgd
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, TensorDataset

import heptane as hp
from heptane.session.checkpoints.describe import describe
from heptane.session.checkpoints.settings import MAY_CHANGE, MUST_MATCH

pytestmark = pytest.mark.usefixtures("undrawn")
SGD, ADAM = torch.optim.SGD, torch.optim.AdamW
CYCLE = hp.Tricks(cyclical=hp.Cyclical())


def fit_in(folder: Path | None, *, model: Any = None, train: Any = TRAIN, **settings: Any) -> hp.Result:
    return fit(model or mlp(), train, VALID, run_dir=folder, **settings)


def cut(folder: Path, **settings: Any) -> None:
    """A run that stops after its first epoch."""
    fit_in(folder, target=("valid_loss", 1e9), **settings)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Focal(torch.nn.Module):
    def __init__(self, gamma: float = 2.0, weight: list[float] | None = None) -> None:
        super().__init__()
        self.gamma, self.calls = gamma, 0
        self.register_buffer("weight", torch.tensor(weight or [1.0, 1, 1, 1]))

    def forward(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        loss = torch.nn.functional.cross_entropy(output, targets, self.weight, reduction="none")
        return ((1 - (-loss).exp()) ** self.gamma * loss).mean()


def scaled(by: float) -> Callable[[Any, Any], Any]:
    return lambda output, targets: by * torch.nn.functional.cross_entropy(output, targets)


def jitter(inputs: torch.Tensor, by: float = 0.1) -> torch.Tensor:
    return inputs + by * torch.randn(inputs.shape)


TWO_GROUPS = [0.1, 0.2]


def grouped(params: Any, rates: list[float] = TWO_GROUPS) -> torch.optim.Optimizer:
    params = list(params)
    return SGD([{"params": params[:1], "lr": rates[0]}, {"params": params[1:], "lr": rates[1]}])


class Own(SGD):
    def __init__(self, params: Any, beta: float = 0.5) -> None:
        super().__init__(params, lr=0.1)
        self.beta = beta


def parted(params: Any, weights_first: bool = True) -> torch.optim.Optimizer:
    groups = [{"params": [p]} for p in params]
    return SGD(groups if weights_first else groups[::-1], lr=0.1)


def dropping(share: float, frozen: bool = False) -> torch.nn.Module:
    layers = torch.nn.Sequential(torch.nn.Dropout(share), torch.nn.Flatten(), torch.nn.Linear(64, 4))
    layers[2].bias.requires_grad_(not frozen)
    return layers


ce = torch.nn.CrossEntropyLoss
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "loss by name": ({}, {"loss": ce(label_smoothing=0.1)}, r"loss\.eps 0\.0, and this run has 0\.1"),
    "a loss's weights": (
        {"loss": ce(weight=torch.tensor([1.0, 1, 1, 2]))},
        {"loss": ce(weight=torch.tensor([1.0, 1, 1, 3]))},
        r"loss\.weight \[1\.0, 1\.0, 1\.0, 2\.0\], and this run has \[1\.0, 1\.0, 1\.0, 3\.0\]",
    ),
    "a loss's attribute": ({"loss": Focal()}, {"loss": Focal(gamma=1.0)}, r"loss\.gamma 2\.0, and this run has 1\.0"),
    "a loss's buffer": (
        {"loss": Focal()},
        {"loss": Focal(weight=[1.0, 1.0, 1.0, 2.0])},
        r"loss\.weight \[1\.0, 1\.0, 1\.0, 1\.0\], and this",
    ),
    "a loss's closure": ({"loss": scaled(1)}, {"loss": scaled(2)}, r"loss\.by 1, and this run has 2"),
    "a loss's code": (
        {"loss": lambda o, t: torch.nn.functional.cross_entropy(o, t)},
        {"loss": lambda o, t: torch.nn.functional.nll_loss(o, t)},
        "with another loss: same name, different code",
    ),
    "another loss": (
        {},
        {"loss": Focal()},
        r"loss cross_entropy, and this run has \S*Focal: resume with the same|with loss=cross_entropy",
    ),
    "momentum": ({}, {"optimizer": partial(sgd, momentum=0.5)}, r"optimizer\.momentum 0\.9, and this run has 0\.5"),
    "nesterov": ({}, {"optimizer": partial(sgd, nesterov=True)}, r"optimizer\.nesterov False, and this run has True"),
    "decay": ({}, {"optimizer": partial(sgd, weight_decay=0.1)}, r"optimizer\.weight_decay 0, and this run has 0\.1"),
    "rate": ({}, {"optimizer": partial(sgd, lr=0.2)}, r"optimizer\.lr 0\.1, and this run has 0\.2: resume with optim"),
    "a group's rate": (
        {"optimizer": grouped},
        {"optimizer": partial(grouped, rates=[0.1, 0.3])},
        r"optimizer\.lr \[0\.1, 0\.2\], and this run has \[0\.1, 0\.3\]",
    ),
    "betas": (
        {"optimizer": "adamw", "lr": 0.01},
        {"optimizer": partial(ADAM, lr=0.01, betas=(0.8, 0.99)), "lr": None},
        r"optimizer\.betas",
    ),
    "optimizer": (
        {},
        {"optimizer": partial(ADAM, lr=0.1)},
        "optimizer SGD, and this run has AdamW: resume with optimizer=SGD",
    ),
    "clipping": (
        {"clip_norm": 1.0},
        {"clip_norm": None},
        r"clip_norm 1\.0, and this run has none: resume with clip_norm=1\.0",
    ),
    "clipping anew": (
        {},
        {"clip_norm": 0.5},
        r"without clip_norm, and this run has 0\.5: resume without clip_norm, or start",
    ),
    "micro-batches": ({}, {"accumulate": 2}, "accumulate 1, and this run has 2"),
    "average": ({"average_decay": 0.9}, {"average_decay": None}, r"average_decay 0\.9, and this run has none"),
    "augmentation": ({}, {"augment": hp.CropFlip()}, "without augment, and this run has CropFlip"),
    "its setting": (
        {"augment": hp.CropFlip()},
        {"augment": hp.CropFlip(padding=1)},
        r"augment\.padding 2, and this run has 1",
    ),
    "its function": ({"augment": jitter}, {"augment": partial(jitter, by=0.2)}, r"augment\.by none|without augment\.by"),
    "a trick": ({"tricks": CYCLE}, {"tricks": None}, "cyclical Cyclical, and this run has none"),
    "a trick anew": (
        {},
        {"tricks": hp.Tricks(mixup=hp.Mixup())},
        "without mixup, and this run has Mixup: resume without mixup",
    ),
    "a trick's setting": (
        {"tricks": hp.Tricks(mixup=hp.Mixup(alpha=0.2))},
        {"tricks": hp.Tricks(mixup=hp.Mixup(alpha=0.4))},
        r"mixup\.alpha 0\.2, and this run has 0\.4: resume with mixup\.alpha=0\.2",
    ),
    "precision": (
        {"tricks": hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16", channels_last="off"))},
        {"tricks": None},
        "precision bf16, and this run has fp32",
    ),
    "freezing": (
        {"tricks": hp.Tricks(transfer=hp.Transfer(rate_factor=1.0))},
        {"tricks": hp.Tricks(transfer=hp.Transfer(rate_factor=1.0, freeze=1))},
        r"transfer\.freeze 0, and this run has 1",
    ),
    "an optimizer's attribute": (
        {"optimizer": Own},
        {"optimizer": partial(Own, beta=0.9)},
        r"optimizer\.attributes\.beta 0\.5, and this run has 0\.9",
    ),
    "which group has what": (
        {"optimizer": parted},
        {"optimizer": partial(parted, weights_first=False)},
        r"optimizer\.parameters \['1.weight to 1.weight', '1.bias to 1.bias', ",
    ),
    "a dropout": ({"model": dropping(0.1)}, {"model": dropping(0.5)}, r"model\.0 Dropout\(p=0\.1.*Dropout\(p=0\.5"),
    "what is frozen": (
        {"model": dropping(0.1)},
        {"model": dropping(0.1, frozen=True)},
        "model.frozen parameters 0, and this run has 1",
    ),
    "its type": (
        {"model": dropping(0.1)},
        {"model": dropping(0.1).double()},
        "torch.float32 in the checkpoint, .*torch.float64",
    ),
    "data": (
        {},
        {"train": make_images(32)},
        "training samples 48, and this run has 32: resume with the same training samples",
    ),
    "batch": ({}, {"batch_size": 8}, "batch_size 16, and this run has 8: resume with batch_size=16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_shapes_training_is_refused_by_name_and_nothing_changes(name: str, tmp_path: Path) -> None:
    first, second, said = REFUSED[name]
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    cut(tmp_path, **first)
    before, model = content(tmp_path), mlp(seed=5)
    weights = [p.detach().clone() for p in model.parameters()]
    asked = {"model": model, "train": TRAIN, "optimizer": sgd, "epochs": 2, "batch_size": 16, **first, **second}
    about = {"settings_toml": "data = 'other'"}
    with pytest.raises(hp.InputError, match=said) as refused:
        fit_with_facts(asked.pop("model"), asked.pop("train"), VALID, about=about, run_dir=tmp_path, resume=True, **asked)
    assert "or start a new run in another folder" in str(refused.value)
    assert content(tmp_path) == before
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), weights, strict=True))


class Items(Dataset[Any]):
    """Images of the user's own data set; some are drawn at random, with the global generators or one of its own."""

    def __init__(self, data: Any, draws: str = "") -> None:
        self.inputs, self.targets = data
        self.draws, self._generator, self.outer = draws, torch.Generator().manual_seed(0), random.Random(0)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        noise = {
            "": lambda: 0.0,
            "torch": lambda: torch.rand(1),
            "python": lambda: random.random(),
            "numpy": lambda: np.random.rand(),
            "its own generator": lambda: torch.rand(1, generator=self._generator),
            "another": self.outer.random,
        }[self.draws]()
        return self.inputs[index] + torch.as_tensor(noise, dtype=torch.float32), self.targets[index]


def loader(data: Any = TRAIN, shuffle: bool = True, **settings: Any) -> DataLoader[Any]:
    return DataLoader(data if isinstance(data, Dataset) else TensorDataset(*data), 16, shuffle=shuffle, **settings)


BRIGHT, PERMUTED = (TRAIN[0] + 1, TRAIN[1]), (TRAIN[0], TRAIN[1].roll(1))
LATE = TRAIN[0].clone()
LATE[47] += 1
SAMPLER = list(range(48))
OTHER_DATA: dict[str, tuple[Any, Any, str]] = {
    "inputs": (TRAIN, BRIGHT, "training inputs of checksum .*resume with the same training inputs"),
    "the last sample": (TRAIN, (LATE, TRAIN[1]), "training inputs"),
    "labels": (TRAIN, PERMUTED, "training targets of checksum"),
    "a data set's inputs": (Items(TRAIN), Items(BRIGHT), "training inputs"),
    "a data set's labels": (Items(TRAIN, "another"), Items(PERMUTED, "another"), "training targets"),
    "a loader's inputs": (loader(), loader(BRIGHT), "training inputs"),
    "a loader's labels": (loader(Items(TRAIN)), loader(Items(PERMUTED)), "training targets"),
    "shuffling": (loader(), loader(shuffle=False), r"order of the training data RandomSampler\(.*, .*SequentialSampler"),
    "shuffling, on": (loader(shuffle=False), loader(), "order of the training data SequentialSampler"),
    "no loader": (loader(), TRAIN, "order of the training data RandomSampler.*has shuffled by heptane"),
    "a sampler": (
        loader(shuffle=False, sampler=SubsetRandomSampler(SAMPLER)),
        loader(shuffle=False, sampler=SubsetRandomSampler(SAMPLER[:24] * 2)),
        "order of the training data SubsetRandomSampler",
    ),
    "replacement": (
        loader(shuffle=False, sampler=RandomSampler(SAMPLER)),
        loader(shuffle=False, sampler=RandomSampler(SAMPLER, replacement=True)),
        r"RandomSampler\(replacement=False\), and",
    ),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_other_data_are_refused_by_name(name: str, tmp_path: Path) -> None:
    first, second, said = OTHER_DATA[name]
    one, two = ({"train": d, "batch_size": None if isinstance(d, DataLoader) else 16} for d in (first, second))
    cut(tmp_path, **one)
    before = content(tmp_path)
    with pytest.raises(hp.InputError, match=said):
        fit_in(tmp_path, resume=True, **two)
    assert content(tmp_path) == before
    assert fit_in(tmp_path, resume=True, **one).steps["applied"] == 6


@pytest.mark.parametrize("draws", ["", "torch", "python", "numpy", "its own generator", "another"])
@pytest.mark.parametrize("kind", ["data set", "loader"])
def test_the_same_data_are_taken_though_they_are_drawn_at_random(draws: str, kind: str, tmp_path: Path) -> None:
    def data() -> dict[str, Any]:
        items = Items(TRAIN, draws)
        return {"train": loader(items), "batch_size": None} if kind == "loader" else {"train": items}

    cut(tmp_path, **data())
    assert fit_in(tmp_path, resume=True, **data()).steps["applied"] == 6


@pytest.mark.parametrize("draws", ["torch", "its own generator"])
def test_a_look_at_the_data_draws_nothing(draws: str, tmp_path: Path) -> None:
    with_folder, without = (fit_in(folder, train=Items(TRAIN, draws)) for folder in (tmp_path, None))
    assert_equal_weights(with_folder.model, without.model)


def test_arrays_and_tensors_of_the_same_numbers_are_the_same_data(tmp_path: Path) -> None:
    cut(tmp_path)
    arrays = TRAIN[0].numpy(), TRAIN[1].numpy()
    assert fit_in(tmp_path, train=arrays, resume=True).steps["applied"] == 6
    assert fit_in(tmp_path, train=TensorDataset(*TRAIN), resume=True, epochs=3).steps["applied"] == 9


def test_several_differences_are_named_together(tmp_path: Path) -> None:
    cut(tmp_path, clip_norm=1.0)
    with pytest.raises(
        hp.InputError, match=r"clip_norm 1\.0, .*; with accumulate 1, .*resume with clip_norm=1\.0 and with acc"
    ):
        fit_in(tmp_path, resume=True, clip_norm=2.0, accumulate=2)


def test_every_argument_of_fit_is_said_to_be_kept_or_to_change() -> None:
    extras = {field.name for field in fields(hp.Extras)}
    assert {*MAY_CHANGE, *MUST_MATCH} == set(inspect.signature(hp.fit).parameters) - {"extras"} | extras
    assert not set(MAY_CHANGE) & set(MUST_MATCH)
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert all(f"`{name}`" in page for name in [*MAY_CHANGE, *MUST_MATCH] if name not in ("force", "resume"))


def test_what_may_change_does(tmp_path: Path) -> None:
    whole = fit_in(None, loss=Focal())
    cut(tmp_path, loss=Focal())
    changed: dict[str, Any] = {"evaluate_every_epochs": 0.5, "checkpoint_every": 1, "keep_checkpoints": 3, "on_nan": "stop"}
    changed |= {"metrics": {"one": lambda p, t: 1.0}, "patience": 9, "max_seconds": 99.0, "nan_limit": 3, "skip_bad": 2}
    changed |= {"weights": "last", "device": "cpu"}
    again = fit_in(tmp_path, resume=True, loss=Focal(), **changed)
    assert_equal_weights(whole.model, again.model)
    assert "on_nan='stop' from step 3 on; before, 'skip'" in again.notes
    assert again.metrics["valid_one"] == 1.0


def test_the_same_loss_object_goes_on_though_it_has_counted_and_another_way_to_name_it_too(tmp_path: Path) -> None:
    loss = Focal()
    cut(tmp_path / "a", loss=loss)
    assert loss.calls > 0
    fit_in(tmp_path / "a", loss=loss, resume=True)
    cut(tmp_path / "b", optimizer="sgd", lr=0.1)
    named = partial(sgd, weight_decay=5e-4, nesterov=True)
    fit_in(tmp_path / "b", optimizer=named, loss="cross_entropy", resume=True)


def test_what_was_measured_is_not_a_setting(tmp_path: Path) -> None:
    cut(tmp_path, tricks=hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on")))
    fit_in(tmp_path, tricks=hp.Tricks(mixed_precision=hp.MixedPrecision(channels_last="off")), resume=True)


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_it_is_said(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heptane.session.checkpoints.checkpoint.as_kept", lambda run: None)
        cut(tmp_path)
    assert "could not be compared" in " ".join(fit_in(tmp_path, resume=True, clip_norm=9.0).notes)


def planned(notes: list[str]) -> str:
    return next(note for note in notes if note.startswith("new length:"))


def test_a_finished_run_without_a_schedule_goes_on_and_is_the_longer_one(tmp_path: Path) -> None:
    whole = fit_in(None, epochs=4)
    fit_in(tmp_path, epochs=2)
    again = fit_in(tmp_path, epochs=4, resume=True)
    assert_equal_weights(whole.model, again.model)
    assert [record["epoch"] for record in again.history] == [1, 2, 3, 4]
    assert (
        planned(again.notes) == "new length: 4 epochs (12 steps) instead of 2 epochs (6 steps); the learning rate stays 0.1"
    )


@pytest.mark.parametrize("finished", [True, False])
def test_a_cycle_is_laid_out_over_the_new_length_and_it_is_said(finished: bool, tmp_path: Path) -> None:
    settings = {"tricks": CYCLE, "epochs": 2}
    fit_in(tmp_path, **settings) if finished else cut(tmp_path, **settings)
    step = 6 if finished else 3
    again = fit_in(tmp_path, tricks=CYCLE, epochs=4, resume=True)
    before, after = (0.1 * hp.Cyclical().rates(steps, 3).learning_rate(at) for steps, at in ((6, step - 1), (12, step)))
    assert f"goes from {before:.3g} at step {step} to {after:.3g} at step {step + 1}" in planned(again.notes)
    rates = [0.1 * hp.Cyclical().rates(12, 3).learning_rate(at) for at in (8, 11)]
    assert [r["learning_rate"] for r in again.history if r["step"] > 6] == pytest.approx(rates)
    assert not [n for n in fit_in(tmp_path, tricks=CYCLE, epochs=4, resume=True).notes if n.startswith("new length:")]


def test_it_is_said_before_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_in(tmp_path, tricks=CYCLE)
    fit_in(tmp_path, tricks=CYCLE, epochs=3, resume=True, progress=True)
    said = capsys.readouterr().err
    assert said.index("note: new length: 3 epochs (9 steps) instead of 2") < said.index("epoch 3")


def test_small_images_mixup_and_freezing_over_the_new_length_are_said(tmp_path: Path) -> None:
    nn = torch.nn
    body = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*body, nn.Linear(4, 4))
    tricks = hp.Tricks(transfer=hp.Transfer(mode="gradual", rate_factor=1.0), mixup=hp.Mixup(off_last_epochs=1.0))
    settings = {"tricks": tricks, "resize": hp.ProgressiveResize(size=6), "model": model}
    fit_in(tmp_path, **settings)
    said = " ".join(fit_in(tmp_path, resume=True, epochs=8, **settings).notes)
    assert "images are scaled down to 6 pixels again until step 14" in said
    assert "mixup is on again until step 21" in said
    assert "layer groups are frozen again" in said


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*TRAIN, strict=True))


def test_steps_over_data_without_a_length_are_extended_too(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(Endless(), 16)
    settings = {"train": loader, "batch_size": None, "epochs": None}
    whole = fit_in(None, steps=40, **settings)
    fit_in(tmp_path, steps=20, **settings)
    again = fit_in(tmp_path, steps=40, resume=True, **settings)
    assert again.steps["applied"] == 40
    assert_equal_weights(whole.model, again.model)


def test_a_run_that_is_made_shorter_than_it_is_stays_refused(tmp_path: Path) -> None:
    fit_in(tmp_path)
    with pytest.raises(hp.InputError, match="is at step 6, but this run has only 3 steps: raise epochs"):
        fit_in(tmp_path, resume=True, epochs=1)


def test_a_description_is_alike_in_two_processes_and_tells_what_differs() -> None:
    assert describe(Focal()) == describe(Focal())
    assert describe(torch.arange(99)) == describe(torch.arange(99)) != describe(torch.arange(1, 100))
    assert describe(lambda x: x + 1) != describe(lambda x: x + 2)
    assert describe(partial(jitter, by=1)) != describe(partial(jitter, by=2))
    assert describe(torch.device("cpu")) == describe(torch.device("meta"))  # which one may change
    assert describe(torch.nn.functional.mse_loss) == {"is": "torch.nn.functional.mse_loss"}
    cycle: list[Any] = []
    cycle.append(cycle)
    assert "0x" not in str(describe([object(), torch.Generator(), cycle, {1: Focal().forward}, Focal, float("nan")]))
