"""Optimizers by name."""

from __future__ import annotations

import pytest
import torch

import heptane as hp
from heptane import InputError
from heptane.core.optimizers import LEARNING_RATES, PEAK, default_lr, has_momentum, optimizer_classes, optimizer_factory
from heptane.session.settings import RaceSettings


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("name", sorted(LEARNING_RATES))
def test_every_optimizer_with_a_default_rate_builds_and_steps(name: str) -> None:
    held = parameters()
    optimizer = optimizer_factory(name, default_lr(name, peak=False))(held)
    held[0].sum().backward()
    optimizer.step()
    assert not torch.equal(held[0], torch.ones(3))


def test_names_are_those_of_torch() -> None:
    assert {"sgd", "adamw", "adam", "rmsprop", "adadelta"} <= set(optimizer_classes())
    assert "lbfgs" not in optimizer_classes()
    assert type(optimizer_factory("AdamW", 0.1)(parameters())) is torch.optim.AdamW


def test_sgd_has_nesterov_momentum_by_default_and_none_where_asked() -> None:
    assert optimizer_factory("sgd", 0.1)(parameters()).defaults["momentum"] == 0.9
    assert optimizer_factory("sgd", 0.1, momentum=0.0)(parameters()).defaults["nesterov"] is False


def test_weight_decay_reaches_the_optimizer() -> None:
    assert optimizer_factory("sgd", 0.1, weight_decay=5e-4)(parameters()).defaults["weight_decay"] == 5e-4
    assert optimizer_factory("sgd", 0.1)(parameters()).defaults["weight_decay"] == 5e-4
    assert optimizer_factory("sgd", 0.1, weight_decay=0.0)(parameters()).defaults["weight_decay"] == 0
    assert optimizer_factory("adamw", 0.1)(parameters()).defaults["weight_decay"] == 0.01


def test_has_momentum() -> None:
    assert has_momentum(optimizer_factory("sgd", 0.1))
    assert has_momentum(optimizer_factory("adamw", 0.1))
    assert not has_momentum(optimizer_factory("sgd", 0.1, momentum=0.0))
    assert not has_momentum(optimizer_factory("adagrad", 0.1))


def test_a_cycle_peaks_at_three_times_the_rate_in_training_and_in_a_race() -> None:
    assert default_lr("adamw", peak=True) == pytest.approx(3 * default_lr("adamw", peak=False))
    assert RaceSettings().peak == PEAK == 3.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: optimizer_factory("sdg", 0.1), "did you mean sgd"),
        (lambda: optimizer_factory("sgd", 0.0), "lr=0.0"),
        (lambda: optimizer_factory("sgd", 0.1, momentum=1.0), "momentum=1.0"),
        (lambda: optimizer_factory("sgd", 0.1, weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: optimizer_factory("adamw", 0.1, momentum=0.9)(parameters()), "adamw"),
        (lambda: default_lr("adadelta", peak=False), "--lr"),
    ],
)
def test_refusals_name_the_value(call: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()  # type: ignore[operator]


def test_fit_takes_a_name_with_or_without_a_rate() -> None:
    data = torch.randn(32, 3), torch.randint(0, 2, (32,))

    def trained(**settings: object) -> hp.Result:
        torch.manual_seed(0)
        return hp.fit(torch.nn.Linear(3, 2), data, epochs=2, batch_size=8, **settings)  # type: ignore[arg-type]

    named, built = trained(optimizer="AdamW", lr=0.02), trained(optimizer=lambda p: torch.optim.AdamW(p, lr=0.02))
    assert torch.equal(named.model.weight, built.model.weight)
    assert "optimizer AdamW: lr 0.02, asked for" in named.notes
    assert any("lr 0.001, its default for a batch of 128" in note for note in trained(optimizer="adamw").notes)
    cycle = trained(optimizer="sgd", tricks=hp.Tricks(cyclical=hp.Cyclical()))
    assert any("lr 0.3, its default of a cycle's peak" in note for note in cycle.notes)
    steps = list(hp.train(torch.nn.Linear(3, 2), data, optimizer="sgd", lr=0.5, epochs=1, batch_size=8))
    assert steps[0].learning_rate == 0.5
