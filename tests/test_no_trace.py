"""A run changes nothing of the caller's but the model's weights: no tensor, generator, mode or setting."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import fit, random_data, sgd
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import heptane as hp
from heptane.pretrained.freezing import freeze

# The caller's tensors


class InPlace(nn.Module):
    """Works on its inputs in place, as many preprocessing layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.sub_(0.1).div_(0.5))


class Items(Dataset[Any]):
    """Hands out the caller's own memory: rows, or whole batches."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


def batches_of(x: torch.Tensor, y: torch.Tensor) -> Items:
    return Items(x.view(4, 16, 4), y.view(4, 16))


class Windows(DataLoader[Any]):
    """Hands out views of the caller's own memory."""

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, 64, 16):
            yield self.dataset.x[start : start + 16], self.dataset.y[start : start + 16]


KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "a data set of rows": Items,
    "a loader of rows": lambda x, y: DataLoader(Items(x, y), 16),
    "a loader of whole batches": lambda x, y: DataLoader(batches_of(x, y), batch_size=None),
    "a loader with an __iter__ of its own": lambda x, y: Windows(Items(x, y), 16),
    "a loader whose collate function passes memory on": lambda x, y: DataLoader(
        batches_of(x, y), 1, collate_fn=lambda items: items[0]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_works_in_place_changes_no_tensor_of_the_users(kind: str) -> None:
    (x, y), (vx, vy) = random_data(), random_data()
    before = x.clone(), y.clone(), vx.clone()
    still = lambda params: torch.optim.SGD(params, lr=1e-30)  # noqa: E731
    result = fit(InPlace(), KINDS[kind](x, y), KINDS[kind](vx, vy), optimizer=still)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert torch.equal(vx, before[2])
    assert result.history[0]["valid_loss"] == result.history[1]["valid_loss"]
    hp.evaluate(InPlace(), KINDS[kind](x, y))
    assert torch.equal(x, before[0])


def test_an_in_place_loss_and_micro_batches_under_mixup_leave_the_data_alone() -> None:
    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output, targets.mul_(0.5))

    x, y = random_data()[0], torch.randn(64, 3)
    before = x.clone(), y.clone()
    fit(InPlace(), (x, y), (x, y), loss=loss)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    loader = KINDS["a loader of whole batches"](x, random_data()[1])
    fit(InPlace(), loader, accumulate=2, tricks=hp.Tricks(mixup=hp.Mixup(alpha=1.0)))
    assert torch.equal(x, before[0])


def test_features_that_are_computed_once_and_all_arms_of_a_race_leave_the_data_alone() -> None:
    x, y = random_data()
    before = x.clone()
    model = nn.Sequential(InPlace(), nn.ReLU(), nn.Linear(3, 3))
    result = fit(model, (x, y), (x, y), tricks=hp.Tricks(transfer=hp.Transfer(mode="head", cache="memory")))
    assert any("frozen features cached: " in note for note in result.notes)
    assert torch.equal(x, before)
    tricks = hp.Tricks(label_smoothing=hp.LabelSmoothing())
    hp.race(InPlace, (x, y), (x, y), optimizer=sgd, epochs=1, batch_size=16, target=0.99, tricks=tricks, seeds=1, tune=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shown", ["permuted", "strided", "expanded"])
def test_inputs_in_another_memory_order_can_be_viewed_in_training_and_evaluation(shown: str) -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.view(len(x), -1))

    x = {
        "permuted": torch.randn(64, 2, 2, 3).permute(0, 3, 1, 2),
        "strided": torch.randn(64, 3, 2, 4)[..., ::2],
        "expanded": torch.randn(64, 3, 2, 1).expand(64, 3, 2, 2),
    }[shown]
    result = fit(Viewing(), (x, random_data()[1]), (x, random_data()[1]))
    assert "valid_accuracy" in result.metrics


# The caller's generators


def net() -> nn.Sequential:
    """Built without drawing from the global generator, so that what is left of it is the run's doing."""
    with torch.random.fork_rng():
        return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))


def generators() -> tuple[Any, Any, Any]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def ends_early() -> None:
    for _ in hp.train(net(), random_data(), optimizer=sgd, epochs=2, batch_size=16):
        break


