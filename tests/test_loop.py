"""The training generator: its events, its clock, and micro-batches that equal one batch."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from tests.helpers import assert_close, net, points, sgd
from torch.utils.data import DataLoader, Dataset, TensorDataset

import heptane as hp
from heptane.assemble import assemble
from heptane.core.evaluation import Evaluation
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.core.losses import CrossEntropy
from heptane.data.batches import BatchTransform

SAMPLES, BATCH = 22, 8


def trained(model: torch.nn.Module, data: Any = None, **more: Any) -> dict[str, torch.Tensor]:
    settings = {"optimizer": sgd, "epochs": 3, "batch_size": BATCH, "seed": 4} | more
    for _ in hp.train(model, points() if data is None else data, **settings):
        pass
    return dict(model.state_dict())


def test_an_optimizer_with_a_zero_grad_of_its_own_is_asked_and_others_start_without_gradients() -> None:
    asked = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            asked.append(set_to_none)
            super().zero_grad(set_to_none)

    own = trained(net(), optimizer=lambda params: Own(params, lr=0.1, momentum=0.9))
    assert asked == [True] * 9
    left = net()
    for parameter in left.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert_close(trained(left), own, atol=0)


def test_an_event_after_each_step_counts_from_one_and_says_where_an_epoch_ends() -> None:
    events = list(hp.train(net(), points(), optimizer=sgd, epochs=2.4, batch_size=BATCH))
    assert [(e.step, e.epoch, e.ends_epoch) for e in events] == [
        (1, 1, False),
        (2, 1, False),
        (3, 1, True),
        (4, 2, False),
        (5, 2, False),
        (6, 2, True),
        (7, 3, False),
    ]
    assert all(e.learning_rate == 0.1 and e.loss.ndim == 0 and not e.loss.requires_grad for e in events)


@pytest.mark.parametrize(("epochs", "num_steps"), [(0.01, 1), (0.5, 2), (1, 3), (10 / 3, 10)])
def test_a_fraction_of_an_epoch_is_a_number_of_steps_at_least_one(epochs: float, num_steps: int) -> None:
    events = list(hp.train(net(), points(), optimizer=sgd, epochs=epochs, batch_size=BATCH))
    assert len(events) == num_steps == events[-1].run.total_steps


def test_nothing_runs_before_the_first_next_and_stopping_is_a_break() -> None:
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = hp.train(model, points(), optimizer=sgd, epochs=10**6, batch_size=BATCH)
    assert_close(dict(model.state_dict()), before, atol=0)
    for event in generator:
        if event.step == 4:
            break
    generator.close()
    other = net()
    for _ in itertools.islice(hp.train(other, points(), optimizer=sgd, epochs=10**6, batch_size=BATCH), 4):
        pass
    assert_close(dict(model.state_dict()), dict(other.state_dict()), atol=0)


def test_the_training_clock_stands_while_the_caller_has_control() -> None:
    run = assemble(net(), points(), Plan.of(optimizer=sgd, epochs=1, batch_size=BATCH))
    assembled = run.clock.train_seconds
    assert assembled > 0
    for _ in steps(run):
        time.sleep(0.05)
        assert run.clock.train_seconds == run.clock.train_seconds
    spent = run.clock.train_seconds - assembled
    assert 0 < spent <= run.clock.read()["wall"] - 0.15
    time.sleep(0.01)
    assert run.clock.train_seconds == spent + assembled


def test_a_run_goes_on_from_any_step_as_if_it_had_never_stopped() -> None:
    whole, parts = net(torch.nn.Dropout(0.3)), net(torch.nn.Dropout(0.3))
    tricks = hp.Tricks(
        cyclical=hp.Cyclical(), mixup=hp.Mixup(alpha=1.0), transfer=hp.Transfer(freeze=1, unfreeze_every_epochs=1)
    )
    plan = Plan(optimizer=sgd, epochs=4, batch_size=BATCH)
    for _ in steps(assemble(whole, points(), plan, tricks)):
        pass
    run = assemble(parts, points(), plan, tricks)
    for at in (0, 1, 2, 3, 7):
        stop = {0: 1, 1: 2, 2: 3, 3: 7, 7: 12}[at]
        torch.rand(at + 1)
        seen = [event.step for event in itertools.islice(steps(run, at), stop - at)]
        assert seen == list(range(at + 1, stop + 1))
    assert_close(dict(parts.state_dict()), dict(whole.state_dict()), atol=0)
    assert list(steps(run, 12)) == []


@pytest.mark.parametrize("accumulate", [2, 3, 4, 8, 100])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_micro_batches_are_one_batch_also_the_short_last_one(accumulate: int, clip_norm: float | None) -> None:
    ours = trained(net(), accumulate=accumulate, clip_norm=clip_norm)
    assert_close(ours, trained(net(), clip_norm=clip_norm))


def test_batches_of_a_loader_are_joined_and_the_last_few_are_not_dropped() -> None:
    x, y = points()
    joined = trained(net(), DataLoader(TensorDataset(x, y), 3), batch_size=None, accumulate=3)  # 9, 9 and 4
    plain = trained(net(), DataLoader(TensorDataset(x, y), 9), batch_size=None)
    assert_close(joined, plain)


def test_a_batch_that_is_all_ignored_moves_nothing_and_leaves_no_nan() -> None:
    x, y = points()
    for accumulate in (1, 3):
        model = net()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        assert_close(trained(model, (x, torch.full_like(y, -100)), accumulate=accumulate), before, atol=0)


def test_dropout_is_drawn_from_seed_and_step_alone() -> None:
    first = trained(net(torch.nn.Dropout(0.5)), seed=1)
    torch.rand(100)
    assert_close(trained(net(torch.nn.Dropout(0.5)), seed=1), first, atol=0)
    other = trained(net(torch.nn.Dropout(0.5)), DataLoader(TensorDataset(*points()), BATCH), batch_size=None, seed=2)
    same_order = trained(net(torch.nn.Dropout(0.5)), DataLoader(TensorDataset(*points()), BATCH), batch_size=None, seed=1)
    assert not torch.equal(other["0.weight"], same_order["0.weight"])


def test_frozen_layers_stay_in_eval_mode_whatever_the_caller_does_between_steps() -> None:
    model = net(torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5))
    hp.freeze(model, 1)
    before = {key: value.clone() for key, value in model[1].state_dict().items()}
    modes = []
    model.register_forward_hook(lambda module, args, output: modes.append([m.training for m in module]))
    for event in hp.train(model, points(), optimizer=sgd, epochs=2, batch_size=BATCH):
        model.eval() if event.step % 2 else model.train()
    assert modes[-6:] == [[False, False, True, True, True]] * 6  # what comes before them are trials
    assert_close(dict(model[1].state_dict()), before, atol=0)


def test_a_learning_rate_that_is_a_tensor_stays_one() -> None:
    def tensor_rate(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=torch.tensor(0.1), momentum=0.9, foreach=False)

    tricks = hp.Tricks(cyclical=hp.Cyclical(), transfer=hp.Transfer(rate_factor=2, swap_head=False))
    events = list(hp.train(net(), points(), optimizer=tensor_rate, epochs=2, batch_size=BATCH, tricks=tricks))
    groups = events[-1].run.optimizer.param_groups
    assert all(isinstance(group["lr"], torch.Tensor) for group in groups)
    assert events[-1].run.base_rates == pytest.approx([0.05, 0.1])


class Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        x, y = points()
        return {"a": x[index, :3], "b": x[index, 3:]}, y[index]


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.inner(torch.cat([inputs["a"], inputs["b"]], 1))


def test_inputs_may_be_a_dict_and_data_a_dataset() -> None:
    x, y = points()
    pair = trained(Two(), ({"a": x[:, :3], "b": x[:, 3:]}, y), accumulate=2)
    dataset = trained(Two(), Numbers(), accumulate=2)
    assert_close(pair, dataset, atol=0)
    assert_close({key.removeprefix("inner."): value for key, value in pair.items()}, trained(net(), accumulate=2), atol=0)


def test_an_evaluation_puts_back_each_modules_own_mode_even_when_it_fails() -> None:
    model = net(torch.nn.BatchNorm1d(5))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    hp.evaluate(model, points())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError):
        Evaluation(criterion=CrossEntropy(), place=BatchTransform(torch.device("cpu"))).of(
            model, (torch.zeros(4, 7).double(), torch.zeros(4, dtype=torch.long))
        )
    assert [module.training for module in model.modules()] == modes


class Worst:
    """A metric with the interface of torchmetrics."""

    def reset(self) -> None:
        self.value = torch.tensor(-1.0)

    def to(self, device: torch.device) -> Worst:
        return self

    def update(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        self.value = torch.maximum(
            self.value, torch.nn.functional.cross_entropy(output, targets, reduction="none").max().float()
        )

    def compute(self) -> torch.Tensor:
        return self.value


def test_an_evaluation_is_the_mean_over_samples_not_over_batches_with_metrics_beside_it() -> None:
    x, y = points()
    model = net().eval().requires_grad_(False)
    each = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    place = BatchTransform(torch.device("cpu"))
    how = Evaluation(criterion=CrossEntropy(), place=place, metrics={"worst": Worst()}, batch_size=5)
    found = how.of(model, (x, y))
    assert found["loss"] == pytest.approx(float(each.mean()), abs=1e-12)
    assert found["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()), abs=1e-12)
    assert found["worst"] == pytest.approx(float(each.max()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of PyTorch's own making
def test_a_compiled_model_trains_alike_and_compiling_is_on_the_clock() -> None:
    model = net()
    run = assemble(model, points(), Plan.of(optimizer=sgd, epochs=3, batch_size=BATCH, seed=4, compile=True))
    first = None
    for _ in steps(run):
        first = first or run.clock.train_seconds
    assert first is not None
    assert first > 0.5 * run.clock.train_seconds
    assert_close(dict(model.state_dict()), trained(net()), atol=1e-10)


def test_a_printed_step_is_one_short_line() -> None:
    for step in hp.train(net(), points(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), steps=1, batch_size=BATCH):
        text = repr(step)
        assert text.startswith("Step(step=1, epoch=1, ends_epoch=False, loss=tensor(")
        assert "learning_rate=0.1" in text
        assert len(text) < 200
        assert step.run.model is not None
