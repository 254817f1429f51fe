"""Learning-rate scaling: each optimizer family's rule and its explanation, and the warm-up."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

import heptane as hp
from heptane.tricks.lr_scaling import scale_adam

REFERENCE = 256


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2, 2))]


class MyAdamLike(torch.optim.SGD):
    """An SGD, whatever it is called."""


class PlainSGDForSentences(torch.optim.AdamW):
    """An Adam, whatever it is called."""


class AdamFromScratch(torch.optim.Optimizer):
    """Of no known family, although its name and its groups look like one."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8})


RUN = {"total_steps": 1000, "steps_per_epoch": 10, "cycle_warms_up": False}


def test_the_linear_and_the_square_root_rule():
    assert hp.scale_lr(0.1, 8192, 256, "linear") == pytest.approx(3.2)
    assert hp.scale_lr(0.1, 8192, 256, "sqrt") == pytest.approx(0.1 * math.sqrt(32))
    assert hp.scale_lr(0.1, 64, 256, "linear") == pytest.approx(0.025)
    assert hp.scale_lr(0.1, 8192, 256, "none") == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0, 256, "linear"), r"batch_size=0"),
        ((0.1, 256, 0, "linear"), r"reference_batch=0"),
        ((0.1, 25.5, 256, "linear"), r"batch_size=25.5: expected a whole number"),
        ((0.1, 256, 256, "square"), r"rule='square' is not known"),
        ((0.1, 256, 256, "auto"), r"rule='auto' is not known"),
    ],
)
def test_scale_lr_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(hp.InputError, match=message):
        hp.scale_lr(*arguments)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.ASGD, MyAdamLike])
def test_the_sgd_family_scales_linearly_and_only_the_rate(kind):
    optimizer = kind(parameters(), lr=0.1, weight_decay=1e-4)
    before = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("lr", "params")}
    hp.LRScaling().apply(optimizer, 1024)
    after = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("lr", "params")}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
    assert after == before


@pytest.mark.parametrize(
    "kind",
    [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, PlainSGDForSentences],
)
def test_the_adam_family_scales_by_the_square_root_with_betas_and_eps(kind):
    optimizer = kind(parameters(), lr=0.001, betas=(0.9, 0.999), eps=1e-8)
    hp.LRScaling().apply(optimizer, 4 * REFERENCE)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.002)
    assert group["betas"] == pytest.approx((1 - 4 * 0.1, 1 - 4 * 0.001))
    assert group["eps"] == pytest.approx(1e-8 / 2)


def test_a_smaller_batch_scales_the_other_way():
    optimizer = torch.optim.Adam(parameters(), lr=0.001, betas=(0.9, 0.996))
    hp.LRScaling().apply(optimizer, REFERENCE // 4)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.0005)
    assert group["betas"] == pytest.approx((0.975, 0.999))
    assert group["eps"] == pytest.approx(2e-8)


def test_rmsprop_scales_alpha_as_adam_does_beta():
    optimizer = torch.optim.RMSprop(parameters(), lr=0.01, alpha=0.99, eps=1e-8)
    hp.LRScaling().apply(optimizer, 4 * REFERENCE)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["alpha"], group["eps"]) == pytest.approx((0.02, 0.96, 5e-9))


@pytest.mark.parametrize(
    ("kind", "family", "rule"),
    [
        (MyAdamLike, "SGD family", "linear"),
        (PlainSGDForSentences, "Adam family", "sqrt"),
        (torch.optim.SparseAdam, "Adam family", "sqrt"),
        (torch.optim.RMSprop, "RMSprop family", "sqrt"),
    ],
)
def test_trap_26_the_rule_goes_by_family_never_by_name(kind, family, rule):
    assert hp.LRScaling().resolve_rule(kind(parameters())) == (rule, family)


@pytest.mark.parametrize("kind", [AdamFromScratch, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Rprop])
def test_trap_26_an_unknown_family_is_refused_with_the_remedy(kind):
    optimizer = kind(parameters())
    before = dict(optimizer.param_groups[0])
    with pytest.raises(hp.InputError, match=rf"rule='auto': {kind.__name__} .*set LRScaling.rule to linear, sqrt or none"):
        hp.LRScaling().apply(optimizer, 1024)
    assert optimizer.param_groups[0] == before


def test_a_rule_that_was_set_goes_before_the_family():
    unknown = AdamFromScratch(parameters())
    said = hp.LRScaling(rule="sqrt").apply(unknown, 1024)
    assert said == "batch 1024 is 4 x the reference 256: set by LRScaling.rule, sqrt rule, learning rate 0.1 -> 0.2"
    assert unknown.param_groups[0]["betas"] == (0.9, 0.999)
    adam = torch.optim.Adam(parameters(), lr=0.1)
    hp.LRScaling(rule="linear").apply(adam, 1024)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["betas"]) == (pytest.approx(0.4), (0.9, 0.999))
    hp.LRScaling(rule="none").apply(adam, 64)
    assert adam.param_groups[0]["lr"] == pytest.approx(0.4)


