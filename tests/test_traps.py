"""One test for each way in which training tricks break each other, by its number in docs/traps.md."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Counting, assert_close, net, points, sgd
from tests.workers import launch

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.core.precision.native_dtypes import computes_bf16
from heptane.core.precision.step import Scaled
from heptane.distributed.replicas import check_replicas
from heptane.distributed.workers import this_worker

SAMPLES, BATCH, CLASSES = 22, 8, 3  # batches of 8, 8 and 6
F = torch.nn.functional
State = dict[str, torch.Tensor]


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """Very unequal numbers of valid positions."""
    random = torch.Generator().manual_seed(6)
    x = torch.randn(SAMPLES, 7, 6, generator=random, dtype=torch.float64)
    tags = torch.randint(0, CLASSES, (SAMPLES, 7), generator=random)
    return x, tags.where(torch.arange(7) < 1 + torch.arange(SAMPLES)[:, None] ** 2 % 7, -100)


def trained(model: torch.nn.Module, data: Any, tricks: hp.Tricks | None = None, **more: Any) -> tuple[State, list[Any]]:
    settings = {"optimizer": sgd, "epochs": 3, "batch_size": BATCH, "seed": 4, "tricks": tricks} | more
    events = list(hp.train(model, data, **settings))
    return dict(model.state_dict()), events


def overflowing_run(scale: float, epochs: float = 4) -> Any:
    cyclical = hp.Tricks(cyclical=hp.Cyclical())
    run = assemble(
        net(dtype=torch.float32),
        points(torch.float32),
        Plan.of(optimizer=sgd, epochs=epochs, batch_size=BATCH),
        tricks=cyclical,
    )
    run.precision = Scaled(torch.float16, "cpu", scale, 2000, 1.0)
    return run


def test_trap_01_a_skipped_step_advances_neither_schedule_nor_budget_and_is_counted() -> None:
    calm, wild = overflowing_run(2.0**8), overflowing_run(2.0**30)
    rates = [event.learning_rate for event in steps(calm)]
    assert [event.learning_rate for event in steps(wild)] == rates
    assert len(rates) == calm.total_steps == 12
    assert (calm.skipped, wild.skipped > 0) == (0, True)


def test_trap_02_a_cycle_ends_with_the_planned_steps_and_past_them_its_last_value_holds() -> None:
    _, events = trained(net(), points(), hp.Tricks(cyclical=hp.Cyclical()), epochs=4)
    run = events[-1].run
    assert events[-1].learning_rate == pytest.approx(0.1 * 4e-6, rel=1e-9)
    assert run.rates.learning_rate(12) == run.rates.learning_rate(10**6) == run.rates.learning_rate(11)


def test_trap_03_the_schedule_counts_optimizer_steps_whatever_the_micro_batches() -> None:
    tricks = hp.Tricks(cyclical=hp.Cyclical())
    expected = [event.learning_rate for event in trained(net(), points(), tricks)[1]]
    assert len(set(expected)) == 9
    for accumulate in (2, 3, 8):
        assert [event.learning_rate for event in trained(net(), points(), tricks, accumulate=accumulate)[1]] == expected


def test_trap_04_micro_batches_are_weighed_by_their_valid_targets() -> None:
    model, reference, (x, y) = net(), net(), sentences()
    ours, _ = trained(model, (x, y), epochs=1, batch_size=SAMPLES, accumulate=5)
    rows = hp.epoch_order(SAMPLES, 4, 0)
    optimizer = sgd(reference.parameters())
    F.cross_entropy(reference(x[rows]).flatten(0, 1), y[rows].flatten()).backward()
    optimizer.step()
    assert_close(ours, dict(reference.state_dict()))


def test_trap_05_a_short_last_window_counts_what_it_holds_and_is_flushed() -> None:
    x, y = points()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 3)  # 8 batches, the last of one sample
    ours, events = trained(net(), loader, batch_size=None, accumulate=3, epochs=1)  # 9, 9 and 4 samples
    reference = net()
    optimizer = sgd(reference.parameters())
    for window in (slice(0, 9), slice(9, 18), slice(18, 22)):
        optimizer.zero_grad()
        F.cross_entropy(reference(x[window]), y[window]).backward()
        optimizer.step()
    assert len(events) == 3
    assert_close(ours, dict(reference.state_dict()))


def test_trap_06_smoothing_has_the_denominator_of_the_loss_under_accumulation() -> None:
    tricks = hp.Tricks(label_smoothing=hp.LabelSmoothing(eps=0.3))
    ours, _ = trained(net(), sentences(), tricks, epochs=1, batch_size=SAMPLES, accumulate=6)
    reference, (x, y), rows = net(), sentences(), hp.epoch_order(SAMPLES, 4, 0)
    optimizer = sgd(reference.parameters())
    F.cross_entropy(reference(x[rows]).flatten(0, 1), y[rows].flatten(), label_smoothing=0.3).backward()
    optimizer.step()
    assert_close(ours, dict(reference.state_dict()))


def test_trap_07_mixed_targets_are_smoothed_once() -> None:
    x, y = points()
    seen = []
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=1.0), label_smoothing=hp.LabelSmoothing(eps=0.1))
    run = assemble(net(), (x, y), Plan.of(optimizer=sgd, epochs=1, batch_size=BATCH), tricks=tricks)
    output = torch.zeros(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    for step, batch in itertools.islice(run.source.batches(0, 2, run.place), 2):
        _, targets = run.mix.take(batch, slice(None), step)
        (gradient,) = torch.autograd.grad(run.criterion.mean(output, targets), output)
        q = 1 / CLASSES - gradient * BATCH  # for equal outputs, the gradient is (1/K - q) / N
        seen.append(q.min())
        eye = torch.eye(CLASSES, dtype=torch.float64)
        blended = torch.lerp(eye[targets.second], eye[targets.first], targets.lam[:, None].double())
        torch.testing.assert_close(q, 0.9 * blended + 0.1 / CLASSES, rtol=0, atol=1e-12)
    assert min(seen) == pytest.approx(0.1 / CLASSES)  # applied twice it would be more


def test_trap_08_ignored_positions_weigh_nothing_also_in_soft_targets_under_mixup() -> None:
    x, y = sentences()
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=1.0), label_smoothing=hp.LabelSmoothing(eps=0.2))
    ours, events = trained(net(), (x, y), tricks, epochs=1, batch_size=SAMPLES)
    reference, rows = net(), hp.epoch_order(SAMPLES, 4, 0)
    draw = hp.Mixup(alpha=1.0).draw(4, 0, SAMPLES)
    lam = draw.lam.double()[:, None]
    partner, optimizer = rows[draw.partner], sgd(reference.parameters())
    log_p = reference(lam[..., None] * x[rows] + (1 - lam[..., None]) * x[partner]).log_softmax(-1)
    total, weight = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for tags, share in ((y[rows], lam), (y[partner], 1 - lam)):
        valid = (tags != -100).double() * share
        truth = F.one_hot(tags.clamp(min=0), CLASSES).double()
        total = total - (valid[..., None] * (0.8 * truth + 0.2 / CLASSES) * log_p).sum()
        weight = weight + valid.sum()
    (total / weight).backward()
    optimizer.step()
    assert float(events[0].loss) == pytest.approx(float((total / weight).detach()), abs=1e-6)  # the weight is in float32
    assert_close(ours, dict(reference.state_dict()), atol=1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
def test_trap_09_mixup_pairs_do_not_change_with_micro_batches(per_sample: bool) -> None:
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=1.0, per_sample=per_sample))
    whole, _ = trained(net(), points(), tricks)
    for accumulate in (2, 3, 8):
        assert_close(trained(net(), points(), tricks, accumulate=accumulate)[0], whole)


def test_trap_10_accuracy_under_mixup_is_weighted_by_the_coefficient_and_labelled_so() -> None:
    x, y = points()
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=1.0))
    expected = 0.0
    reference = net()
    for event in hp.train(
        net(), (x, y), tricks=tricks, optimizer=lambda p: torch.optim.SGD(p, lr=1e-30), epochs=1, batch_size=SAMPLES
    ):
        draw, rows = hp.Mixup(alpha=1.0).draw(0, 0, SAMPLES), hp.epoch_order(SAMPLES, 0, 0)
        lam, partner = draw.lam, rows[draw.partner]
        predicted = reference(torch.lerp(x[partner], x[rows], lam[:, None].double())).argmax(1)
        expected = float((lam * (predicted == y[rows]) + (1 - lam) * (predicted == y[partner])).mean())
        found = event.run.meter.read()
        assert "train_accuracy" not in found
        assert found["train_accuracy_mixed"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0


UNFREEZING = hp.Tricks(transfer=hp.Transfer(freeze=-1, unfreeze_every_epochs=1, rate_factor=2))


def test_trap_11_what_is_frozen_is_a_function_of_the_step_also_after_a_resume() -> None:
    def run() -> Any:
        return assemble(
            net(torch.nn.Linear(5, 5)), points(), Plan.of(optimizer=sgd, epochs=4, batch_size=BATCH), tricks=UNFREEZING
        )

    trains: dict[int, list[bool]] = {}
    for event in steps(run()):
        trains[event.step] = [p.requires_grad for p in event.run.model.parameters()]
    assert trains[1] == [False, False, False, False, True, True]
    assert trains[4] == [False, False, True, True, True, True]
    assert trains[7] == trains[12] == [True] * 6
    for start in (0, 2, 3, 4, 6, 11):  # in the middle of a phase, at its edge, and past it
        event = next(steps(run(), start))
        assert [p.requires_grad for p in event.run.model.parameters()] == trains[start + 1]


def unfrozen_by_workers() -> tuple[State, str]:
    model = net()
    tricks = hp.Tricks(transfer=UNFREEZING.transfer, data_parallel=hp.DataParallel(workers=2))
    state = {key: value.clone() for key, value in trained(model, points(), tricks)[0].items()}
    check_replicas(model)
    with torch.no_grad():
        model[0].bias[0] += this_worker().rank
    try:
        check_replicas(model)
    except RuntimeError as error:
        return state, str(error)
    return state, "not found"


def in_two_workers() -> dict[str, Any]:
    """Everything here that needs a second worker, in one start."""
    two = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
    schedule = hp.Tricks(data_parallel=two.data_parallel, cyclical=hp.Cyclical())
    mixing = hp.Tricks(data_parallel=two.data_parallel, mixup=hp.Mixup(alpha=1.0))
    random = torch.Generator().manual_seed(9)
    images = torch.randn(SAMPLES, 2, 6, 6, generator=random)
    last = hp.Tricks(data_parallel=two.data_parallel, mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"))
    return {
        "rates": [event.learning_rate for event in trained(net(), points(), schedule)[1]],
        "valid targets": trained(net(), sentences(), two, accumulate=3)[0],
        "mixup": trained(net(), points(), mixing, accumulate=2)[0],
        "unfreezing": unfrozen_by_workers(),
        "clipping": trained(net(), sentences(), two, clip_norm=0.05, accumulate=2)[0],
        "evaluation": [hp.evaluate(net(), [part[:size] for part in points()]) for size in (1, 5, 22)],
        "frozen": trained(net(torch.nn.BatchNorm1d(5)).requires_grad_(True), points(), frozen_two())[1][-1].run.find_unused,
        "channels last": trained(conv(), (images, points()[1]), last)[0],
        "unequal": trained(net(), points(), two, batch_size=7)[0],
    }


def frozen_two() -> hp.Tricks:
    return hp.Tricks(data_parallel=hp.DataParallel(workers=2), transfer=hp.Transfer(freeze=1))


def conv() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, CLASSES))


@pytest.fixture(scope="module")
def by_two() -> dict[str, Any]:
    return launch(in_two_workers, {}, 2)


def test_trap_03_the_schedule_counts_optimizer_steps_whatever_the_workers(by_two: dict[str, Any]) -> None:
    assert by_two["rates"] == [e.learning_rate for e in trained(net(), points(), hp.Tricks(cyclical=hp.Cyclical()))[1]]


def test_trap_04_ranks_are_weighed_by_their_valid_targets(by_two: dict[str, Any]) -> None:
    assert_close(by_two["valid targets"], trained(net(), sentences())[0])


def test_trap_09_mixup_pairs_cross_the_workers(by_two: dict[str, Any]) -> None:
    assert_close(by_two["mixup"], trained(net(), points(), hp.Tricks(mixup=hp.Mixup(alpha=1.0)))[0])


def test_trap_12_workers_stay_equal_when_layers_are_unfrozen_and_a_hash_is_compared(by_two: dict[str, Any]) -> None:
    state, found = by_two["unfreezing"]
    assert_close(state, trained(net(), points(), UNFREEZING)[0])
    assert "have diverged: parameter '0.bias' is the first to differ" in found


def test_trap_13_all_parameter_groups_are_there_from_the_start() -> None:
    before = None
    for event in hp.train(net(), points(), tricks=UNFREEZING, optimizer=sgd, epochs=3, batch_size=BATCH):
        groups = [[id(p) for p in group["params"]] for group in event.run.optimizer.param_groups]
        before = before or groups
        assert groups == before
    assert before is not None
    assert len(before) == 2


def test_trap_14_frozen_batchnorm_keeps_its_statistics_whatever_mode_the_caller_sets() -> None:
    model = net(torch.nn.BatchNorm1d(5))
    before = {key: value.clone() for key, value in model[1].state_dict().items()}
    tricks = hp.Tricks(transfer=hp.Transfer(freeze=1))
    for _ in hp.train(model, points(), tricks=tricks, optimizer=sgd, epochs=2, batch_size=BATCH):
        model.eval()
        model.train()
    assert_close(dict(model[1].state_dict()), before, atol=0)


def test_trap_15_frozen_parameters_are_no_reason_to_look_for_unused_ones(by_two: dict[str, Any]) -> None:
    assert by_two["frozen"] is False


def test_trap_16_assembly_with_its_measurements_leaves_no_mark() -> None:
    model = net(torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5), dtype=torch.float32)
    state, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.random.get_rng_state()
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision())
    assemble(model, points(torch.float32), Plan.of(optimizer=sgd, epochs=1, batch_size=BATCH), tricks=tricks)
    assert_close(dict(model.state_dict()), state, atol=0)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_trap_19_clipping_is_once_per_step_after_unscaling() -> None:
    whole, _ = trained(net(), points(), clip_norm=0.05)
    assert_close(trained(net(), points(), clip_norm=0.05, accumulate=4)[0], whole)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([1024.0 * 3])
    Scaled(torch.float16, "cpu", 1024.0, 2000, 1.0).step(torch.optim.SGD([weight], lr=1.0), clip_norm=2.0)
    assert float(weight.detach()) == pytest.approx(-2.0, abs=1e-5)


def test_trap_19_clipping_is_after_the_all_reduce(by_two: dict[str, Any]) -> None:
    assert_close(by_two["clipping"], trained(net(), sentences(), clip_norm=0.05)[0])


def test_trap_20_an_evaluation_inside_an_autocast_region_loses_no_gradient() -> None:
    model = net(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        hp.evaluate(model, points(torch.float32))
        loss = F.cross_entropy(model(points(torch.float32)[0]), points()[1])
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_trap_21_a_resumed_run_has_the_order_the_draws_and_the_dropout_of_one_that_never_stopped(tmp_path: Path) -> None:
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=1.0), cyclical=hp.Cyclical())
    settings = {"optimizer": sgd, "batch_size": BATCH, "tricks": tricks, "seed": 4, "device": "cpu", "epochs": 4}
    whole = net(torch.nn.Dropout(0.4))
    hp.fit(whole, points(), **settings)

    class Stop(Exception):
        pass

    def stop_at(step: int) -> Any:
        class Metric:
            count = 0

            def to(self, device: Any) -> Any:
                return self

            def reset(self) -> None:
                Metric.count += 1
                if Metric.count == step:
                    raise Stop

            def update(self, output: Any, targets: Any) -> None: ...

            def compute(self) -> float:
                return 0.0

        return {"stop": Metric()}

    with pytest.raises(Stop):
        hp.fit(net(torch.nn.Dropout(0.4)), points(), points(), run_dir=tmp_path, metrics=stop_at(6), **settings)
    resumed = net(torch.nn.Dropout(0.4))
    torch.rand(17)
    hp.fit(resumed, points(), points(), run_dir=tmp_path, resume=True, weights="last", **settings)
    assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), atol=0)


def test_trap_25_every_sample_is_evaluated_once_over_all_workers(by_two: dict[str, Any]) -> None:
    for size, found in zip((1, 5, 22), by_two["evaluation"], strict=True):
        assert found == pytest.approx(hp.evaluate(net(), [part[:size] for part in points()]), abs=1e-12)


def test_trap_26_the_rule_of_scaling_is_by_the_optimizers_family_and_given_with_its_reason() -> None:
    class SGDInNameOnly(torch.optim.AdamW):
        pass

    class Unknown(torch.optim.Adagrad):
        pass

    scaling = hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=2))

    def run(kind: Any) -> Any:
        factory = partial(kind, lr=0.01)
        return assemble(net(), points(), Plan.of(optimizer=factory, epochs=1, batch_size=BATCH), tricks=scaling)

    assert run(SGDInNameOnly).base_rates == pytest.approx([0.02])
    assert "Adam family, sqrt rule" in run(SGDInNameOnly).why["lr_scaling"]
    assert run(torch.optim.SGD).base_rates == pytest.approx([0.04])
    with pytest.raises(hp.InputError, match=r"Unknown belongs to no family with a known rule.*set LRScaling.rule"):
        run(Unknown)


def test_trap_27_channels_last_comes_before_the_wrap(by_two: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(9)
    images = torch.randn(SAMPLES, 2, 6, 6, generator=random)
    assert by_two["channels last"]["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert_close(by_two["channels last"], trained(conv(), (images, points()[1]))[0], atol=1e-5)


def test_trap_28_sixteen_bits_are_measured_or_refused_with_the_measurement() -> None:
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision())
    run = assemble(
        net(dtype=torch.float32), points(torch.float32), Plan.of(optimizer=sgd, epochs=1, batch_size=BATCH), tricks=tricks
    )
    # A processor without units for 16 bits is not asked: it would emulate them.
    assert (" ms" if computes_bf16() else "no units for 16 bits") in run.why["mixed_precision"]
    fp16 = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp16"))
    with pytest.raises(hp.InputError, match=r"refused on a CPU: .*GFLOP/s"):
        trained(net(dtype=torch.float32), points(torch.float32), fp16, device="cpu")


def not_a_number(model: Counting, output: torch.Tensor) -> torch.Tensor:
    """From the eighth training pass on."""
    return output * (math.nan if model.passes >= 8 else 1)


def test_trap_29_steps_that_are_not_finite_are_counted_and_after_a_limit_the_first_is_named() -> None:
    result = hp.fit(Counting(not_a_number), points(), optimizer=sgd, epochs=4, batch_size=BATCH)
    assert result.steps["nonfinite"] == 5
    assert all(math.isfinite(record["train_loss"]) for record in result.history[:2])
    with pytest.raises(
        FloatingPointError, match=r"^10 steps in a row, the first at step 7: the gradients are not finite; it"
    ):
        hp.fit(Counting(not_a_number), points(), optimizer=sgd, epochs=20, batch_size=BATCH)


def test_trap_30_batches_come_in_a_fixed_set_of_shapes() -> None:
    shapes = set()
    model = net()

    def seen(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if module.training:
            shapes.add(tuple(args[0].shape))

    model.register_forward_pre_hook(seen)
    running = hp.train(model, points(), optimizer=sgd, epochs=5, batch_size=BATCH)
    next(running)  # the trials are over
    shapes.clear()
    list(running)
    assert shapes == {(8, 6), (6, 6)}


def test_trap_31_a_warm_up_on_top_of_a_cycle_that_warms_up_is_refused() -> None:
    scaling, both = hp.LRScaling(reference_batch=4, warmup_epochs=1), "1cycle already warms up"
    with pytest.raises(hp.InputError, match=both):
        trained(net(), points(), hp.Tricks(lr_scaling=scaling, cyclical=hp.Cyclical()))
    trained(net(), points(), hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=4), cyclical=hp.Cyclical()))
    trained(net(), points(), hp.Tricks(lr_scaling=scaling, cyclical=hp.Cyclical(warm_fraction=0)))


def test_trap_32_momentum_is_not_corrected_when_the_rate_changes() -> None:
    x, y = points()
    tricks = hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=2, warmup_steps=4))
    ours, _ = trained(net(), (x, y), tricks)
    reference = net()
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for step in range(9):
        rows = hp.epoch_order(SAMPLES, 4, step // 3)[step % 3 * BATCH : (step % 3 + 1) * BATCH]
        gradients = torch.autograd.grad(F.cross_entropy(reference(x[rows]), y[rows]), list(reference.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(reference.named_parameters(), gradients, strict=True):
                velocity[name] = 0.9 * velocity[name] + gradient
                parameter -= 0.4 * min(1.0, 0.25 + 0.75 * step / 4) * velocity[name]
    assert_close(ours, dict(reference.state_dict()))
    from heptane.tricks import lr_scaling

    assert "Momentum correction" in str(lr_scaling.__doc__)


def test_trap_33_decay_follows_the_rate_as_the_optimizer_defines_it() -> None:
    def step_of(kind: Any) -> torch.Tensor:
        weight = torch.nn.Linear(6, CLASSES).double()
        torch.nn.init.ones_(weight.weight)
        zeros = torch.zeros(SAMPLES, 6, dtype=torch.float64), points()[1]  # no gradient reaches the weight: decay alone
        factory = partial(kind, lr=0.1, weight_decay=0.5)
        tricks = hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=2, warmup_steps=0))
        return trained(weight, zeros, tricks, optimizer=factory, epochs=0.1)[0]["weight"]

    assert torch.allclose(step_of(torch.optim.SGD), torch.tensor(1 - 0.4 * 0.5).double())
    assert torch.allclose(step_of(torch.optim.AdamW), torch.tensor(1 - 0.2 * 0.5).double())


def test_trap_34_an_update_below_half_a_unit_of_bf16_is_not_lost() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    data = torch.ones(40, 1), torch.zeros(40, 1)
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16"))
    factory = partial(torch.optim.SGD, lr=1e-4)
    trained(layer, data, tricks, optimizer=factory, epochs=1, batch_size=4, loss="mse")
    assert 1e-4 * 2 < 2**-9  # the step, and half a unit in the last place of bf16 at 1
    assert float(layer.weight.detach()) == pytest.approx(1 - 10 * 2e-4, abs=1e-6)
    assert float(torch.ones(1).bfloat16() - 2e-4) == 1.0


def test_trap_35_ranks_with_unequal_numbers_of_samples_are_weighed_by_them(by_two: dict[str, Any]) -> None:
    assert_close(by_two["unequal"], trained(net(), points(), batch_size=7)[0])
