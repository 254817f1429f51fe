"""Cyclical learning rates: equal to PyTorch's schedulers step by step, with inverse momentum."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

import heptane as hp
from heptane.core.schedule import Rates

PEAK = 0.7


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=0.9)


def adam() -> torch.optim.Adam:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, betas=(0.9, 0.97))


def follow(
    optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, num_steps: int
) -> list[tuple[float, float]]:
    """What PyTorch's scheduler gives at each step: the rate and the momentum (or beta1)."""
    seen = []
    for step in range(num_steps):
        group = optimizer.param_groups[0]
        seen.append((float(group["lr"]), float(group["betas"][0] if "betas" in group else group["momentum"])))
        optimizer.step()
        if step < num_steps - 1:
            scheduler.step()
    return seen


def ours(rates: Rates, num_steps: int) -> list[tuple[float, float]]:
    return [(PEAK * rates.learning_rate(step), rates.momentum(step)) for step in range(num_steps)]


def assert_same(left: list[tuple[float, float]], right: list[tuple[float, float]]) -> None:
    assert len(left) == len(right)
    for step, (one, other) in enumerate(zip(left, right, strict=True)):
        assert one == pytest.approx(other, rel=1e-10, abs=1e-14), step


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("phases", [2, 3])
@pytest.mark.parametrize(("total_steps", "warm_fraction"), [(100, 0.3), (37, 0.45), (11, 0.5), (4, 0.3)])
@pytest.mark.parametrize("build", [sgd, adam])
def test_one_cycle_equals_torch_step_by_step(anneal, phases, total_steps, warm_fraction, build):
    optimizer = build()
    theirs = lr_scheduler.OneCycleLR(
        optimizer,
        PEAK,
        total_steps=total_steps,
        pct_start=warm_fraction,
        anneal_strategy="cos" if anneal == "cosine" else "linear",
        base_momentum=0.8,
        max_momentum=0.93,
        div_factor=20.0,
        final_div_factor=500.0,
        three_phase=phases == 3,
    )
    cycle = hp.Cyclical(
        start=1 / 20,
        final=1 / 20 / 500,
        warm_fraction=warm_fraction,
        phases=phases,
        anneal=anneal,
        momentum_low=0.8,
        momentum_high=0.93,
    )
    assert_same(ours(cycle.rates(total_steps, 10), total_steps), follow(optimizer, theirs, total_steps))


def test_the_defaults_are_those_of_torch():
    optimizer = sgd()
    theirs = lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=50)
    assert_same(ours(hp.Cyclical().rates(50, 10), 50), follow(optimizer, theirs, 50))


@pytest.mark.parametrize("shape", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("cycle_steps", [2, 8, 7])
@pytest.mark.parametrize("build", [sgd, adam])
def test_triangles_equal_torch_step_by_step(shape, cycle_steps, build):
    optimizer = build()
    theirs = lr_scheduler.CyclicLR(
        optimizer,
        base_lr=0.1 * PEAK,
        max_lr=PEAK,
        step_size_up=cycle_steps / 2,
        mode=shape,
        gamma=0.97,
        base_momentum=0.82,
        max_momentum=0.94,
    )
    cycle = hp.Cyclical(shape=shape, start=0.1, gamma=0.97, cycle_epochs=1.0, momentum_low=0.82, momentum_high=0.94)
    assert_same(ours(cycle.rates(60, cycle_steps), 60), follow(optimizer, theirs, 60))


@pytest.mark.parametrize(("period", "factor"), [(10, 1), (5, 2), (3, 3), (1, 2)])
def test_cosine_restarts_equal_torch_step_by_step(period, factor):
    optimizer = sgd()
    theirs = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, T_mult=factor, eta_min=0.01 * PEAK)
    schedule = hp.cosine_restarts(period, final=0.01, factor=factor)
    rates = [PEAK * schedule(step) for step in range(60)]
    assert rates == pytest.approx([rate for rate, _ in follow(optimizer, theirs, 60)], rel=1e-10)


