"""A checkpoint holds all that a run needs to go on, is never half a file, and refuses another run's state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_images, mlp

import heptane as hp
from heptane import checkpoint
from heptane.assemble import Run, assemble
from heptane.loop import steps

Factory = Callable[[Any], torch.optim.Optimizer]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def make(optimizer: Factory = sgd, model: torch.nn.Module | None = None, **settings: Any) -> Run:
    settings = {"epochs": 2, "batch_size": 16, "device": "cpu", **settings}
    data = settings.pop("data", None) or make_images(48)
    return assemble(model or mlp(), data, optimizer=optimizer, **settings)


def trained(num_steps: int, **settings: Any) -> Run:
    run = make(**settings)
    for event in steps(run):
        if event.step == num_steps:
            break
    run.clock.pause()
    return run


def flat(value: Any) -> list[Any]:
    """Every leaf of a nested state, tensors as (dtype, values)."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in [key, *flat(value[key])]]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(leaf for item in value for leaf in flat(item))]
    return [(value.dtype, value.tolist())] if isinstance(value, torch.Tensor) else [value]


OPTIMIZERS: dict[str, Factory] = {
    "sgd": sgd,
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "two groups": lambda p: torch.optim.SGD([{"params": [q], "weight_decay": 0.1 * i} for i, q in enumerate(p)], lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    first = trained(3, optimizer=OPTIMIZERS[name])
    path = checkpoint.save(first, 3, [{"epoch": 1, "train_loss": 0.5}], tmp_path)
    second = make(OPTIMIZERS[name], model=mlp(seed=5))
    assert checkpoint.load(second, path) == (3, [{"epoch": 1, "train_loss": 0.5}])
    assert flat(second.model.state_dict()) == flat(first.model.state_dict())
    assert flat(second.optimizer.state_dict()) == flat(first.optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_bitwise_the_uninterrupted_run(name: str, tmp_path: Path) -> None:
    whole = trained(6, optimizer=OPTIMIZERS[name])
    path = checkpoint.save(trained(2, optimizer=OPTIMIZERS[name]), 2, [], tmp_path)
    second = make(OPTIMIZERS[name], model=mlp(seed=5))
    start, _ = checkpoint.load(second, path)
    assert [event.step for event in steps(second, start)] == [3, 4, 5, 6]
    assert flat(second.model.state_dict()) == flat(whole.model.state_dict())


class Odd(torch.optim.SGD):
    """State as optimizers of other houses keep it: nested, not only tensors, and counters in the group."""

    def step(self, closure: Any = None) -> None:
        super().step()
        group = self.param_groups[0]
        group["num_calls"] = group.get("num_calls", 0) + 1
        for p in group["params"]:
            state = self.state[p]
            state["nested"] = {"factors": [p.detach().clone(), None], "pair": (1, 2.5), "name.with.dots": 7}
            state["double"] = p.detach().double()


def test_nested_state_and_counters_in_the_groups_survive(tmp_path: Path) -> None:
    first = trained(2, optimizer=lambda p: Odd(p, lr=0.1, momentum=0.9))
    second = make(lambda p: Odd(p, lr=0.1, momentum=0.9))
    checkpoint.load(second, checkpoint.save(first, 2, [], tmp_path))
    assert second.optimizer.param_groups[0]["num_calls"] == 2
    saved, loaded = first.optimizer.state_dict()["state"][0], second.optimizer.state_dict()["state"][0]
    assert flat(loaded["nested"]) == flat(saved["nested"])
    assert loaded["nested"]["name.with.dots"] == 7


class Awkward(torch.nn.Module):
    """Tied weights, a channels-last weight, BatchNorm's counters, an empty and a 16-bit buffer, state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
        self.norm = torch.nn.BatchNorm2d(4)
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("tenth", torch.tensor(0.1, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.extra = {"seen": 3}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(self.norm(self.conv(x)).mean((2, 3))))
        return out

    def get_extra_state(self) -> dict[str, int]:
        return self.extra

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.extra = state


def test_awkward_models_come_back_whole(tmp_path: Path) -> None:
    first = trained(3, model=Awkward())
    first.model.extra = {"seen": 96}  # type: ignore[assignment]
    second = make(model=Awkward())
    checkpoint.load(second, checkpoint.save(first, 3, [], tmp_path))
    assert flat(second.model.state_dict()) == flat(first.model.state_dict())
    assert second.model.first.weight is second.model.second.weight  # type: ignore[union-attr]
    assert second.model.conv.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]


def test_the_weights_file_holds_every_tensor_by_its_name(tmp_path: Path) -> None:
    model = Awkward()
    checkpoint.save_model(model, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert set(found) == set(wanted)
    assert flat({name: found[name] for name in wanted}) == flat(wanted)


def test_a_state_that_json_and_safetensors_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    run = trained(1)
    run.optimizer.param_groups[0]["function"] = print
    with pytest.raises(hp.InputError, match=r"optimizer\.param_groups\.0\.function is of type builtin_function"):
        checkpoint.save(run, 1, [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_counts_and_clocks_go_on(tmp_path: Path) -> None:
    first = trained(3)
    first.skipped, first.meter.nonfinite, first.meter.first_nonfinite = 4, 2, 1
    first.clock.train, first.clock.started = 50.0, first.clock.started - 70  # type: ignore[operator]
    second = make()
    before = second.clock.read()
    checkpoint.load(second, checkpoint.save(first, 3, [], tmp_path))
    after = second.clock.read()
    assert (second.skipped, second.meter.nonfinite, second.meter.first_nonfinite) == (4, 2, 1)
    assert 50 <= after["train"] - before["train"] < 51
    assert 70 <= after["wall"] - before["wall"] < 75


def test_a_loss_that_is_not_finite_in_the_history_comes_back(tmp_path: Path) -> None:
    run = trained(3)
    _, history = checkpoint.load(run, checkpoint.save(run, 3, [{"train_loss": float("nan")}], tmp_path))
    assert history[0]["train_loss"] != history[0]["train_loss"]


def test_the_scale_of_fp16_goes_on_and_a_change_of_precision_is_noted(tmp_path: Path) -> None:
    from heptane.tricks.mixed_precision import Autocast, Scaled

    def scaled(scale: float) -> Scaled:
        return Scaled(torch.float16, "cpu", scale, 2000, 1.0)

    first = trained(1)
    first.precision = scaled(512.0)
    first.precision.steps_held = 7
    path = checkpoint.save(first, 1, [], tmp_path)
    second = make()
    second.precision = scaled(65536.0)
    checkpoint.load(second, path)
    assert (second.precision.scale, second.precision.steps_held) == (512.0, 7)
    third = make()
    third.precision = Autocast(torch.bfloat16, "cpu")
    checkpoint.load(third, path)
    assert third.notes[-1] == "from step 1 on in bf16; before in fp16"


def test_only_the_newest_is_kept_and_litter_of_a_killed_process_goes(tmp_path: Path) -> None:
    run = trained(1)
    (tmp_path / ".step-000000001.safetensors.4711").write_text("half")
    (tmp_path / "best.safetensors").write_text("mine")
    assert checkpoint.latest(tmp_path) is None
    for step in (1, 5, 1_000_000_000):
        assert checkpoint.latest(tmp_path / "none") is None
        path = checkpoint.save(run, step, [], tmp_path)
        assert checkpoint.latest(tmp_path) == path
    assert {p.name for p in tmp_path.iterdir()} == {"best.safetensors", "step-1000000000.safetensors"}


def test_a_checkpoint_just_written_is_never_the_one_removed(tmp_path: Path) -> None:
    run = trained(1)
    checkpoint.save(run, 9, [], tmp_path)
    assert checkpoint.save(run, 3, [], tmp_path).exists()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003.safetensors"]


def test_a_write_that_fails_leaves_the_older_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(2)
    older = checkpoint.save(run, 1, [], tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(run, 2, [], tmp_path)
    assert list(tmp_path.iterdir()) == [older]
    assert checkpoint.load(make(), older)[0] == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other", "format", "gone"])
def test_a_file_that_is_no_checkpoint_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = checkpoint.save(trained(1), 1, [], tmp_path)
    whole = path.read_bytes()
    if damage == "other":
        save_file({"a": torch.zeros(1)}, path)
    elif damage == "format":
        save_file({"a": torch.zeros(1)}, path, {"heptane": json.dumps({"format": 99})})
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello, I am not a checkpoint"}[damage])
    run = make()
    before = flat(run.model.state_dict())
    with pytest.raises(hp.InputError, match=r"checkpoint .* cannot be read .*: remove it, and the run starts again"):
        checkpoint.load(run, path)
    assert flat(run.model.state_dict()) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": mlp(num_classes=5)},
            r"of another model: in the file '3.weight' is of shape \(4, 16\), in the model of sh",
        ),
        (
            {"model": torch.nn.Sequential(*mlp()[:3], torch.nn.Linear(16, 4, bias=False))},
            r"'3.bias' is of shape \(4,\), .*absent",
        ),
        ({"model": torch.nn.Sequential(*mlp(), torch.nn.BatchNorm1d(4))}, r"'4.weight' is absent, in the model of shape"),
        ({"optimizer": OPTIMIZERS["adamw"]}, r"written with optimizer SGD, and this run has AdamW"),
        ({"optimizer": OPTIMIZERS["two groups"]}, r"with parameters per group \[4\], and this run has \[1, 1, 1, 1\]"),
        ({"batch_size": 8}, r"with batch_size 16, and this run has 8"),
        ({"data": make_images(40)}, r"with training samples 48, and this run has 40"),
        ({"seed": 1}, r"with seed 0, and this run has 1"),
        ({"epochs": 1}, r"is at step 4, past this run's 3: raise epochs"),
    ],
)
def test_another_runs_checkpoint_is_refused_and_nothing_is_touched(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = checkpoint.save(trained(4), 4, [], tmp_path)
    run = make(**settings)
    before = flat(run.model.state_dict()), flat(run.optimizer.state_dict())
    with pytest.raises(hp.InputError, match=message):
        checkpoint.load(run, path)
    assert (flat(run.model.state_dict()), flat(run.optimizer.state_dict())) == before


def test_more_epochs_may_be_added(tmp_path: Path) -> None:
    path = checkpoint.save(trained(6), 6, [], tmp_path)
    assert checkpoint.load(make(epochs=3), path)[0] == 6


def test_loading_never_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    path = checkpoint.save(trained(1, optimizer=OPTIMIZERS["adamw"]), 1, [], tmp_path)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    checkpoint.load(make(OPTIMIZERS["adamw"]), path)
