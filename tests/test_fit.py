"""``hp.fit``, ``hp.train`` and ``hp.evaluate``: the everyday calls."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.facts import fit_with_facts
from tests.helpers import (
    assert_equal_weights,
    by_hand,
    fit,
    make_images,
    mlp,
    on_output,
    sgd,
    shuffled,
    steps_by_hand,
    weights,
)
from torch.utils.data import DataLoader, Dataset, TensorDataset

import heptane as hp
from heptane.base.randomness import epoch_seed

functional = torch.nn.functional
Factory = Callable[[Any], torch.optim.Optimizer]


class Map(Dataset[Any]):
    """A map-style dataset that counts how often each sample was read."""

    def __init__(self, data: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.data, self.reads = data, [0] * len(data[0])

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.reads[index] += 1
        return self.data[0][index], self.data[1][index]


IMAGES = make_images(50)


def plain_loop(model: torch.nn.Module, epochs: int = 2, data: Any = IMAGES, **more: Any) -> torch.nn.Module:
    """``model`` after a plain loop over the batches of :func:`fit`."""
    return by_hand(model, shuffled(data, 16, epochs), **more)


def in_parts(num_parts: int) -> Callable[..., torch.Tensor]:
    """The sum of the losses of so many micro-batches, over the number of samples."""

    def loss_of(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        parts = zip(inputs.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True)
        losses = [functional.cross_entropy(model(x), y, reduction="sum") for x, y in parts if len(x)]
        return torch.stack(losses).sum() / len(inputs)

    return loss_of


def assert_close_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    torch.testing.assert_close(weights(first), weights(second), rtol=1e-11, atol=1e-12)


# The kinds of data


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: TensorDataset(*pair), Map])
def test_the_same_samples_in_any_form_train_the_same_model(kind: Callable[[Any], Any]) -> None:
    result = fit(mlp(), kind(IMAGES))
    assert_equal_weights(result.model, plain_loop(mlp()))
    assert result.steps == {"planned": 8, "applied": 8, "skipped": 0, "nonfinite": 0, "left_out": 0}


def test_a_loader_that_shuffles_is_the_plain_loop_over_it() -> None:
    loader = DataLoader(TensorDataset(*IMAGES), 16, shuffle=True)

    def epochs() -> Iterator[Any]:
        for epoch in range(2):
            torch.manual_seed(epoch_seed(7, epoch))
            yield list(loader)

    result = fit(mlp(), loader, batch_size=None, seed=7)
    assert_equal_weights(result.model, by_hand(mlp(), (batch for batches in epochs() for batch in batches)))
    first, second = (torch.cat([targets for _, targets in batches]) for batches in epochs())
    assert not torch.equal(first, second), "the epochs of a shuffling loader are in different orders"


def test_a_loader_with_a_generator_of_its_own_keeps_its_order() -> None:
    def loader() -> Any:
        return DataLoader(TensorDataset(*IMAGES), 16, shuffle=True, generator=torch.Generator().manual_seed(3))

    same = loader()
    result = fit(mlp(), loader(), batch_size=None)
    assert_equal_weights(result.model, by_hand(mlp(), (batch for _ in range(2) for batch in same)))


def test_a_loader_that_drops_its_last_batch_has_so_many_steps() -> None:
    loader = DataLoader(TensorDataset(*IMAGES), 16, drop_last=True)
    assert fit(mlp(), loader, batch_size=None).steps["planned"] == 6


@pytest.mark.parametrize("form", [tuple, lambda d: TensorDataset(*d), Map, lambda d: DataLoader(Map(d), 7, shuffle=True)])
def test_validation_data_of_any_form_gives_the_same_figures(form: Callable[[Any], Any]) -> None:
    valid = make_images(30, seed=1)
    result = fit(mlp(), IMAGES, form(valid))
    model = plain_loop(mlp()).eval()
    with torch.no_grad():
        output = model(valid[0])
    assert result.metrics["valid_loss"] == pytest.approx(functional.cross_entropy(output, valid[1]).item(), abs=1e-5)
    assert result.metrics["valid_accuracy"] == (output.argmax(1) == valid[1]).double().mean().item()


def test_inputs_may_be_a_structure() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            out: torch.Tensor = self.inner(inputs["image"] * inputs["gain"][:, None, None, None])
            return out

    inputs = {"image": IMAGES[0], "gain": torch.ones(50)}
    result = fit(Two(), (inputs, IMAGES[1]), (inputs, IMAGES[1]))
    assert_equal_weights(result.model.inner, plain_loop(mlp()))


# The kinds of targets and losses

SOFT = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
LABELS = (torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) > 0.7).float()
REAL = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))


def huber(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.huber_loss(output, targets, delta=0.3)


@pytest.mark.parametrize(
    ("targets", "loss", "plain", "accuracy"),
    [
        (IMAGES[1], None, functional.cross_entropy, True),
        (IMAGES[1], "cross_entropy", functional.cross_entropy, True),
        (IMAGES[1], torch.nn.CrossEntropyLoss(), functional.cross_entropy, True),
        (SOFT, None, functional.cross_entropy, True),
        (LABELS, None, functional.binary_cross_entropy_with_logits, True),
        (LABELS, torch.nn.BCEWithLogitsLoss(), functional.binary_cross_entropy_with_logits, True),
        (REAL, None, functional.mse_loss, False),
        (REAL, "l1", functional.l1_loss, False),
        (REAL, "smooth_l1", functional.smooth_l1_loss, False),
        (REAL, huber, huber, False),
    ],
)
def test_each_loss_trains_as_the_plain_one(targets: torch.Tensor, loss: Any, plain: Any, accuracy: bool) -> None:
    data = IMAGES[0], targets
    result = fit(mlp(), data, data, loss=loss, weights="last")
    assert_equal_weights(result.model, plain_loop(mlp(), data=data, loss_of=on_output(plain)))
    model = result.model.eval()
    with torch.no_grad():
        assert result.metrics["valid_loss"] == pytest.approx(plain(model(data[0]), targets).item(), rel=1e-5)
    assert ("valid_accuracy" in result.metrics) is accuracy
    assert ("train_accuracy" in result.history[0]) is accuracy


def test_accuracy_of_several_labels_counts_each() -> None:
    data = IMAGES[0], LABELS
    result = fit(mlp(), data, data)
    with torch.no_grad():
        wanted = ((result.model.eval()(data[0]) > 0) == (LABELS > 0.5)).double().mean().item()
    assert result.metrics["valid_accuracy"] == pytest.approx(wanted, abs=1e-9)


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_samples() -> None:
    model = mlp()
    losses = steps_by_hand(model, shuffled(IMAGES, 16), sgd(model.parameters()))
    total = sum(loss.item() * size for loss, size in zip(losses, (16, 16, 16, 2), strict=True))
    assert fit(mlp(), IMAGES, epochs=1).history[0]["train_loss"] == pytest.approx(total / 50, rel=1e-6)


# Accumulation and clipping


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulation_weighs_each_sample_once_also_in_uneven_parts_and_a_short_last_batch(parts: int) -> None:
    data = IMAGES[0].double(), IMAGES[1]
    result = fit(mlp().double(), data, accumulate=parts)
    assert_close_weights(result.model, plain_loop(mlp().double(), data=data, loss_of=in_parts(parts)))
    assert_close_weights(result.model, plain_loop(mlp().double(), data=data))
    assert result.steps["planned"] == 8


def test_a_window_of_a_loaders_batches_is_one_step() -> None:
    data = IMAGES[0].double(), IMAGES[1]
    loader = DataLoader(TensorDataset(*data), 8)
    windows = list(zip(data[0].split(24), data[1].split(24), strict=True)) * 2
    result = fit(mlp().double(), loader, batch_size=None, accumulate=3)
    assert result.steps["planned"] == 6
    assert_close_weights(result.model, by_hand(mlp().double(), windows))


def test_clipping_is_once_per_step_over_all_gradients() -> None:
    result = fit(mlp(), IMAGES, clip_norm=0.05)
    assert_equal_weights(result.model, plain_loop(mlp(), clip_norm=0.05))
    data = IMAGES[0].double(), IMAGES[1]
    both = fit(mlp().double(), data, clip_norm=0.05, accumulate=3)
    assert_close_weights(both.model, plain_loop(mlp().double(), data=data, loss_of=in_parts(3), clip_norm=0.05))


# Evaluation, metrics, target


class Wrong:
    """The share of wrong predictions, with the interface of a torchmetrics metric; it counts how often it is computed."""

    def __init__(self) -> None:
        self.wrong, self.seen, self.computed = 0, 0, 0

    def to(self, device: torch.device) -> Wrong:
        return self

    def reset(self) -> None:
        self.wrong = self.seen = 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.wrong, self.seen = self.wrong + int((outputs.argmax(1) != targets).sum()), self.seen + len(targets)

    def compute(self) -> torch.Tensor:
        self.computed += 1
        return torch.tensor(self.wrong / self.seen)


def test_metrics_are_computed_over_the_whole_set_and_start_afresh_each_time() -> None:
    metric, valid = Wrong(), make_images(30, seed=1)
    result = fit(mlp(), IMAGES, DataLoader(Map(valid), 7), test=valid, metrics={"wrong": metric})
    assert metric.computed == 4  # once before training, on a few samples
    assert metric.seen == 30
    for record in [*result.history, {"valid_" + k[5:]: v for k, v in result.metrics.items() if k.startswith("test_")}]:
        assert record["valid_wrong"] == pytest.approx(1 - record["valid_accuracy"], abs=1e-6)
    found = hp.evaluate(result.model, valid, metrics={"wrong": Wrong()}, batch_size=7)
    assert found["wrong"] == result.metrics["valid_wrong"] == result.metrics["test_wrong"]


def test_a_target_on_a_metric_of_the_users_is_reached() -> None:
    result = fit(mlp(), IMAGES, IMAGES, metrics={"error": Wrong()}, target=("valid_error", 0.2), epochs=20)
    *before, last = [record["valid_error"] for record in result.history]
    assert last <= 0.2
    assert all(error > 0.2 for error in before)


def test_a_torchmetrics_metric_gives_its_own_figure() -> None:
    try:
        from torchmetrics.classification import MulticlassF1Score
    except Exception as error:  # it imports torchvision, whose build may not fit PyTorch's
        pytest.skip(f"torchmetrics cannot be imported: {error}")
    valid, fresh = make_images(30, seed=1), MulticlassF1Score(4)
    result = fit(mlp(), IMAGES, valid, metrics={"f1": MulticlassF1Score(4)})
    with torch.no_grad():
        fresh.update(result.model.eval()(valid[0]), valid[1])
    assert result.metrics["valid_f1"] == pytest.approx(fresh.compute().item(), abs=1e-7)


def test_training_stops_where_the_target_is_reached_on_the_training_clock() -> None:
    result = fit(mlp(), make_images(96), make_images(64, seed=1), epochs=50, target=0.9)
    *before, last = [record["valid_accuracy"] for record in result.history]
    assert last >= 0.9
    assert all(accuracy < 0.9 for accuracy in before)
    assert len(result.history) < 50
    assert result.reached == result.history[-1]["train_seconds"]
    assert 0 < result.reached <= result.seconds["train"]
    assert result.steps["applied"] == 6 * len(result.history) < result.steps["planned"] == 300
    assert result.target == ("valid_accuracy", 0.9)


def test_a_target_on_a_loss_is_reached_from_above() -> None:
    result = fit(mlp(), make_images(96), make_images(64, seed=1), epochs=50, target=("valid_loss", 0.3))
    *before, last = [record["valid_loss"] for record in result.history]
    assert last <= 0.3
    assert all(loss > 0.3 for loss in before)


def test_a_target_that_is_not_reached_is_none() -> None:
    result = fit(mlp(), IMAGES, IMAGES, optimizer=lambda p: torch.optim.SGD(p, lr=1e-9), target=1.0)
    assert result.reached is None
    assert result.steps["applied"] == result.steps["planned"]


def test_without_validation_data_there_are_no_validation_figures() -> None:
    result = fit(mlp(), IMAGES)
    assert result.metrics == {}
    assert not any(key.startswith("valid") for record in result.history for key in record)
    assert result.reached is None


def test_the_test_set_is_read_once_at_the_end() -> None:
    test, valid = Map(make_images(20, seed=2)), Map(make_images(20, seed=1))
    result = fit(mlp(), IMAGES, valid, test=test, epochs=3)
    assert set(test.reads) <= {1, 2}, "at the end, and some before training, to try the model on them"
    assert set(valid.reads) <= {3, 4}, "once per epoch, and some before training, to try the model on them"
    with torch.no_grad():
        wanted = functional.cross_entropy(result.model.eval()(test.data[0]), test.data[1]).item()
    assert result.metrics["test_loss"] == pytest.approx(wanted, abs=1e-6)


def test_evaluation_may_be_more_or_less_often_than_an_epoch() -> None:
    def when(every: float, epochs: float = 2) -> list[tuple[float, int]]:
        history = fit(mlp(), make_images(64), IMAGES, epochs=epochs, evaluate_every_epochs=every).history
        return [(record["epoch"], record["step"]) for record in history]

    assert when(1) == [(1, 4), (2, 8)]
    assert when(0.5) == [(0.5, 2), (1, 4), (1.5, 6), (2, 8)]
    assert when(2, epochs=3) == [(2, 8), (3, 12)]
    assert when(1e-6, epochs=0.5) == [(0.25, 1), (0.5, 2)]


def test_evaluating_leaves_no_mark_on_training() -> None:
    def net() -> torch.nn.Module:
        torch.manual_seed(0)
        parts = (torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 4))
        return torch.nn.Sequential(*parts)

    plain = fit(net(), IMAGES)
    watched = fit(net(), IMAGES, DataLoader(Map(IMAGES), 7, shuffle=True), evaluate_every_epochs=0.25)
    assert_equal_weights(plain.model, watched.model)


# Length, seeds, history


def test_a_fraction_of_an_epoch_is_so_many_steps() -> None:
    assert fit(mlp(), IMAGES, epochs=0.5).steps["applied"] == 2
    assert fit(mlp(), IMAGES, epochs=1e-9).steps["applied"] == 1
    assert fit(mlp(), IMAGES, epochs=2.5).history[-1]["epoch"] == 2.5


def test_one_sample_and_one_step() -> None:
    result = fit(mlp(), (IMAGES[0][:1], IMAGES[1][:1]), (IMAGES[0][:1], IMAGES[1][:1]), epochs=1, batch_size=1)
    assert result.steps["applied"] == 1
    assert math.isfinite(result.metrics["valid_loss"])


def test_a_seed_repeats_the_run_and_another_does_not() -> None:
    model = mlp()
    model.insert(1, torch.nn.Dropout(0.3))
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def run(seed: int) -> torch.Tensor:
        model.load_state_dict(start)
        torch.manual_seed(int(time.monotonic_ns() % 1000))
        return weights(fit(model, IMAGES, seed=seed).model)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_the_model_given_is_the_one_trained_and_returned() -> None:
    model = mlp()
    assert fit(model, IMAGES).model is model


def test_the_history_has_a_record_per_epoch_with_rates_and_clocks_that_only_grow() -> None:
    result = fit(mlp(), IMAGES, IMAGES, epochs=3)
    assert [(r["epoch"], r["step"], r["learning_rate"]) for r in result.history] == [
        (1, 4, 0.1),
        (2, 8, 0.1),
        (3, 12, 0.1),
    ]
    clocks = [record["train_seconds"] for record in result.history]
    assert clocks == sorted(clocks)
    assert set(result.seconds) == {"wall", "train", "cpu", "evaluate"}
    assert clocks[-1] <= result.seconds["train"] <= result.seconds["wall"]


# The training clock


def test_the_training_clock_stands_still_while_the_caller_has_control() -> None:
    run, spent = None, 0.0
    for event in hp.train(mlp(), IMAGES, optimizer=sgd, epochs=2, batch_size=16, device="cpu"):
        run = event.run
        before = run.clock.train_seconds
        time.sleep(0.02)
        assert run.clock.train_seconds == before
        spent += 0.02
    assert run is not None
    seconds = run.clock.read()
    assert seconds["wall"] - seconds["train"] >= spent


def test_slow_evaluation_is_on_the_wall_and_not_on_the_training_clock(tmp_path: Path) -> None:
    class Slow(Map):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            time.sleep(0.01)
            return super().__getitem__(index)

    fit(mlp(), IMAGES)
    result = fit(mlp(), IMAGES, Slow(make_images(20)), run_dir=tmp_path)
    assert result.seconds["evaluate"] >= 0.4
    assert result.seconds["wall"] - result.seconds["train"] >= 0.4


def test_slow_data_is_on_the_training_clock() -> None:
    class Slow(Map):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            time.sleep(0.002)
            return super().__getitem__(index)

    assert fit(mlp(), Slow(IMAGES), epochs=1).seconds["train"] >= 0.1


# hp.train and hp.evaluate


def test_the_generator_trains_as_fit_does_and_can_be_left() -> None:
    model = mlp()
    events = list(hp.train(model, IMAGES, optimizer=sgd, epochs=2, batch_size=16, device="cpu"))
    assert_equal_weights(model, plain_loop(mlp()))
    assert [(e.step, e.epoch, e.ends_epoch) for e in events] == [
        *((1, 1, False), (2, 1, False), (3, 1, False), (4, 1, True)),
        *((5, 2, False), (6, 2, False), (7, 2, False), (8, 2, True)),
    ]
    assert all(not event.loss.requires_grad for event in events)
    model = mlp()
    for event in hp.train(model, IMAGES, optimizer=sgd, epochs=9, batch_size=16, device="cpu"):
        if event.step == 4:
            break
    assert_equal_weights(model, plain_loop(mlp(), epochs=1))


def test_the_caller_may_evaluate_in_the_loop_without_a_mark() -> None:
    model = mlp()
    for _ in hp.train(model, IMAGES, optimizer=sgd, epochs=2, batch_size=16, device="cpu"):
        assert hp.evaluate(model, IMAGES)["loss"] > 0
        model.eval()
    assert_equal_weights(model, plain_loop(mlp()))


def test_evaluate_weighs_samples_not_batches_and_puts_the_modes_back() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), *mlp(), torch.nn.Dropout(0.9))
    model[0].eval()
    modes, before = [m.training for m in model.modules()], weights(model)
    found = [hp.evaluate(model, IMAGES, batch_size=size) for size in (7, 50, 1)]
    found += [hp.evaluate(model, DataLoader(Map(IMAGES), 16)), hp.evaluate(model, Map(IMAGES), batch_size=9)]
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(before, weights(model))
    with torch.no_grad():
        output = model.eval()(IMAGES[0])
    for one in found:
        assert one["loss"] == pytest.approx(functional.cross_entropy(output, IMAGES[1]).item(), abs=1e-6)
        assert one["accuracy"] == (output.argmax(1) == IMAGES[1]).double().mean().item()


def test_evaluate_refuses_nothing_and_labels_out_of_range() -> None:
    with pytest.raises(hp.InputError, match="the data to evaluate on is empty: 0 samples"):
        hp.evaluate(mlp(), (IMAGES[0][:0], IMAGES[1][:0]))
    with pytest.raises(hp.InputError, match="label 4 of sample 2 is out of range: the model has 4 outputs"):
        hp.evaluate(mlp(), (IMAGES[0][:3], torch.tensor([0, 1, 4])))


# The files of a run


def full_run(folder: Path, **settings: Any) -> hp.Result:
    valid = make_images(30, seed=1)
    tricks = hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=hp.LabelSmoothing(eps=0.1))
    settings = {"test": valid, "run_dir": folder, "target": 0.999, "tricks": tricks, **settings}
    common = {"optimizer": sgd, "epochs": 2, "batch_size": 16, "device": "cpu", "about": {}}
    return fit_with_facts(mlp(), IMAGES, valid, **{**common, **settings})


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    result = full_run(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"result.json", "events.jsonl", "model.safetensors", "checkpoints", "report.html"}
    stored = load_file(tmp_path / "run" / "model.safetensors")
    model = mlp(seed=9)
    model.load_state_dict(stored)
    assert_equal_weights(model, result.model)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    best = max(result.history, key=lambda record: record["valid_accuracy"])["step"]
    assert kept == sorted({f"step-{best:09d}", "step-000000004", "step-000000008"})


def test_the_result_file_holds_what_the_design_promises(tmp_path: Path) -> None:
    about = {"command": "me", "data": {"name": "patterns"}, "model": {"name": "mlp"}, "settings": {"lr": 0.05}}
    about |= {"reasons": {"mixup": "too short"}, "notes": ["a note"]}
    result = full_run(tmp_path, about=about)
    found = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    wanted = {"schema", "heptane", "command", "started", "environment", "data", "model", "settings", "tricks", "steps"}
    wanted |= {"seconds", "metrics", "target", "history", "schedule", "notes", "files"}
    assert wanted <= set(found)
    assert (found["schema"], found["command"]) == (1, "me")
    assert found["data"] == {"num_train": 50, "name": "patterns"}
    model = {"name": "mlp", "num_parameters": 64 * 16 + 16 + 16 * 4 + 4, "input_shape": [1, 8, 8], "num_outputs": 4}
    assert model.items() <= found["model"].items()
    assert {"epochs": 2.0, "batch_size": 16, "optimizer": "SGD", "seed": 0, "lr": 0.05}.items() <= found["settings"].items()
    assert found["seconds"] == result.seconds
    assert found["metrics"] == result.metrics
    assert set(found["metrics"]) == {"valid_loss", "valid_accuracy", "test_loss", "test_accuracy"}
    assert found["target"] == {"metric": "valid_accuracy", "value": 0.999, "reached_seconds": result.reached}
    assert found["history"] == result.history
    assert found["steps"] == result.steps
    assert [trick["name"] for trick in found["tricks"]] == list(hp.Tricks.__dataclass_fields__)
    on = {trick["name"]: trick for trick in found["tricks"] if trick["on"]}
    assert set(on) == {"cyclical", "label_smoothing"}
    assert on["label_smoothing"]["settings"]["eps"] == 0.1
    assert next(trick["why"] for trick in found["tricks"] if trick["name"] == "mixup") == "too short"
    assert "a note" in found["notes"]
    assert found["schedule"]["step"] == list(range(8))
    assert max(found["schedule"]["learning_rate"]) <= 0.1 + 1e-9


def test_the_events_are_an_epoch_each_and_the_end(tmp_path: Path) -> None:
    result = full_run(tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert notes == result.notes
    events = [event for event in events if event["event"] != "note"]
    assert [event["event"] for event in events] == ["epoch"] * len(result.history) + ["end"]
    for event, record in zip(events, result.history, strict=False):
        assert event.items() >= record.items()


def test_the_report_has_the_headline(tmp_path: Path) -> None:
    full_run(tmp_path, about={"model": {"name": "small <net>"}})
    page = (tmp_path / "report.html").read_text()
    assert "small &lt;net&gt; reached" in page


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_holds_a_run_is_refused_and_kept(tmp_path: Path) -> None:
    full_run(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(hp.InputError, match="already holds a run"):
        full_run(tmp_path)
    assert snapshot(tmp_path) == before


def test_force_replaces_the_run_and_loses_nothing_of_the_users(tmp_path: Path) -> None:
    full_run(tmp_path, epochs=4)
    for name in ("notes.txt", "checkpoints/best.pt", "data.csv"):
        (tmp_path / name).write_text("mine")
    full_run(tmp_path, force=True, epochs=1)
    after = snapshot(tmp_path)
    assert all(after[name] == b"mine" for name in ("notes.txt", "checkpoints/best.pt", "data.csv"))
    assert len(json.loads(after["result.json"])["history"]) == 1
    assert {name.split("/")[1] for name in after if name.startswith("checkpoints/step")} == {"step-000000004"}
    events = [json.loads(line)["event"] for line in after["events.jsonl"].splitlines()]
    assert [event for event in events if event != "note"] == ["epoch", "end"]


def test_input_that_is_refused_costs_no_older_run_even_with_force(tmp_path: Path) -> None:
    full_run(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(hp.InputError):
        full_run(tmp_path, force=True, batch_size=10_000)
    assert snapshot(tmp_path) == before


# What is shown


def test_piped_progress_is_a_plain_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    fit(mlp(), IMAGES, IMAGES, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert all(word in lines[0] for word in ("training loss", "validation accuracy", "learning rate 0.1"))
    assert "\x1b" not in err


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("heptane.session.listeners.SHOW_SECONDS", 0.0)
    fit(mlp(), IMAGES, IMAGES, progress=True)
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    assert "images/s" in shown
    assert "100%" in shown
    assert "epoch 2: training loss" in shown


def test_without_progress_nothing_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fit(mlp(), IMAGES, IMAGES, run_dir=tmp_path)
    assert capsys.readouterr() == ("", "")


def test_showing_progress_does_not_change_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptane.session.listeners.SHOW_SECONDS", 0.0)
    shown, silent = fit(mlp(), IMAGES, progress=True), fit(mlp(), IMAGES)
    assert_equal_weights(shown.model, silent.model)
    for a, b in zip(shown.history, silent.history, strict=True):
        assert a["train_loss"] == b["train_loss"]
        assert a["train_accuracy"] == b["train_accuracy"]


# What is refused

X, Y = IMAGES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lambda x: x}, r"model of type function: expected a torch.nn.Module"),
        ({"train": (X, Y[:-1])}, r"50 inputs and 49 targets"),
        ({"train": (X[:0], Y[:0])}, r"empty: 0 samples"),
        ({"train": (X, Y, Y)}, r"data of 3 items: expected a pair \(inputs, targets\)"),
        ({"train": "fashion-mnist"}, r"data of type str: expected a pair of tensors.* a map-style Dataset"),
        ({"train": (X, Y + 1)}, r"label 4 of sample \d+ is out of range: the model has 4 outputs, so labels are 0 to 3"),
        ({"train": (X, Y - 1)}, r"label -1 of sample \d+ is out of range"),
        ({"train": (torch.where(X[7, 0, 0, 0] == X, math.nan, X), Y)}, r"NaN or infinity, first in sample 7"),
        ({"train": (X, torch.randn(50, 3))}, r"outputs of shape \(4,\) and targets of shape \(3,\) per sample"),
        ({"train": DataLoader(TensorDataset(X[:3], Y[:3]), 4, drop_last=True), "batch_size": None}, r"DataLoader is empty"),
        ({"batch_size": None}, r"batch_size=None"),
        ({"batch_size": 0}, r"batch_size=0 is out of range: expected a whole number in \[1, inf\)"),
        ({"batch_size": 2.5}, r"batch_size=2.5: expected a whole number"),
        ({"batch_size": 51}, r"batch_size=51 is larger than the data: expected at most its 50"),
        ({"epochs": 0}, r"epochs=0 is out of range"),
        ({"epochs": -1}, r"epochs=-1 is out of range"),
        ({"epochs": math.inf}, r"epochs=inf: expected a number"),
        ({"epochs": "3"}, r"epochs='3': expected a number"),
        ({"seed": -1}, r"seed=-1 is out of range: expected a whole number in \[0, 2147483648\]"),
        ({"seed": 0.5}, r"seed=0.5: expected a whole number"),
        ({"accumulate": 0}, r"accumulate=0 is out of range"),
        ({"clip_norm": 0}, r"clip_norm=0 is out of range: expected a number in \(0, inf\)"),
        ({"clip_norm": -1.0}, r"clip_norm=-1.0 is out of range"),
        ({"evaluate_every_epochs": 0}, r"evaluate_every_epochs=0 is out of range"),
        ({"optimizer": torch.optim.SGD(mlp().parameters(), lr=0.1)}, r"optimizer=SGD: expected a factory"),
        ({"optimizer": "sdg"}, r"optimizer='sdg' is not known \(did you mean sgd\?\)"),
        ({"optimizer": 3}, r"optimizer=int: expected a factory"),
        ({"lr": 0.1}, r"lr=0.1 with an optimizer factory: set the learning rate in the factory"),
        ({"steps": 3}, r"epochs=2 and steps=3: expected one of the two"),
        ({"epochs": None}, r"epochs=None and steps=None: expected one of the two"),
        ({"steps": 0, "epochs": None}, r"steps=0 is out of range"),
        ({"augment": 3}, r"augment=3: expected hp.CropFlip\(\) or a function"),
        ({"optimizer": lambda params: None}, r"the optimizer factory returned NoneType"),
        ({"optimizer": lambda params: torch.optim.LBFGS(params)}, r"LBFGS"),
        ({"loss": "crossentropy"}, r"loss='crossentropy' is not known \(did you mean cross_entropy\?\)"),
        ({"loss": 3}, r"loss=3: expected None, one of"),
        ({"loss": torch.nn.CrossEntropyLoss(reduction="sum")}, r"reduction='mean'"),
        ({"valid": (X, Y), "target": 1.5}, r"target=1.5 is out of range: expected a number in \[0, 1\]"),
        ({"valid": (X, Y), "target": "high"}, r"target='high'"),
        ({"valid": (X, Y), "target": ("train_loss", 0.1)}, r"target metric='train_loss' is not known"),
        ({"valid": (X, Y), "target": ("valid_f1", 0.1)}, r"target metric='valid_f1' is not known"),
        ({"valid": (X, Y), "target": ("valid_loss",)}, r"target=\('valid_loss',\)"),
        ({"tricks": {"mixup": 0.2}}, r"tricks"),
        ({"tricks": hp.Mixup()}, r"tricks"),
        ({"resume": True}, r"resume=True.*run_dir"),
        ({"valid": (X[:0], Y[:0])}, r"valid: .*0 samples"),
        ({"valid": (X, Y + 3)}, r"valid: label \d of sample \d+ is out of range"),
        ({"target": 0.9}, r"target=0.9 needs validation data, and there is none: pass valid"),
        ({"test": (X, Y[:-1])}, r"50 inputs and 49 targets"),
        ({"device": "abacus"}, r"device='abacus'"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    arguments = {"model": mlp(), "train": IMAGES, "valid": None, **change}
    with pytest.raises(hp.InputError, match=message):
        fit(**arguments)


def test_a_loss_that_stays_not_finite_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"10 steps in a row, the first at step \d+: .* lower the learning rate"):
        fit(mlp(), (X, REAL), optimizer=lambda p: torch.optim.SGD(p, lr=1e30), epochs=20)


def test_an_error_of_the_model_before_training_says_what_it_was_given() -> None:
    data = torch.randn(32, 5), torch.randint(0, 3, (32,))
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        hp.fit(torch.nn.Linear(4, 3), data, optimizer="sgd", epochs=1, batch_size=8)
    assert caught.value.__notes__ == ["heptane ran Linear on a few samples before training: (2, 5) torch.float32"]
