"""Schedules: how they combine, how they set an optimizer, and PyTorch schedulers that follow them."""

from __future__ import annotations

import io
import math

import pytest
import torch

import heptane as hp
from heptane.core.schedule import (
    base_rates,
    check_momentum,
    constant,
    hold_last,
    join_schedules,
    piecewise,
    scale_schedules,
    set_rates,
)


def parameters(count: int = 1) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2)) for _ in range(count)]


def step_once(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_constant_is_one_at_every_step():
    assert [constant()(step) for step in (0, 7, 10**9)] == [1.0] * 3
    assert constant(0.25)(3) == 0.25


def test_multiply_is_the_product_step_by_step():
    def rising(step: int) -> float:
        return 1.0 + step

    product = scale_schedules(rising, constant(0.5), lambda step: 2.0**-step)
    assert [product(step) for step in range(5)] == [(1 + t) * 0.5 * 2.0**-t for t in range(5)]
    assert scale_schedules(rising) is rising
    assert scale_schedules()(12) == 1.0


def test_warm_up_times_cycle_is_the_product_of_both():
    ramp, cycle = hp.warmup(4, 0.2), hp.one_cycle(20)
    both = scale_schedules(ramp, cycle)
    assert [both(t) for t in range(25)] == [ramp(t) * cycle(t) for t in range(25)]


def test_join_gives_each_part_its_own_step_zero():
    def count(step: int) -> float:
        return float(step)

    joined = join_schedules((count, 3), (lambda step: 10.0 + step, 2), then=lambda step: 100.0 + step)
    assert [joined(step) for step in range(8)] == [0, 1, 2, 10, 11, 100, 101, 102]


def test_join_skips_a_part_of_no_steps():
    joined = join_schedules((constant(5.0), 0), (constant(6.0), 1), then=constant(7.0))
    assert [joined(step) for step in range(3)] == [6.0, 7.0, 7.0]
    assert join_schedules(then=constant(3.0))(0) == 3.0


@pytest.mark.parametrize("num_steps", [-1, 2.5, True])
def test_join_refuses_a_length_that_is_not_a_count(num_steps):
    with pytest.raises(hp.InputError, match=r"join_schedules: the number of steps of part 1.*whole number"):
        join_schedules((constant(), 3), (constant(), num_steps), then=constant())


def test_hold_keeps_the_last_value_for_good():
    held = hold_last(lambda step: 2.0 * step, 3)
    assert [held(step) for step in (0, 1, 2, 3, 1000)] == [0.0, 2.0, 4.0, 4.0, 4.0]
    with pytest.raises(hp.InputError, match=r"num_steps=0 .*\[1, inf\)"):
        hold_last(constant(), 0)


def test_piecewise_meets_its_corners_and_bends_between_them():
    linear = piecewise([(0, 1.0), (4, 3.0), (6, 0.0)])
    assert [linear(step) for step in (0, 1, 2, 4, 5, 6, 7, 10**6)] == [1.0, 1.5, 2.0, 3.0, 1.5, 0.0, 0.0, 0.0]
    cosine = piecewise([(0, 1.0), (4, 3.0)], "cosine")
    expected = [3.0 + (1.0 - 3.0) * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    assert [cosine(step) for step in range(5)] == pytest.approx(expected, abs=1e-15)


def test_piecewise_meets_the_second_of_two_corners_on_one_step():
    jump = piecewise([(0, 0.0), (2, 1.0), (2, 5.0), (4, 6.0)])
    assert [jump(step) for step in range(5)] == [0.0, 0.5, 1.0, 5.5, 6.0]
    assert piecewise([(0, 0.3), (0, 1.0)])(0) == 1.0


def test_piecewise_refuses_corners_out_of_order():
    for corners in ([], [(1, 0.0)], [(0, 0.0), (4, 1.0), (2, 1.0)]):
        with pytest.raises(hp.InputError, match="expected them in order"):
            piecewise(corners)
    with pytest.raises(hp.InputError, match=r"anneal='cosin' is not known \(did you mean cosine\?\)"):
        piecewise([(0, 0.0)], "cosin")


def test_set_rates_multiplies_every_group_from_its_own_base():
    first, second = parameters(2)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 0.01}], lr=1.0, momentum=0.9)
    bases = base_rates(optimizer)
    for multiplier in (0.5, 0.1):
        set_rates(optimizer, bases, multiplier)
        assert base_rates(optimizer) == [0.5 * multiplier, 0.01 * multiplier]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]
    with pytest.raises(ValueError, match="zip"):
        set_rates(optimizer, bases[:1], 1.0)


def test_set_rates_fills_a_rate_in_a_tensor_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam(parameters(), lr=rate)
    bases = base_rates(optimizer)
    set_rates(optimizer, bases, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.05)
    set_rates(optimizer, bases, 1.0)
    assert float(rate) == pytest.approx(0.1)


