"""Mixed precision: loss scaling, skipped steps without side effects, fp32 master weights."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.helpers import Counting, sgd
from tests.workers import launch

import heptane as hp
from heptane.assemble import assemble
from heptane.base.device import find_device
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.core.precision.step import Autocast, Precision, Scaled, check_master_weights, evaluation
from heptane.core.run import Run
from heptane.distributed.workers import Worker, this_worker

BIG = 60_000.0  # fp16 ends at 65504


def fp16(scale: float = 4.0, growth_steps: int = 2000, floor: float = 1.0) -> Scaled:
    return Scaled(torch.float16, "cpu", scale, growth_steps, floor)


def one_weight(value: float = 1.0) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([value]))
    return weight, torch.optim.SGD([weight], lr=1.0)


def test_the_gradient_is_unscaled_before_it_is_clipped_and_applied() -> None:
    weight, optimizer = one_weight()
    precision = fp16(scale=1024.0)
    precision.backward((3 * weight).sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3072.0
    assert precision.step(optimizer, clip_norm=1.0)
    assert weight.item() == pytest.approx(0.0, abs=1e-5)  # clipped from 3 to 1, so a step of 1


def test_scaling_keeps_gradients_that_16_bits_would_round_to_zero() -> None:
    def gradient(precision: Precision) -> float:
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        with torch.autocast("cpu", torch.float16):
            output = layer(torch.full((1, 1), 1e-4))
        precision.backward(output.float().sum() * 1e-4)
        precision.step(torch.optim.SGD(layer.parameters(), lr=0.0))
        assert layer.weight.grad is not None
        return layer.weight.grad.item()

    assert gradient(Precision()) == 0.0
    assert gradient(fp16(2.0**12)) == pytest.approx(1e-8, rel=1e-3)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_step_that_is_not_finite_is_not_applied_and_the_scale_halves_down_to_its_floor(bad: float) -> None:
    weight, optimizer = one_weight()
    precision = fp16(scale=6.0, floor=2.0)
    seen = []
    for _ in range(4):
        weight.grad = torch.tensor([bad])
        seen.append((precision.step(optimizer), precision.scale, precision.exhausted))
    assert seen == [(False, 3.0, False), (False, 2.0, False), (False, 2.0, True), (False, 2.0, True)]
    assert weight.item() == 1.0
    weight.grad = torch.tensor([0.5])
    assert precision.step(optimizer)
    assert not precision.exhausted


def test_the_scale_doubles_after_so_many_applied_steps_in_a_row() -> None:
    weight, optimizer = one_weight()
    precision = fp16(scale=8.0, growth_steps=3)
    scales = []
    for finite in (True, True, False, True, True, True, True, True, True):
        weight.grad = torch.tensor([1.0 if finite else math.nan])
        precision.step(optimizer)
        scales.append(precision.scale)
    assert scales == [8, 8, 4, 4, 4, 8, 8, 8, 16]


def test_gradients_are_finite_whose_euclidean_norm_is_not() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((2,), 3e38)
    assert fp16(scale=1.0).step(torch.optim.SGD([weight], lr=0.0))


def test_one_bad_element_among_many_groups_and_dtypes_is_found() -> None:
    parameters = [
        torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in ((5, torch.float64), ((2, 3), None))
    ]
    empty, unused = torch.nn.Parameter(torch.zeros(0)), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([{"params": [p]} for p in (*parameters, empty, unused)], lr=1.0)
    for parameter in (*parameters, empty):
        parameter.grad = torch.zeros_like(parameter)
    assert fp16().step(optimizer)
    assert parameters[1].grad is not None
    parameters[1].grad[1, 2] = math.inf
    assert not fp16().step(optimizer)


def test_no_gradients_at_all_is_an_applied_step() -> None:
    _, optimizer = one_weight()
    assert fp16().step(optimizer)


def test_sparse_gradients() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer, precision = torch.optim.SGD(table.parameters(), lr=1.0), fp16(scale=16.0)
    before = table.weight.detach().clone()
    precision.backward(table(torch.tensor([1, 1, 3])).sum())
    assert precision.step(optimizer)
    moved = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])[:, None].expand(5, 2)
    torch.testing.assert_close(before - table.weight.detach(), moved)
    optimizer.zero_grad()
    precision.backward(table(torch.tensor([2])).sum() * math.inf)
    assert not precision.step(optimizer)


def test_the_state_goes_into_a_checkpoint_and_back() -> None:
    weight, optimizer = one_weight()
    precision, other = fp16(scale=64.0), fp16()
    weight.grad = torch.tensor([1.0])
    precision.step(optimizer)
    other.load_state(precision.state())
    assert other.state() == precision.state() == {"scale": 64.0, "steps_held": 1}
    assert Precision().state() == Autocast(torch.bfloat16, "cpu").state() == {}


class Sensitive(torch.nn.Module):
    """BatchNorm, dropout, and a product that overflows in fp16 where an input is large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        nn = torch.nn
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.passes = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.layers(inputs)