def test_the_reason_is_said_in_full():
    said = hp.LRScaling().apply(torch.optim.AdamW(parameters(), lr=0.001), 1024)
    assert said == (
        "batch 1024 is 4 x the reference 256: Adam family, sqrt rule, learning rate 0.001 -> 0.002, "
        "betas (0.9, 0.999) -> (0.6, 0.996), eps 1e-08 -> 5e-09"
    )


def test_every_group_is_scaled_from_its_own_rate_and_the_ends_are_said():
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.01}, {"params": [second], "lr": 0.1}])
    said = hp.LRScaling().apply(optimizer, 512)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.2]
    assert said.endswith("learning rate 0.01..0.1 -> 0.02..0.2")


def test_a_rate_in_a_tensor_is_filled_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam(parameters(), lr=rate)
    hp.LRScaling().apply(optimizer, 1024)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.2)


def test_a_batch_too_large_for_the_betas_changes_nothing():
    optimizer = torch.optim.Adam(parameters(), lr=0.001)
    with pytest.raises(hp.InputError, match=r"k=10: with beta=0.9 expected k below 10; .*rule='none'"):
        hp.LRScaling().apply(optimizer, 2560)
    assert optimizer.param_groups[0]["lr"] == 0.001


def test_all_groups_are_checked_before_any_is_written():
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([{"params": [first], "betas": (0.99, 0.999)}, {"params": [second]}], lr=0.001)
    with pytest.raises(hp.InputError, match=r"beta=0\.9 "):
        hp.LRScaling().apply(optimizer, 2560)
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.001]


def test_a_beta_of_zero_stays_zero():
    betas, eps = scale_adam((0.0, 0.99), 1e-6, 16)
    assert betas == pytest.approx((0.0, 0.84))
    assert eps == pytest.approx(2.5e-7)
    with pytest.raises(hp.InputError, match=r"k=0"):
        scale_adam((0.9,), 1e-8, 0)


def test_scaling_after_a_scheduler_is_refused():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(hp.InputError, match="a scheduler already holds"):
        hp.LRScaling().apply(optimizer, 1024)


def test_the_square_root_rule_keeps_the_variance_of_a_step():
    """Adam's step is about lr x the sign of the gradient: over 1/k as many steps, k lr^2 is the same noise."""
    for k in (2, 4, 9):
        rate = hp.scale_lr(1.0, k * REFERENCE, REFERENCE, "sqrt")
        assert rate**2 / k == pytest.approx(1.0)


def test_warm_up_is_a_constant_increment_from_the_start_to_one():
    ramp = hp.warmup(5, 0.25)
    values = [ramp(step) for step in range(9)]
    assert values[0] == 0.25
    assert values[5:] == [1.0] * 4
    assert [b - a for a, b in pairwise(values[:6])] == pytest.approx([0.15] * 5)
    assert [hp.warmup(0)(step) for step in (0, 1)] == [1.0, 1.0]
    assert hp.warmup(4)(0) == 0.0


def test_warm_up_refuses_what_is_no_length_or_no_fraction():
    with pytest.raises(hp.InputError, match=r"warmup: warmup_steps=-1"):
        hp.warmup(-1)
    with pytest.raises(hp.InputError, match=r"warmup: start=1.5"):
        hp.warmup(3, 1.5)


def test_warm_up_begins_at_the_rate_of_the_reference_batch():
    sgd, adam = torch.optim.SGD(parameters()), torch.optim.Adam(parameters())
    scaling = hp.LRScaling(warmup_steps=10)
    assert scaling.warmup_schedule(sgd, 2048, **RUN)(0) == pytest.approx(1 / 8)
    assert scaling.warmup_schedule(adam, 2048, **RUN)(0) == pytest.approx(1 / math.sqrt(8))
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    scaling.apply(optimizer, 2048)
    assert optimizer.param_groups[0]["lr"] * scaling.warmup_schedule(sgd, 2048, **RUN)(0) == pytest.approx(0.1)