def test_momentum_of_sgd_and_beta1_of_adam_are_set_and_beta2_is_left():
    sgd = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    adam = torch.optim.AdamW(parameters(), lr=0.1, betas=(0.9, 0.98))
    for optimizer in (sgd, adam):
        set_rates(optimizer, base_rates(optimizer), 1.0, momentum=0.87)
    assert sgd.param_groups[0]["momentum"] == 0.87
    assert adam.param_groups[0]["betas"] == (0.87, 0.98)


def test_a_beta_in_a_tensor_is_filled_in_place():
    betas = torch.tensor(0.9), torch.tensor(0.999)
    optimizer = torch.optim.Adam(parameters(), lr=torch.tensor(0.1), betas=betas, capturable=True, foreach=False)
    set_rates(optimizer, [0.1], 1.0, momentum=0.85)
    assert optimizer.param_groups[0]["betas"][0] is betas[0]
    assert [float(beta) for beta in betas] == pytest.approx([0.85, 0.999])


def test_the_momentum_that_cycles_is_the_one_the_step_uses():
    (parameter,) = params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0, momentum=0.9)
    step_once(optimizer)
    set_rates(optimizer, [1.0], 1.0, momentum=0.5)
    step_once(optimizer)
    assert parameter.tolist() == pytest.approx([1 - 1 - (0.5 * 1 + 1)] * 2)


def test_an_optimizer_without_momentum_is_refused_with_the_remedy():
    with pytest.raises(
        hp.InputError, match=r"Adagrad \(parameter group 0\).*neither momentum nor betas.*cycle_momentum=False"
    ):
        check_momentum(torch.optim.Adagrad(parameters()))
    with pytest.raises(hp.InputError, match=r"SGD .*momentum is 0, .*set momentum > 0"):
        check_momentum(torch.optim.SGD(parameters(), lr=0.1))
    with pytest.raises(hp.InputError, match=r"Adam .*beta1 is 0, .*set beta1 > 0"):
        check_momentum(torch.optim.Adam(parameters(), betas=(0.0, 0.999)))


def test_one_group_without_momentum_among_several_is_named():
    first, second = parameters(2)
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "momentum": 0.0}], lr=0.1, momentum=0.9)
    with pytest.raises(hp.InputError, match=r"parameter group 1"):
        check_momentum(optimizer)


def test_as_scheduler_is_a_torch_scheduler_that_follows_the_functions():
    first, second = parameters(2)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second]}], lr=0.1, momentum=0.9)
    rates = hp.Cyclical().rates(10, 5)
    scheduler = hp.as_scheduler(optimizer, rates.learning_rate, rates.momentum)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    for step in range(14):
        expected = [0.5 * rates.learning_rate(step), 0.1 * rates.learning_rate(step)]
        assert scheduler.get_last_lr() == pytest.approx(expected, rel=1e-12)
        assert base_rates(optimizer) == pytest.approx(expected, rel=1e-12)
        assert [group["momentum"] for group in optimizer.param_groups] == [rates.momentum(step)] * 2
        step_once(optimizer)
        scheduler.step()


def test_as_scheduler_leaves_the_momentum_where_none_is_given():
    optimizer = torch.optim.Adam(parameters(), betas=(0.8, 0.99))
    scheduler = hp.as_scheduler(optimizer, hp.one_cycle(5))
    step_once(optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    with pytest.raises(hp.InputError, match="momentum is 0"):
        hp.as_scheduler(torch.optim.SGD(parameters(), lr=0.1), hp.one_cycle(5), constant(0.9))


def test_the_state_of_a_scheduler_goes_through_a_file_and_resumes_at_its_step():
    def build() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.Adam(parameters(), lr=0.02)
        rates = hp.Cyclical().rates(12, 4)
        return optimizer, hp.as_scheduler(optimizer, rates.learning_rate, rates.momentum)

    optimizer, scheduler = build()
    for _ in range(5):
        step_once(optimizer)
        scheduler.step()
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)

    fresh_optimizer, fresh = build()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.last_epoch == 5
    assert base_rates(fresh_optimizer) == base_rates(optimizer)
    assert fresh_optimizer.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]
    for _ in range(9):
        for each in (optimizer, fresh_optimizer):
            step_once(each)
        scheduler.step()
        fresh.step()
        assert fresh.get_last_lr() == scheduler.get_last_lr()
        assert fresh_optimizer.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]


def test_as_scheduler_fills_a_rate_in_a_tensor():
    rate = torch.tensor(0.4)
    optimizer = torch.optim.Adam(parameters(), lr=rate)
    scheduler = hp.as_scheduler(optimizer, lambda step: 1.0 / (1 + step))
    step_once(optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.2)