def points(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(24, 4, generator=random, dtype=dtype), torch.randint(0, 3, (24,), generator=random)


def scaled_run(scale: float, floor: float = 2.0**-40, **more: Any) -> tuple[Sensitive, Run]:
    model = Sensitive()
    settings = {"optimizer": sgd, "epochs": 4, "batch_size": 8, "seed": 2} | more
    run = assemble(model, points(), Plan.of(device="cpu", **settings), tricks=hp.Tricks(cyclical=hp.Cyclical()))
    run.precision = fp16(scale=scale, floor=floor)
    return model, run


def test_after_an_overflow_the_same_step_is_tried_again_and_nothing_else_has_moved() -> None:
    calm, reference = scaled_run(2.0**8)
    expected = [(step.step, float(step.loss), step.learning_rate) for step in steps(reference)]
    assert reference.skipped == 0
    wild, run = scaled_run(2.0**30)
    seen = [(step.step, float(step.loss), step.learning_rate) for step in steps(run)]
    assert run.skipped > 3
    assert wild.passes == calm.passes + run.skipped
    assert seen == expected  # the schedule's clock counts applied steps, and dropout is drawn again as before
    assert isinstance(run.precision, Scaled)
    assert run.precision.scale == 2.0 ** (30 - run.skipped)
    assert run.precision.steps_held < 12
    for key, value in wild.state_dict().items():  # BatchNorm's statistics too; scales are powers of 2, so it is exact
        assert torch.equal(value, calm.state_dict()[key]), key
    assert run.meter.read() == reference.meter.read()


def test_what_no_scale_can_help_is_an_error_that_names_the_step_and_the_model_is_as_before() -> None:
    x, y = points()
    x[hp.epoch_order(24, 2, 0)[8]] = 1e38  # a sample of the second step: finite, but not when multiplied
    model = Sensitive()
    run = assemble(model, (x, y), Plan.of(optimizer=sgd, epochs=1, batch_size=8, seed=2, device="cpu", on_nan="stop"))
    run.precision = fp16(scale=16.0, floor=1.0)
    events = steps(run)
    next(events)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"^step 1: the gradients are not finite; .*compute in bf16"):
        next(events)
    assert run.skipped == 4  # at 16, 8, 4 and 2; 1 is the floor
    assert run.precision.scale == 16.0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def overflows_once(rank: int, model: Counting, output: torch.Tensor) -> torch.Tensor:
    """Its gradient is infinite on one worker, in its third training pass."""
    return output * math.inf if model.passes == 3 and this_worker().rank == rank else output


def overflow_on_one_rank() -> list[list[Any]]:
    return [overflow(rank, strategy) for strategy in ("ddp", "fsdp") for rank in (0, 1, 2)]  # on the third there is none


def overflow(rank: int, strategy: str) -> list[Any]:
    torch.manual_seed(0)
    model = Counting(partial(overflows_once, rank), torch.nn.Linear(4, 3))
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy=strategy))
    run = assemble(model, points(), Plan.of(optimizer=sgd, epochs=2, batch_size=8, device="cpu"), tricks=tricks)
    run.precision = fp16(scale=8.0)
    applied = [step.step for step in steps(run)]
    mine = [applied, run.skipped, run.precision.state(), model.passes, run.gathered().layer.weight.tolist()]
    both: list[Any] = [None, None]
    torch.distributed.all_gather_object(both, mine)
    return both


@pytest.fixture(scope="module")
def overflows() -> list[list[Any]]:
    found: list[list[Any]] = launch(overflow_on_one_rank, {}, 2)
    return found


@pytest.mark.parametrize("strategy", [0, 1], ids=["ddp", "fsdp"])
def test_an_overflow_on_one_worker_skips_the_step_on_all(overflows: list[list[Any]], strategy: int) -> None:
    first, second, none = overflows[3 * strategy : 3 * strategy + 3]
    for both in (first, second, none):
        assert both[0] == both[1]
    for (applied, skipped, state, passes, weight), _ in (first, second):
        assert applied == [1, 2, 3, 4, 5, 6]
        assert (skipped, passes) == (1, 7)
        assert state == {"scale": 4.0, "steps_held": 4}
        assert weight == none[0][4]
    assert none[0][1] == 0


def test_bf16_keeps_master_weights_gradients_and_state_in_32_bits() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16"))
    step = list(hp.train(model, points(), tricks=tricks, optimizer=sgd, epochs=1, batch_size=8))[-1]
    held = [*model.parameters()] + [p.grad for p in model.parameters()]
    held += [state["momentum_buffer"] for state in step.run.optimizer.state.values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}
    assert step.loss.dtype is torch.float32


def test_bf16_computes_in_bf16_and_the_loss_in_32_bits() -> None:
    seen = []

    class Watch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            output = self.layer(inputs)
            seen.append((output.dtype, torch.is_grad_enabled()))
            return output

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert output.dtype is torch.float32
        return torch.nn.functional.cross_entropy(output, targets)

    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16"))
    result = hp.fit(
        Watch(), points(), points(), tricks=tricks, loss=loss, optimizer=sgd, epochs=1, batch_size=8, device="cpu"
    )
    assert [dtype for dtype, trains in seen if trains][-3:] == [torch.bfloat16] * 3
    assert seen[-1] == (torch.bfloat16, False)  # and the evaluation with it
    assert result.why["mixed_precision"].startswith("bf16")