def test_warm_up_lasts_steps_or_epochs_and_five_epochs_by_default():
    sgd = torch.optim.SGD(parameters())
    for scaling, length in [
        (hp.LRScaling(warmup_steps=7), 7),
        (hp.LRScaling(warmup_epochs=1.5), 15),
        (hp.LRScaling(), 50),
    ]:
        ramp = scaling.warmup_schedule(sgd, 1024, **RUN)
        assert ramp(length - 1) < 1.0 == ramp(length)
        assert ramp(length // 2) == pytest.approx(0.25 + 0.75 * (length // 2) / length)
    short = hp.LRScaling().warmup_schedule(sgd, 1024, **{**RUN, "total_steps": 100})
    assert short(19) < 1.0 == short(20)


def test_warm_up_starts_anywhere_it_is_told_to():
    sgd = torch.optim.SGD(parameters())
    assert hp.LRScaling(warmup_steps=4, start=0.0).warmup_schedule(sgd, 1024, **RUN)(0) == 0.0
    assert hp.LRScaling(warmup_steps=4, start=0.6).warmup_schedule(sgd, 256, **RUN)(2) == pytest.approx(0.8)
    assert hp.LRScaling(warmup_steps=4, start=1.0).warmup_schedule(sgd, 1024, **RUN)(0) == 1.0


def test_no_warm_up_where_the_batch_did_not_grow():
    sgd = torch.optim.SGD(parameters())
    for batch_size in (256, 32):
        ramp = hp.LRScaling(warmup_steps=10).warmup_schedule(sgd, batch_size, **RUN)
        assert [ramp(step) for step in (0, 5, 10)] == [1.0] * 3


def test_a_warm_up_longer_than_the_run_is_refused():
    sgd = torch.optim.SGD(parameters())
    with pytest.raises(hp.InputError, match=r"LRScaling.warmup_epochs: 1010 steps .* expected <= 1000"):
        hp.LRScaling(warmup_epochs=101).warmup_schedule(sgd, 1024, **RUN)
    assert hp.LRScaling(warmup_epochs=100).warmup_schedule(sgd, 1024, **RUN)(1000) == 1.0


@pytest.mark.parametrize("asked", [{"warmup_steps": 5}, {"warmup_epochs": 0.5}, {"start": 0.1}, {"start": 0.0}])
def test_trap_31_one_cycle_with_a_warm_up_on_top_is_refused(asked):
    data = torch.randn(32, 4), torch.randint(0, 2, (32,))
    tricks = hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=2, **asked), cyclical=hp.Cyclical())
    build = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    ((name, value),) = asked.items()
    with pytest.raises(hp.InputError, match=rf"LRScaling\.{name}={value}: 1cycle already warms up"):
        hp.fit(torch.nn.Linear(4, 2), data, optimizer=build, epochs=2, batch_size=8, tricks=tricks)


def test_one_cycle_alone_warms_up_a_scaled_rate():
    sgd = torch.optim.SGD(parameters())
    run = {**RUN, "cycle_warms_up": True}
    for scaling in (hp.LRScaling(), hp.LRScaling(warmup_steps=0), hp.LRScaling(warmup_epochs=0.0)):
        assert [scaling.warmup_schedule(sgd, 8192, **run)(step) for step in (0, 1, 99)] == [1.0] * 3


def test_triangles_may_have_a_warm_up_and_the_two_multiply():
    data = torch.randn(64, 4), torch.randint(0, 2, (64,))
    cycle = hp.Cyclical(shape="triangular", cycle_epochs=1.0)
    tricks = hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=2, warmup_steps=6), cyclical=cycle)
    build = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    steps = hp.train(torch.nn.Linear(4, 2), data, optimizer=build, epochs=2, batch_size=8, tricks=tricks)
    rates = [step.learning_rate for step in steps]
    expected = [0.04 * hp.warmup(6, 0.25)(t) * cycle.rates(16, 8).learning_rate(t) for t in range(16)]
    assert rates == pytest.approx(expected)


def test_trap_32_momentum_correction_is_not_applied():
    """PyTorch keeps the rate outside the buffer: v <- m v + g, w <- w - lr v. A new rate needs no correction of v."""
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    ramp = hp.warmup(3, 0.25)
    scheduler = hp.as_scheduler(optimizer, ramp)
    weight = velocity = 0.0
    for step in range(6):
        parameter.grad = torch.full((1,), 1.0 + step, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        velocity = 0.9 * velocity + 1.0 + step
        weight -= 0.1 * ramp(step) * velocity
        assert parameter.item() == pytest.approx(weight, rel=1e-12)
        assert float(optimizer.state[parameter]["momentum_buffer"]) == pytest.approx(velocity, rel=1e-12)


@pytest.mark.parametrize(("kind", "scaled_rate"), [(torch.optim.SGD, 0.4), (torch.optim.AdamW, 0.2)])
def test_trap_33_the_decay_step_is_what_the_optimizer_defines(kind, scaled_rate):
    """Without a gradient of the loss both shrink w by lr x decay: the decay follows the rate and is itself not scaled."""
    parameter = torch.nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    optimizer = kind([parameter], lr=0.1, weight_decay=0.05)
    hp.LRScaling().apply(optimizer, 4 * REFERENCE)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    assert parameter.tolist() == pytest.approx([2.0 * (1 - scaled_rate * 0.05)] * 3, rel=1e-9)


@pytest.mark.parametrize(
    ("field", "value", "accepts"),
    [
        ("reference_batch", 0, r"\[1, inf\)"),
        ("reference_batch", 256.0, "whole number"),
        ("rule", "lin", r"did you mean linear\?"),
        ("warmup_epochs", -1, r"\[0, inf\)"),
        ("warmup_steps", 1.5, "whole number"),
        ("start", 1.1, r"\[0, 1\]"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_range(field, value, accepts):
    with pytest.raises(hp.InputError, match=rf"LRScaling\.{field}={value!r}.*{accepts}"):
        hp.LRScaling(**{field: value})


def test_steps_and_epochs_of_warm_up_exclude_each_other():
    with pytest.raises(hp.InputError, match=r"warmup_steps=5 and LRScaling.warmup_epochs=1: expected one of the two"):
        hp.LRScaling(warmup_steps=5, warmup_epochs=1)
