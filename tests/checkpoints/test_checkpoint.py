"""Checkpoints: complete, written atomically, and refused for another run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import checkpoint_steps, make_images, mlp, save_checkpoint, sgd

import heptane as hp
from heptane.assemble import assemble
from heptane.base import storage
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.core.run import Run
from heptane.model.serialise import save_model
from heptane.session.checkpoints import checkpoint, restore

Factory = Callable[[Any], torch.optim.Optimizer]


RECORD = {"epoch": 1, "step": 3, "train_seconds": 0.5, "evaluate_seconds": 0.1, "train_loss": 0.5}


def make(optimizer: Factory = sgd, model: torch.nn.Module | None = None, **settings: Any) -> Run:
    settings = {"epochs": 2, "batch_size": 16, "device": "cpu", **settings}
    data = settings.pop("data", None) or make_images(48)
    return assemble(model or mlp(), data, Plan.of(optimizer=optimizer, **settings))


def trained(num_steps: int, **settings: Any) -> Run:
    run = make(**settings)
    for event in steps(run):
        if event.step == num_steps:
            break
    run.clock.pause()
    return run


def load(run: Run, path: Path) -> tuple[int, list[dict[str, Any]]]:
    return restore.load(run, checkpoint.read(path))


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
    path = save_checkpoint(first, 3, [RECORD], tmp_path)
    second = make(OPTIMIZERS[name], model=mlp(seed=5))
    assert load(second, path) == (3, [RECORD])
    assert flat(second.model.state_dict()) == flat(first.model.state_dict())
    assert flat(second.optimizer.state_dict()) == flat(first.optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_bitwise_the_uninterrupted_run(name: str, tmp_path: Path) -> None:
    whole = trained(6, optimizer=OPTIMIZERS[name])
    path = save_checkpoint(trained(2, optimizer=OPTIMIZERS[name]), 2, [], tmp_path)
    second = make(OPTIMIZERS[name], model=mlp(seed=5))
    start, _ = load(second, path)
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
    load(second, save_checkpoint(first, 2, [], tmp_path))
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
    load(second, save_checkpoint(first, 3, [], tmp_path))
    assert flat(second.model.state_dict()) == flat(first.model.state_dict())
    assert second.model.first.weight is second.model.second.weight  # type: ignore[union-attr]
    assert second.model.conv.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]


def test_the_weights_file_holds_every_tensor_by_its_name(tmp_path: Path) -> None:
    model = Awkward()
    save_model(model, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert set(found) == set(wanted)
    assert flat({name: found[name] for name in wanted}) == flat(wanted)


def test_a_state_that_json_and_safetensors_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    run = trained(1)
    run.optimizer.param_groups[0]["function"] = print
    with pytest.raises(hp.InputError, match=r"optimizer\.param_groups\.0\.function is of type builtin_function"):
        save_checkpoint(run, 1, [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_counts_and_clocks_go_on(tmp_path: Path) -> None:
    first = trained(3)
    first.skipped, first.meter.nonfinite, first.meter.first_nonfinite = 4, 2, 1
    first.clock.train, first.clock.started = 50.0, first.clock.started - 70  # type: ignore[operator]
    second = make()
    before = second.clock.read()
    load(second, save_checkpoint(first, 3, [], tmp_path))
    after = second.clock.read()
    assert (second.skipped, second.meter.nonfinite, second.meter.first_nonfinite) == (4, 2, 1)
    assert 50 <= after["train"] - before["train"] < 51
    assert 70 <= after["wall"] - before["wall"] < 75


def test_a_loss_that_is_not_finite_in_the_history_comes_back(tmp_path: Path) -> None:
    run = trained(3)
    _, history = load(run, save_checkpoint(run, 3, [RECORD | {"train_loss": float("nan")}], tmp_path))
    assert history[0]["train_loss"] != history[0]["train_loss"]


def test_the_scale_of_fp16_goes_on_and_a_change_of_precision_is_noted(tmp_path: Path) -> None:
    from heptane.core.precision.step import Autocast, Scaled

    def scaled(scale: float) -> Scaled:
        return Scaled(torch.float16, "cpu", scale, 2000, 1.0)

    first = trained(1)
    first.precision = scaled(512.0)
    first.precision.steps_held = 7
    path = save_checkpoint(first, 1, [], tmp_path)
    second = make()
    second.precision = scaled(65536.0)
    load(second, path)
    assert (second.precision.scale, second.precision.steps_held) == (512.0, 7)
    third = make()
    third.precision = Autocast(torch.bfloat16, "cpu")
    load(third, path)
    assert third.notes[-1] == "bf16 from step 1 on; before, fp16"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_newest_and_the_best_are_kept_and_litter_of_a_killed_process_goes(tmp_path: Path) -> None:
    run = trained(1)
    (tmp_path / ".step-000000001").mkdir()
    (tmp_path / ".step-000000001" / "state.safetensors").write_text("half")
    (tmp_path / "best.safetensors").write_text("mine")
    assert checkpoint.find_newest(tmp_path) == (None, []) == checkpoint.find_newest(tmp_path / "none")
    for step in (1, 5, 7, 1_000_000_000):
        path = save_checkpoint(run, step, [], tmp_path, keep=2)
        saved, notes = checkpoint.find_newest(tmp_path)
        assert saved is not None
        assert (saved.path, notes) == (path, [])
    assert names(tmp_path) == {"best.safetensors", "step-000000007", "step-1000000000"}
    save_checkpoint(run, 8, [], tmp_path, keep=9)
    checkpoint.prune(tmp_path, 1, best=7)
    assert names(tmp_path) == {"best.safetensors", "step-000000007", "step-1000000000"}
    assert checkpoint_steps(tmp_path) == [1_000_000_000, 7]


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    run = trained(1)
    save_checkpoint(run, 3, [RECORD], tmp_path)
    path = save_checkpoint(run, 3, [RECORD | {"epoch": 2}], tmp_path)
    assert load(make(), path) == (3, [RECORD | {"epoch": 2}])
    assert names(tmp_path) == {"step-000000003"}


class Disk:
    """Counts what is asked of the disk, and refuses the k-th call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: int) -> None:
        self.calls = 0
        for name in ("open", "write", "fsync", "replace", "rename"):
            real = getattr(os, name)

            def call(*args: Any, real: Any = real, **kwargs: Any) -> Any:
                self.calls += 1
                if self.calls == fail:
                    raise OSError(28, "No space left on device")
                return real(*args, **kwargs)

            monkeypatch.setattr(storage.os, name, call)