def test_cosine_restarts_mirror_the_momentum():
    rates = hp.Cyclical(shape="cosine_restarts", cycle_epochs=1.0, final=0.0).rates(30, 10)
    for step in range(30):
        assert rates.momentum(step) == pytest.approx(0.95 - 0.1 * rates.learning_rate(step))
    assert [rates.momentum(step) for step in (0, 10)] == pytest.approx([0.85, 0.85])


@pytest.mark.parametrize("shape", ["triangular", "triangular2", "exp_range"])
def test_triangles_are_the_equation_of_the_paper(shape):
    half, start, gamma = 5, 0.2, 0.99
    schedule = hp.triangular(2 * half, start=start, shape=shape, gamma=gamma)
    for step in range(45):
        cycle = math.floor(1 + step / (2 * half))
        x = abs(step / half - 2 * cycle + 1)
        factor = {"triangular": 1.0, "triangular2": 1 / 2 ** (cycle - 1), "exp_range": gamma**step}[shape]
        assert schedule(step) == pytest.approx(start + (1 - start) * max(0.0, 1 - x) * factor)


def test_triangular2_halves_the_upper_limit_each_cycle():
    schedule = hp.triangular(10, start=0.2, shape="triangular2")
    assert [schedule(5 + 10 * cycle) for cycle in range(4)] == pytest.approx([1.0, 0.6, 0.4, 0.3])
    assert schedule(5 + 10 * 5000) == pytest.approx(0.2)


def test_one_cycle_golden_values():
    schedule = hp.one_cycle(10, start=0.1, final=0.01, warm_fraction=0.5, anneal="linear")
    expected = [0.1, 0.325, 0.55, 0.775, 1.0, 0.802, 0.604, 0.406, 0.208, 0.01]
    assert [schedule(step) for step in range(10)] == pytest.approx(expected)
    three = hp.one_cycle(11, start=0.1, final=0.0, warm_fraction=5 / 11, phases=3, anneal="linear")
    expected = [0.1, 0.325, 0.55, 0.775, 1.0, 0.775, 0.55, 0.325, 0.1, 0.05, 0.0]
    assert [three(step) for step in range(11)] == pytest.approx(expected, abs=1e-12)


def test_final_is_relative_to_the_peak_not_to_the_start():
    for start in (0.5, 0.01):
        assert hp.one_cycle(20, start=start, final=0.001)(19) == pytest.approx(0.001)


@pytest.mark.parametrize("shape", ["one_cycle", "triangular", "triangular2", "exp_range", "cosine_restarts"])
def test_trap_2_past_the_end_the_last_value_holds(shape):
    rates = hp.Cyclical(shape=shape, cycle_epochs=1.0).rates(total_steps=25, steps_per_epoch=10)
    for step in (25, 26, 10**9):
        assert rates.learning_rate(step) == rates.learning_rate(24)
        assert rates.momentum(step) == rates.momentum(24)


@pytest.mark.parametrize("shape", ["one_cycle", "triangular", "triangular2", "exp_range"])
def test_momentum_is_high_where_the_rate_is_low(shape):
    rates = hp.Cyclical(shape=shape, start=0.0, final=0.0, anneal="linear", cycle_epochs=2.0).rates(40, 10)
    for step in range(40):
        assert rates.momentum(step) == pytest.approx(0.95 - 0.1 * rates.learning_rate(step))


def test_the_rate_rises_to_one_peak_and_falls():
    values = [hp.one_cycle(50)(step) for step in range(50)]
    top = values.index(1.0)
    assert top == 14
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_momentum_can_be_left_alone():
    assert hp.Cyclical(cycle_momentum=False).rates(10, 5).momentum is None


@pytest.mark.parametrize("phases", [2, 3])
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_the_shortest_runs_have_values(total_steps, phases):
    schedule = hp.one_cycle(total_steps, phases=phases)
    assert schedule(0) == 1.0
    assert schedule(total_steps - 1) == pytest.approx(1.0 if total_steps == 1 else 4e-6)


