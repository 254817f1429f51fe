"""With every trick off, heptane is bit for bit a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import pytest
import torch
from tests.helpers import on_output, shuffled, steps_by_hand
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp
from heptane.base.randomness import epoch_seed

STEPS, BATCH, SAMPLES, SEED = 20, 16, 90, 7
PER_EPOCH = 6  # 5 of 16 and one of 10
Factory = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Factory] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=3e-3),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-3),
}


def conv_net() -> torch.nn.Sequential:
    torch.manual_seed(1)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 16),
        nn.BatchNorm1d(16),
        nn.Linear(16, 4),
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, 1, 8, 8, generator=random), torch.randint(0, 4, (SAMPLES,), generator=random)


def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return shuffled(data(), BATCH, epochs=4, seed=SEED)


def plain_loop(
    model: torch.nn.Module, batches: Iterable[Any], optimizer: torch.optim.Optimizer, **more: Any
) -> list[torch.Tensor]:
    losses = list(steps_by_hand(model, islice(batches, STEPS), optimizer, **more))
    assert len(losses) == STEPS
    return losses


def with_heptane(
    model: torch.nn.Module, train: Any, factory: Factory, batch_size: int | None = BATCH, **more: Any
) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    settings = {"optimizer": factory, "epochs": STEPS / PER_EPOCH, "batch_size": batch_size, "seed": SEED}
    events = list(hp.train(model, train, **(settings | more)))
    assert len(events) == STEPS
    return [event.loss for event in events], events[-1].run.optimizer


def assert_same_bits(ours: Any, theirs: Any) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same_bits(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same_bits(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("clip_norm", [None, 0.05], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_pair_of_tensors(name: str, clip_norm: float | None) -> None:
    plain, ours, (x, y) = conv_net(), conv_net(), data()
    reference = OPTIMIZERS[name](plain.parameters())
    expected = plain_loop(plain, batches(), reference, clip_norm=clip_norm)
    losses, optimizer = with_heptane(ours, (x, y), OPTIMIZERS[name], clip_norm=clip_norm)
    assert_same_bits(losses, expected)
    assert_same_bits(ours.state_dict(), plain.state_dict())
    assert_same_bits(optimizer.state_dict(), reference.state_dict())


def test_clipping_with_groups_in_another_order_than_the_model() -> None:
    def factory(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        flat, weights = [p for p in params if p.ndim < 2], [p for p in params if p.ndim >= 2]
        return torch.optim.SGD([{"params": flat, "weight_decay": 0.0}, {"params": weights}], lr=0.1, weight_decay=0.01)

    plain, ours, (x, y) = conv_net(), conv_net(), data()
    plain_loop(plain, batches(), factory(plain.parameters()), clip_norm=0.05)
    with_heptane(ours, (x, y), factory, clip_norm=0.05)
    assert_same_bits(ours.state_dict(), plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loader_that_keeps_its_order(dtype: torch.dtype) -> None:
    plain, ours, (x, y) = conv_net().to(dtype), conv_net().to(dtype), data()
    loader = DataLoader(TensorDataset(x.to(dtype), y), BATCH)
    plain_loop(plain, (batch for _ in range(4) for batch in loader), OPTIMIZERS["sgd"](plain.parameters()))
    with_heptane(ours, loader, OPTIMIZERS["sgd"], batch_size=None)
    assert_same_bits(ours.state_dict(), plain.state_dict())


def test_a_loader_that_shuffles_by_a_generator_of_its_own() -> None:
    plain, ours, (x, y) = conv_net(), conv_net(), data()

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(x, y), BATCH, shuffle=True, generator=torch.Generator().manual_seed(3))

    theirs = loader()
    plain_loop(plain, (batch for _ in range(4) for batch in theirs), OPTIMIZERS["adamw"](plain.parameters()))
    with_heptane(ours, loader(), OPTIMIZERS["adamw"], batch_size=None)
    assert_same_bits(ours.state_dict(), plain.state_dict())


def test_a_loader_that_shuffles_by_the_global_generator_which_is_seeded_for_each_epoch() -> None:
    plain, ours, (x, y) = conv_net(), conv_net(), data()
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)

    def seeded() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        for epoch in range(4):
            torch.manual_seed(epoch_seed(SEED, epoch))
            yield from list(loader)

    plain_loop(plain, seeded(), OPTIMIZERS["sgd"](plain.parameters()))
    with_heptane(ours, loader, OPTIMIZERS["sgd"], batch_size=None)
    assert_same_bits(ours.state_dict(), plain.state_dict())


def test_regression_and_a_loss_of_ones_own() -> None:
    x, y = data()[0].flatten(1), data()[0][:, 0, 0, :2].clone()

    def net() -> torch.nn.Module:
        torch.manual_seed(4)
        return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def huber(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.huber_loss(output, targets, delta=0.3)

    for loss, function in ((None, torch.nn.functional.mse_loss), (huber, huber)):
        plain, ours = net(), net()
        batches = shuffled((x, y), BATCH, 4, SEED)
        plain_loop(plain, batches, OPTIMIZERS["sgd"](plain.parameters()), loss_of=on_output(function))
        with_heptane(ours, (x, y), OPTIMIZERS["sgd"], loss=loss)
        assert_same_bits(ours.state_dict(), plain.state_dict())


def test_fit_with_an_evaluation_in_every_epoch_trains_the_same() -> None:
    plain, ours, (x, y) = conv_net(), conv_net(), data()
    plain_loop(plain, batches(), OPTIMIZERS["sgd"](plain.parameters()))
    settings = {"optimizer": OPTIMIZERS["sgd"], "epochs": STEPS / PER_EPOCH, "batch_size": BATCH, "seed": SEED}
    result = hp.fit(ours, (x, y), (x[:30], y[:30]), weights="last", **settings)
    assert result.model is ours
    assert result.steps == {"planned": STEPS, "applied": STEPS, "skipped": 0, "nonfinite": 0, "left_out": 0}
    assert_same_bits(ours.state_dict(), plain.state_dict())


def test_a_body_that_evaluates_draws_and_leaves_the_model_in_eval_mode_changes_nothing() -> None:
    plain, ours, (x, y) = conv_net(), conv_net(), data()
    plain_loop(plain, batches(), OPTIMIZERS["sgd"](plain.parameters()))
    settings = {"optimizer": OPTIMIZERS["sgd"], "epochs": STEPS / PER_EPOCH, "batch_size": BATCH, "seed": SEED}
    for _ in hp.train(ours, (x, y), **settings):
        hp.evaluate(ours, (x, y))
        torch.rand(5)
        ours.eval()
    assert_same_bits(ours.state_dict(), plain.state_dict())


def test_parameters_that_the_user_froze_stay_so() -> None:
    plain, ours, (x, y) = conv_net(), conv_net(), data()
    for model in (plain, ours):
        model[0].requires_grad_(False)
    plain_loop(plain, batches(), OPTIMIZERS["sgd"](plain.parameters()), clip_norm=0.1)
    with_heptane(ours, (x, y), OPTIMIZERS["sgd"], clip_norm=0.1)
    assert_same_bits(ours.state_dict(), plain.state_dict())
    assert torch.equal(ours[0].weight, conv_net()[0].weight)