def test_whichever_call_to_the_disk_fails_the_last_good_checkpoint_loads(tmp_path: Path) -> None:
    first, second = trained(1, optimizer=OPTIMIZERS["adamw"]), trained(2, optimizer=OPTIMIZERS["adamw"])
    fail = 0
    while True:
        fail += 1
        folder = tmp_path / str(fail)
        older = save_checkpoint(first, 1, [], folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Disk(monkeypatch, fail)
            with contextlib.suppress(OSError):
                save_checkpoint(second, 2, [], folder)
        saved, notes = checkpoint.find_newest(folder)
        assert saved is not None
        assert notes == []
        run = make(OPTIMIZERS["adamw"], model=mlp(seed=5))
        step, _ = restore.load(run, saved)
        assert flat(run.model.state_dict()) == flat((first if step == 1 else second).model.state_dict())
        if disk.calls < fail:
            break
        assert saved.path == older or step == 2
        save_checkpoint(second, 3, [], folder)
        assert names(folder) == {"step-000000003"}
    assert fail > 8


class Order:
    """What is asked of the disk, in order: the call, and the names of what it is about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.names: dict[int, str] = {}
        for name in ("open", "write", "fsync", "replace", "rename"):
            monkeypatch.setattr(storage.os, name, partial(self.call, name, getattr(os, name)))

    def call(self, name: str, real: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        if name == "open":
            self.names[found] = Path(args[0]).name
        elif name in ("write", "fsync"):
            self.calls.append((name, self.names[args[0]]))
        else:
            self.calls.append(("rename", *(Path(path).name for path in args)))
        return found


def test_a_checkpoint_gets_its_name_by_one_rename_after_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(2)
    order = Order(monkeypatch)
    save_checkpoint(run, 2, [], tmp_path / "checkpoints")
    aside, parts = ".step-000000002", ("state.safetensors", "facts.json")
    written = [(call, part) for part in parts for call in ("write", "fsync")]
    named = [("fsync", aside), ("rename", aside, "step-000000002"), ("fsync", "checkpoints")]
    assert order.calls == written + named


def test_so_does_a_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(monkeypatch)
    save_model(mlp(), tmp_path / "w")
    aside = f".w.{os.getpid()}"
    assert order.calls == [("write", aside), ("fsync", aside), ("rename", aside, "w"), ("fsync", tmp_path.name)]


def test_a_write_that_is_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(storage.os, "write", lambda where, content: real(where, content[:7]))
    run = trained(1)
    path = save_checkpoint(run, 1, [], tmp_path)
    assert load(make(), path)[0] == 1


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: (path / "state.safetensors").write_bytes(b""),
    "cut": lambda path: (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:200]),
    "a bit": lambda path: flip(path / "state.safetensors"),
    "gone": lambda path: (path / "state.safetensors").unlink(),
    "a link": lambda path: relink(path / "state.safetensors"),
    "facts gone": lambda path: (path / "facts.json").unlink(),
    "facts cut": lambda path: (path / "facts.json").write_bytes((path / "facts.json").read_bytes()[:100]),
    "facts empty": lambda path: (path / "facts.json").write_bytes(b""),
    "facts text": lambda path: (path / "facts.json").write_text("hello, I am not a checkpoint"),
    "facts list": lambda path: (path / "facts.json").write_text("[1, 2]"),
    "facts deep": lambda path: (path / "facts.json").write_text("[" * 100_000),
    "facts altered": lambda path: (path / "facts.json").write_text(
        (path / "facts.json").read_text().replace('"seed": 0', '"seed": 1')
    ),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def relink(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_damaged_checkpoint_the_one_before_is_used_with_a_note(tmp_path: Path, damage: str) -> None:
    first = save_checkpoint(trained(1), 1, [], tmp_path, keep=2)
    second = save_checkpoint(trained(2), 2, [], tmp_path, keep=2)
    DAMAGE[damage](second)
    saved, (note,) = checkpoint.find_newest(tmp_path)
    assert saved is not None
    assert saved.path == first
    assert note.startswith(f"checkpoint {second} is damaged (")
    assert note.endswith("): used the one before it")
    assert restore.load(make(), saved)[0] == 1
    DAMAGE[damage](first)
    with pytest.raises(
        hp.InputError, match=r"is damaged \(.*\), and so are 1 older one\(s\): remove .* to start the run again"
    ):
        checkpoint.find_newest(tmp_path)


def resealed(path: Path, **changes: Any) -> checkpoint.Saved:
    """A checkpoint with other facts and a checksum that is right: a stranger's."""
    facts, files = storage.read_facts(path)
    (path / "facts.json").unlink()
    storage.seal(path, path.parent / "step-000000009", facts | changes, files)
    return checkpoint.read(path.parent / "step-000000009")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": None},
        {"step": "two"},
        {"history": None},
        {"history": [{}]},
        {"history": ["a"]},
        {"history": [RECORD | {"step": "x"}]},
        {"model": []},
        {"meters": {}},
    ],
)
def test_facts_of_another_form_are_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save_checkpoint(trained(1), 1, [], tmp_path)
    with pytest.raises(
        storage.Damaged, match=r"format .*, but this version|has no \w+ of type|has an invalid history record"
    ):
        resealed(path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {}},
        {"model": {"tensor": "nowhere"}},
        {"model": {"list": [1]}},
        {"model": {"dict": 7}},
        {"optimizer": {"dict": []}},
        {"optimizer": {"dict": [["state", {"dict": []}], ["param_groups", {"list": [3]}]]}},
        {"fixed": {}},
        {"precision": {}},
        {"faults": {}},
        {"meters": [{}]},
        {"seconds": {"train": "long"}},
        {"step": -4},
        {"first": []},
    ],
)
def test_a_strangers_checkpoint_with_nonsense_in_it_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save_checkpoint(trained(2), 2, [], tmp_path)
    with pytest.raises((hp.InputError, storage.Damaged)):
        restore.load(make(), resealed(path, **changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": mlp(num_classes=5)},
            r"of another model: '3.weight' is of shape \(4, 16\), torch.float32 in the checkpoint, of shape",
        ),
        (
            {"model": torch.nn.Sequential(*mlp()[:3], torch.nn.Linear(16, 4, bias=False))},
            r"'3.bias' is of shape \(4,\), .*absent",
        ),
        (
            {"model": torch.nn.Sequential(*mlp(), torch.nn.BatchNorm1d(4))},
            r"'4.weight' is absent in the checkpoint, of shape",
        ),
        ({"optimizer": OPTIMIZERS["adamw"]}, r"written with optimizer SGD, and this run has AdamW"),
        ({"optimizer": OPTIMIZERS["two groups"]}, r"with parameters per group \[4\], and this run has \[1, 1, 1, 1\]"),
        ({"batch_size": 8}, r"with batch_size 16, and this run has 8"),
        ({"data": make_images(40)}, r"with training samples 48, and this run has 40"),
        ({"seed": 1}, r"with seed 0, and this run has 1"),
        ({"epochs": 1}, r"is at step 4, but this run has only 3 steps: raise epochs"),
    ],
)
def test_another_runs_checkpoint_is_refused_and_nothing_is_touched(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save_checkpoint(trained(4), 4, [], tmp_path)
    run = make(**settings)
    before = flat(run.model.state_dict()), flat(run.optimizer.state_dict())
    with pytest.raises(hp.InputError, match=message):
        load(run, path)
    assert (flat(run.model.state_dict()), flat(run.optimizer.state_dict())) == before


def test_more_epochs_may_be_added(tmp_path: Path) -> None:
    path = save_checkpoint(trained(6), 6, [], tmp_path)
    assert load(make(epochs=3), path)[0] == 6


def test_loading_never_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    path = save_checkpoint(trained(1, optimizer=OPTIMIZERS["adamw"]), 1, [], tmp_path)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    load(make(OPTIMIZERS["adamw"]), path)