def test_a_run_without_a_rise_begins_at_the_peak():
    assert hp.one_cycle(10, warm_fraction=0.0)(0) == 1.0
    assert hp.one_cycle(10, warm_fraction=0.1)(0) == 1.0
    assert not hp.Cyclical(warm_fraction=0.0).warms_up
    assert hp.Cyclical().warms_up
    assert not hp.Cyclical(shape="triangular").warms_up


def test_a_cycle_shorter_than_two_steps_is_two_steps():
    rates = hp.Cyclical(shape="triangular", cycle_epochs=0.01, start=0.0).rates(4, 10)
    assert [rates.learning_rate(step) for step in range(4)] == [0.0, 1.0, 0.0, 1.0]


def test_a_fractional_period_factor_restarts_where_the_periods_end():
    schedule = hp.cosine_restarts(4, factor=1.5)
    assert [schedule(step) for step in (0, 4, 10, 19)] == pytest.approx([1.0] * 4)
    assert schedule(7) == pytest.approx(0.5)


def test_a_late_step_of_equal_periods_is_immediate():
    assert hp.cosine_restarts(7, factor=1.0)(7 * 10**12) == 1.0


def test_beta1_of_adam_cycles_in_training_and_beta2_stays():
    seen = []
    data = torch.randn(40, 3), torch.randint(0, 2, (40,))
    tricks = hp.Tricks(cyclical=hp.Cyclical())
    build = partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.98))
    for step in hp.train(torch.nn.Linear(3, 2), data, optimizer=build, epochs=2, batch_size=4, tricks=tricks):
        group = step.run.optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"]))
    expected = hp.Cyclical().rates(20, 10)
    assert [rate for rate, _ in seen] == [0.01 * expected.learning_rate(step) for step in range(20)]
    assert [betas for _, betas in seen] == [(expected.momentum(step), 0.98) for step in range(20)]
    assert min(betas[0] for _, betas in seen) == 0.85


@pytest.mark.parametrize(
    ("field", "value", "accepts"),
    [
        ("shape", "triangle", r"did you mean triangular\?"),
        ("start", 1.5, r"\[0, 1\]"),
        ("final", -0.1, r"\[0, 1\]"),
        ("warm_fraction", 1.0, r"\[0, 1\)"),
        ("phases", 4, r"\[2, 3\]"),
        ("phases", 2.0, "whole number"),
        ("anneal", "cos", "cosine"),
        ("cycle_epochs", 0.0, r"\(0, inf\)"),
        ("period_factor", 0.5, r"\[1, inf\)"),
        ("gamma", 0.0, r"\(0, 1\]"),
        ("momentum_high", 1.0, r"\[0, 1\)"),
        ("momentum_low", 0.96, r"\[0, 0.95\]"),
        ("start", float("nan"), r"\[0, 1\]"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_range(field, value, accepts):
    with pytest.raises(hp.InputError, match=rf"Cyclical\.{field}={value!r}.*{accepts}"):
        hp.Cyclical(**{field: value})


def test_three_phases_need_room_to_come_down():
    with pytest.raises(hp.InputError, match=r"Cyclical.warm_fraction=0.6 with phases=3: expected a number in \[0, 0.5\]"):
        hp.Cyclical(warm_fraction=0.6, phases=3)
    assert hp.Cyclical(warm_fraction=0.6, phases=2).warm_fraction == 0.6


def test_the_kernels_refuse_bad_lengths():
    with pytest.raises(hp.InputError, match=r"one_cycle: total_steps=0"):
        hp.one_cycle(0)
    with pytest.raises(hp.InputError, match=r"triangular: cycle_steps=1"):
        hp.triangular(1)
    with pytest.raises(hp.InputError, match=r"triangular: shape='one_cycle'"):
        hp.triangular(4, shape="one_cycle")
    with pytest.raises(hp.InputError, match=r"cosine_restarts: period_steps=2.5"):
        hp.cosine_restarts(2.5)
    with pytest.raises(hp.InputError, match=r"total_steps=0"):
        hp.Cyclical().rates(0, 1)