def fails() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) > 2:
                raise RuntimeError("broken")
            return super().forward(x)

    with torch.random.fork_rng():
        broken = Broken(4, 3)
    with pytest.raises(RuntimeError, match="broken"):
        fit(broken, random_data())


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*random_data()), 16, shuffle=True)


RUNS: dict[str, Callable[[], Any]] = {
    "fit": lambda: fit(net(), random_data(), valid=random_data()),
    "fit with a loader": lambda: fit(net(), loader(), loader()),
    "train": lambda: list(hp.train(net(), random_data(), optimizer=sgd, epochs=1, batch_size=16)),
    "train with a loader": lambda: list(hp.train(net(), loader(), optimizer=sgd, epochs=1)),
    "an early break": ends_early,
    "an error": fails,
    "evaluate": lambda: hp.evaluate(net(), loader()),
    "a race": lambda: hp.race(
        lambda: nn.Linear(4, 3), random_data(), random_data(), optimizer=sgd, epochs=1, batch_size=16, target=0.99,
        tricks=hp.Tricks(label_smoothing=hp.LabelSmoothing()), seeds=1, tune=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_global_generators_are_as_if_nothing_had_run(name: str) -> None:
    RUNS[name]()  # what is imported at first may draw
    before = generators()
    RUNS[name]()
    assert generators() == before


def test_models_built_between_runs_differ() -> None:
    firsts = set()
    for _ in range(3):
        net = nn.Linear(4, 3)
        firsts.add(net.weight[0, 0].item())
        fit(net, loader())
    assert len(firsts) == 3


def test_the_body_of_a_loop_draws_from_its_own_generators() -> None:
    def drawn(events: Iterator[Any]) -> list[Any]:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        return [(float(torch.rand(())), random.random(), float(np.random.rand())) for _ in events]

    expected = drawn(iter(range(4)))
    for data, size in ((random_data(), 16), (loader(), None)):
        assert drawn(hp.train(net(), data, optimizer=sgd, epochs=1, batch_size=size)) == expected


# Modes


class Noise(nn.Module):
    """Has no parameter that trains, and does something only in training."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return x * self.scale


@pytest.mark.parametrize("tricks", [hp.Tricks(), hp.Tricks(label_smoothing=hp.LabelSmoothing())], ids=["off", "on"])
def test_a_module_whose_only_parameters_are_fixed_trains(tricks: hp.Tricks) -> None:
    noise = Noise()
    fit(nn.Sequential(noise, nn.Linear(4, 3)), random_data(), tricks=tricks)
    assert noise.passes == 8
    assert noise.training


def test_a_batchnorm_that_the_user_froze_moves_its_statistics_as_in_a_hand_written_loop() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[1].requires_grad_(False)
    fit(model, random_data())
    assert int(model[1].num_batches_tracked) == 8


def test_what_heptane_freezes_is_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Noise(), nn.Linear(4, 3))
    fit(model, random_data(), tricks=hp.Tricks(transfer=hp.Transfer(freeze=-1, cache="off", swap_head=False)))
    assert int(model[1].num_batches_tracked) == 0
    freeze(model, 0)


# One sample and BatchNorm


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("kind", ["tensors", "loader", "joined windows"])
def test_a_last_batch_of_one_sample_is_left_out_where_batchnorm_cannot_train_on_it(kind: str) -> None:
    data: Any = random_data(65)
    if kind != "tensors":
        data = DataLoader(TensorDataset(*data), 16, shuffle=True)
    result = fit(normed(), data, accumulate=2 if kind == "joined windows" else 1)
    per_epoch = {"joined windows": 2}.get(kind, 4)
    assert result.steps["planned"] == result.steps["applied"] == 2 * per_epoch
    assert any("it is dropped" in note and "BatchNorm" in note for note in result.notes)


def test_without_batchnorm_or_with_pixels_to_average_over_one_sample_is_trained_on() -> None:
    assert fit(nn.Linear(4, 3), random_data(65)).steps["applied"] == 10
    convolutions = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    assert fit(convolutions, random_data(65)).steps["applied"] == 10


@pytest.mark.parametrize("how", ["head", "part", "frozen before"])
@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_a_batchnorm_that_is_frozen_throughout_takes_one_sample(how: str, kind: str) -> None:
    model = normed()
    tricks = {
        "head": hp.Tricks(transfer=hp.Transfer(mode="head", cache="off")),
        "part": hp.Tricks(transfer=hp.Transfer(freeze=1, cache="off")),
        "frozen before": hp.Tricks(),
    }[how]
    if how == "frozen before":
        hp.freeze(model, -1)
    data: Any = random_data(65) if kind == "tensors" else DataLoader(TensorDataset(*random_data(65)), 16)
    result = fit(model, data, tricks=tricks)
    assert result.steps["applied"] == 10
    assert not any("dropped" in note for note in result.notes)
    fit(model, random_data(8), tricks=tricks, batch_size=1)


@pytest.mark.parametrize(
    "transfer",
    [
        hp.Transfer(mode="head-first", head_epochs=1.0),
        hp.Transfer(mode="gradual"),
        hp.Transfer(freeze=1, unfreeze_every_epochs=1.0),
    ],
)
def test_one_that_trains_later_does_not(transfer: hp.Transfer) -> None:
    result = fit(normed(), random_data(65), tricks=hp.Tricks(transfer=transfer))
    assert result.steps["planned"] == result.steps["applied"] == 8
    assert any("it is dropped" in note and "BatchNorm" in note for note in result.notes)


def test_micro_batches_have_two_samples_each_where_batchnorm_needs_them() -> None:
    model = normed()
    seen: list[int] = []
    model[1].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])) if module.training else None)
    fit(model, random_data(64), accumulate=16, epochs=1)
    assert min(seen[2:]) == 2  # the first two are tries


def test_a_batch_of_which_skipping_leaves_one_sample_is_left_out() -> None:
    class Rotten(Items):
        def __getitem__(self, index: int) -> Any:
            if index in range(1, 16):
                raise OSError("unreadable")
            return super().__getitem__(index)

    result = fit(normed(), DataLoader(Rotten(*random_data(64)), 16), skip_bad=20, epochs=1)
    assert result.steps["applied"] == 3
    assert any("left out, since its batch has 1 sample(s)" in note for note in result.notes)


class Functional(nn.Module):
    """BatchNorm without a layer of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.batch_norm(x, self.mean, self.var, training=self.training))


@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_batchnorm_as_a_function_and_a_last_batch_of_one_sample(kind: str) -> None:
    data: Any = random_data(65) if kind == "tensors" else DataLoader(TensorDataset(*random_data(65)), 16)
    assert fit(Functional(), data).steps["applied"] == 8


def test_batches_of_one_sample_are_refused_with_batchnorm() -> None:
    with pytest.raises(hp.InputError, match="batch_size=1: BatchNorm"):
        fit(normed(), random_data(), batch_size=1)


# The surroundings of the call


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_a_default_dtype_of_64_bits() -> None:
    x, y = torch.randn(64, 4), random_data()[1]
    tricks = hp.Tricks(mixup=hp.Mixup(), label_smoothing=hp.LabelSmoothing(), cyclical=hp.Cyclical())
    model = nn.Linear(4, 3)
    fit(model, (x, y), (x, y), tricks=tricks, clip_norm=1.0)
    assert model.weight.dtype == torch.float64


def test_a_default_device_that_is_not_the_models() -> None:
    model, data = nn.Linear(4, 3), random_data()
    with torch.device("meta"):  # what heptane makes without naming a device would have no numbers
        tricks = hp.Tricks(mixup=hp.Mixup(), label_smoothing=hp.LabelSmoothing(), cyclical=hp.Cyclical())
        result = fit(model, data, data, tricks=tricks, device="cpu")
    assert 0 <= result.metrics["valid_accuracy"] <= 1


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_inside_a_block_without_gradients(around: Any) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with around():
        fit(model, random_data(), valid=random_data())
        for _ in hp.train(model, random_data(), optimizer=sgd, epochs=1, batch_size=16):
            assert not torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
    assert not torch.equal(model.weight, before)


def test_inference_tensors_and_inputs_with_a_graph() -> None:
    with torch.inference_mode():
        x = torch.randn(64, 4)
    y = random_data()[1]
    fit(nn.Linear(4, 3), (x, y), (x, y))
    fit(nn.Linear(4, 3), DataLoader(Items(x, y), 16))
    leaf = torch.randn(64, 4, requires_grad=True)
    for data in ((leaf * 2, y), (leaf, y), DataLoader(Items(leaf, y), 16)):
        fit(nn.Linear(4, 3), data)
    assert leaf.grad is None


# Methods of the user's that return nothing


class Silent(nn.Sequential):
    """Its ``train`` and ``eval`` return nothing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().train(False)


@pytest.mark.parametrize(
    "tricks",
    [
        {},
        {"mixed_precision": hp.MixedPrecision()},
        {"mixed_precision": hp.MixedPrecision(), "transfer": hp.Transfer(mode="auto", swap_head=False, rate_factor=1.0)},
        {"transfer": hp.Transfer(mode="gradual", rate_factor=1.0)},
        {"cyclical": hp.Cyclical(), "mixup": hp.Mixup(), "label_smoothing": hp.LabelSmoothing()},
    ],
    ids=["off", "precision", "mode", "gradual", "loss"],
)
@pytest.mark.parametrize("where", ["whole", "part"])
def test_train_and_eval_that_return_nothing(where: str, tricks: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptane.core.precision.choose.computes_bf16", lambda: True)  # so that 16 bits are tried
    layers = nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)
    model = Silent(*layers) if where == "whole" else nn.Sequential(Silent(*layers[:2]), layers[2])
    data = torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,))
    fit(model, data, data, tricks=hp.Tricks(**tricks), average_decay=0.9)
    hp.evaluate(model, data)
    assert all(module.training for module in model.modules())
    for trained in (hp.train_mode(model), model):
        assert trained is model


class Moves:
    """A metric whose ``to`` returns nothing."""

    higher_is_better = True

    def to(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        self.seen = 0

    def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
        self.seen += len(targets)

    def compute(self) -> float:
        return float(self.seen)


def test_a_trained_model_and_a_metric_whose_methods_return_nothing(tmp_path: Path) -> None:
    make = lambda: Silent(nn.Linear(4, 3))  # noqa: E731
    result = fit(make(), random_data(), valid=random_data(20), metrics={"seen": Moves()}, run_dir=tmp_path)
    assert result.metrics["valid_seen"] == 20
    run = hp.load_run(tmp_path, model=make())
    assert len(list(run.predict(random_data(5)[0]))) == 5
    run.export(tmp_path / "model.pt2", to="torch", sample=random_data(3)[0])
    own = make()
    assert hp.load_weights(own, tmp_path).share == 1.0
    assert torch.equal(own[0].weight, result.model[0].weight)


class OwnNorm(nn.Module):
    """Normalises over the batch by itself: of one sample the deviation is 0 / 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / x.std(0)


class ByFunction(nn.Module):
    """BatchNorm by PyTorch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, self.mean, self.variance, training=self.training)


@pytest.mark.parametrize("norm", [OwnNorm, ByFunction, lambda: nn.GroupNorm(4, 4)])
def test_a_norm_that_is_not_pytorchs_layer_is_given_no_single_sample_either(norm: Any) -> None:
    x, y = torch.randn(17, 4), torch.randint(0, 3, (17,))
    result = hp.fit(nn.Sequential(norm(), nn.Linear(4, 3)), (x, y), optimizer=sgd, epochs=1, batch_size=4)
    assert result.steps == {"planned": 4, "applied": 4, "skipped": 0, "nonfinite": 0, "left_out": 0}
    assert any("1 sample" in note for note in result.notes)


def test_a_model_that_was_built_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 3)
    with pytest.raises(hp.InputError, match=r"'weight' of Linear was made inside torch\.inference_mode"):
        hp.fit(model, (torch.randn(8, 4), torch.randint(0, 3, (8,))), optimizer=sgd, epochs=1, batch_size=4)


LAZY: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)),
    "norm": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)),
}


def lazy(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return LAZY[kind]()


@pytest.mark.parametrize("kind", LAZY)
def test_lazy_layers_train_and_are_resumed(kind: str, tmp_path: Path) -> None:
    data = torch.randn(32, 1, 6, 6), torch.randint(0, 3, (32,))
    whole, cut, again = (lazy(kind) for _ in range(3))
    fit(whole, data, data, average_decay=0.9)
    fit(cut, data, data, average_decay=0.9, run_dir=tmp_path, epochs=1)
    fit(again, data, data, average_decay=0.9, run_dir=tmp_path, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