Pair = namedtuple("Pair", "left right")


class Record(OrderedDict):
    """Like the outputs of large model libraries: a dict whose items are attributes too."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


def test_outputs_of_any_shape_are_brought_to_32_bits() -> None:
    half, double = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)
    full = Autocast(torch.bfloat16, "cpu").to_fp32
    assert full(half).dtype is torch.float32
    assert full(double) is double
    assert full(torch.ones(2, dtype=torch.float16)).dtype is torch.float32
    assert full("text") == "text"
    assert full(None) is None
    pair = full(Pair(half, [half, 3]))
    assert isinstance(pair, Pair)
    assert pair.left.dtype is pair.right[0].dtype is torch.float32
    record = Record(logits=half, extra=(half, double))
    done = full(record)
    assert isinstance(done, Record)
    assert done.logits is done["logits"]
    assert [t.dtype for t in (done.logits, *done["extra"])] == [torch.float32, torch.float32, torch.float64]
    assert record["logits"].dtype is torch.bfloat16
    assert Precision().to_fp32(half) is half


def test_the_old_name_of_to_fp32_warns() -> None:
    with pytest.warns(FutureWarning, match=r"now Precision\.to_fp32"):
        converted = hp.precision("bf16").full(torch.ones(2, dtype=torch.bfloat16))
    assert converted.dtype is torch.float32


def test_autocast_regions_nest_and_end() -> None:
    precision = hp.precision("bf16")
    with precision.autocast():
        with precision.autocast():
            pass
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_an_evaluation_in_the_midst_of_a_training_pass_loses_no_gradient() -> None:
    layer, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        hp.evaluate(layer, points())
        with evaluation(hp.precision("bf16")):
            assert not torch.is_autocast_cache_enabled()
            assert not torch.is_grad_enabled()
            assert not layer(x).requires_grad
        assert torch.is_autocast_cache_enabled()
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, x.sum(0).expand(3, 4), atol=0.05)


def test_an_evaluation_that_fails_leaves_the_cache_as_it_was() -> None:
    def fail() -> None:
        with evaluation(hp.precision("bf16")):
            raise KeyError

    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=enabled):
            with pytest.raises(KeyError):
                fail()
            assert torch.is_autocast_cache_enabled() is enabled
    assert torch.is_grad_enabled()


def own_loop(precision: Precision) -> Iterator[torch.Tensor]:
    torch.manual_seed(0)
    model, (x, y) = torch.nn.Linear(4, 3), points()
    optimizer = sgd(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        with precision.autocast():
            output = model(x)
        loss = torch.nn.functional.cross_entropy(precision.to_fp32(output), y)
        precision.backward(loss)
        assert precision.step(optimizer, clip_norm=0.5)
        yield loss.detach()


def test_in_a_loop_of_ones_own_fp32_is_plain_and_bf16_is_autocast() -> None:
    torch.manual_seed(0)
    model, (x, y) = torch.nn.Linear(4, 3), points()
    optimizer = sgd(model.parameters())
    plain = list(own_loop(hp.precision("fp32")))
    for loss in own_loop(hp.precision("bf16")):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        expected = torch.nn.functional.cross_entropy(output.float(), y)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert torch.equal(loss, expected.detach())
        assert float(loss) != float(plain.pop(0))


def test_fp16_on_a_cpu_is_refused_with_the_measured_figures() -> None:
    with pytest.raises(hp.InputError, match=r"'fp16' is refused on a CPU: .* GFLOP/s in fp16 and .* in fp32 .*use 'bf16'"):
        hp.precision("fp16", "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "auto"}, r"dtype='auto' is not known.*: expected one of bf16, fp16, fp32"),
        ({"dtype": "float16"}, "dtype='float16' is not known"),
        ({"device": "nowhere"}, "device='nowhere' is not available"),
        ({"scale": 0}, r"^scale=0 is out of range: expected a number in \(0, inf\)"),
        ({"growth_steps": 0}, r"^growth_steps=0 is out of range"),
        ({"floor": 0}, r"^floor=0 is out of range"),
        ({"scale": 2.0, "floor": 4.0}, r"^floor=4\.0 is out of range: expected a number in \(0, 2\]"),
    ],
)
def test_refusals_of_the_kernel(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        hp.precision(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_device_that_is_not_here_is_refused_in_one_line() -> None:
    with pytest.raises(hp.InputError, match=r"^device='cuda:1' is not available \(.*\): expected 'cpu'") as caught:
        find_device("cuda:1")
    assert "\n" not in str(caught.value)
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_master_weights_are_refused(dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3).to(dtype))
    with pytest.raises(hp.InputError, match=r"parameter '1\.weight' of type torch\..*float16.*model\.float\(\)"):
        check_master_weights(model)
    check_master_weights(model.double())


def test_a_worker_knows_its_place() -> None:
    assert this_worker() == Worker()


def test_a_device_that_holds_no_numbers_is_refused():
    with pytest.raises(hp.InputError, match=r"device='meta' is not available"):
        find_device("meta")
