"""Model and optimizer state of any kind is saved under clean names, or refused before training."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import adamw, assert_equal_weights, fit, make_images, mlp

import heptane as hp
from heptane.model.names import clean_names, load_clean
from heptane.model.serialise import pack, read_model, save_model, unpack
from heptane.session.checkpoints.checkpoint import find_newest

pytestmark = pytest.mark.usefixtures("undrawn")
TRAIN = make_images(32)


class Wrapped(torch.nn.Module):
    """As torch.compile wraps a module, without the compiler's seconds."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner

    def forward(self, inputs: torch.Tensor) -> Any:
        return self._orig_mod(inputs)


def compiled(where: str) -> torch.nn.Module:
    net = mlp()
    if where in ("part", "both"):
        net[1] = Wrapped(net[1])
    return net if where == "part" else torch.nn.DataParallel(net) if where == "parallel" else Wrapped(net)


def fit_in(model: torch.nn.Module, folder: Path, **settings: Any) -> hp.Result:
    return fit(model, TRAIN, run_dir=folder, **{"optimizer": adamw, **settings})


@pytest.mark.parametrize("where", ["whole", "part", "both", "parallel"])
def test_files_of_a_wrapped_model_have_its_own_names(where: str, tmp_path: Path) -> None:
    model = compiled(where)
    fit_in(model, tmp_path, average_decay=0.9)
    names = set(mlp().state_dict())
    assert set(load_file(tmp_path / "model.safetensors")) == names
    saved, _ = find_newest(tmp_path / "checkpoints")
    assert saved is not None
    held = set(load_file(saved.path / "state.safetensors"))
    assert {f"model.{name}" for name in names} <= held
    assert not any("_orig_mod" in name or ".module." in name for name in held)
    assert "_orig_mod" not in (saved.path / "facts.json").read_text() + (tmp_path / "result.json").read_text()
    plain = mlp(seed=5)
    assert hp.load_weights(plain, tmp_path).share == 1.0
    assert_equal_weights(plain, model)
    back = compiled(where)
    assert hp.load_weights(back, tmp_path).share == 1.0
    assert torch.equal(next(back.parameters()), next(model.parameters()))


def test_a_run_goes_on_with_a_model_that_is_wrapped_otherwise(tmp_path: Path) -> None:
    whole = fit_in(mlp(), tmp_path / "whole", epochs=3)
    fit_in(compiled("both"), tmp_path / "parts", epochs=2)
    again = fit_in(mlp(seed=5), tmp_path / "parts", epochs=3, resume=True)
    assert_equal_weights(whole.model, again.model)


def test_torch_compiles_own_wrapper_is_one() -> None:
    net = torch.nn.Sequential(torch.compile(torch.nn.Linear(2, 2)))
    assert list(clean_names(torch.compile(net)).values()) == ["0.weight", "0.bias"]
    load_clean(net, {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)})
    assert net.state_dict()["0._orig_mod.bias"].sum() == 2


def test_a_file_that_was_saved_from_a_compiled_part_is_read(tmp_path: Path) -> None:
    torch.save(compiled("both").state_dict(), tmp_path / "net.pth")
    assert hp.load_weights(mlp(), tmp_path / "net.pth").share == 1.0


def test_names_that_only_look_wrapped_stay() -> None:
    net = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
    assert list(clean_names(net).values()) == ["module.weight", "module.bias"]


class Sparse(torch.nn.Module):
    """With sparse buffers and state of its own, one part of which is a tensor."""

    def __init__(self, layout: str = "coo") -> None:
        super().__init__()
        self.net = mlp()
        table = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("table", table.to_sparse_coo() if layout == "coo" else table.to_sparse_csr())
        self.extra: Any = {"seen": 0, "names": ("a", None), "sum": torch.zeros(2), "at": np.float32(0.5)}

    def forward(self, inputs: torch.Tensor) -> Any:
        if self.training:
            self.extra["seen"] += len(inputs)
            self.extra["sum"] = self.extra["sum"] + 1
        return self.net(inputs)

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers_and_extra_state_are_saved_resumed_and_in_the_weights(layout: str, tmp_path: Path) -> None:
    model = Sparse(layout)
    model.table = 3 * model.table
    fit_in(model, tmp_path)
    model = Sparse(layout)
    again = fit_in(model, tmp_path, epochs=3, resume=True)
    assert model.extra["seen"] == 96
    assert torch.equal(model.extra["sum"], torch.full((2,), 6.0))
    assert model.table.to_dense().tolist() == [[0.0, 6.0, 0.0], [3.0, 0.0, 0.0]]
    state = read_model(tmp_path / "model.safetensors")
    fresh = Sparse(layout)
    load_clean(fresh, state)
    assert fresh.table.layout == again.model.table.layout
    assert fresh.extra["seen"] == 96
    assert type(fresh.extra["at"]) is np.float32
    assert set(state) == set(fresh.state_dict())


def test_what_a_file_without_code_can_hold_comes_back_as_it_was() -> None:
    value = {
        "set": {1, 2}, "deque": collections.deque([1.5, "a"], maxlen=3), "array": np.arange(3, dtype=np.int16),
        ("a", 1): [torch.bfloat16, torch.device("cpu"), b"\0x", 1 + 2j, None, True], 3: collections.OrderedDict(a=1),
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    back = unpack(pack(value, "it", tensors), tensors)
    assert np.array_equal(back.pop("array"), value.pop("array"))  # type: ignore[call-overload]
    assert back == value
    assert back["deque"].maxlen == 3
    with pytest.raises(ValueError, match="not a dtype"):
        unpack({"dtype": "load"}, {})


class Odd(torch.optim.SGD):
    """Keeps something in its state that no file without code holds."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["kept"] = argparse.Namespace(a=1)
        return super().step(closure)


def test_state_that_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    net = mlp()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(hp.InputError, match=r"optimizer.state.0.kept is of type Namespace: .* leave out run_dir"):
        fit_in(net, tmp_path / "a", optimizer=lambda p: Odd(p, lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    model = Sparse()
    model.extra = {"rule": argparse.Namespace(a=1)}
    with pytest.raises(hp.InputError, match=r"model._extra_state.rule is of type Namespace"):
        fit_in(model, tmp_path / "b")
    assert not (tmp_path / "a").exists()
    hp.fit(mlp(), TRAIN, optimizer=lambda p: Odd(p, lr=0.1), epochs=1, batch_size=16, device="cpu")  # it saves nothing


def test_the_trial_of_an_optimizer_leaves_no_mark(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counted(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            self.noise: list[float] = []

        def step(self, closure: Any = None) -> Any:
            self.noise.append(float(torch.rand(())))
            return super().step(closure)

    def build(params: Any) -> torch.optim.Optimizer:
        made = Counted(params)
        made.register_step_post_hook(lambda *_: calls.append(len(made.noise)))
        return made

    fit_in(mlp(), tmp_path, optimizer=build)
    assert sorted(set(calls)) == [1, 2, 3, 4]  # PyTorch may call a hook for SGD.step too


def test_a_model_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    save_model(Sparse(), tmp_path / "m.safetensors")
    assert set(mlp().state_dict()) <= {name.removeprefix("net.") for name in load_file(tmp_path / "m.safetensors")}


class KeepsArrays(torch.optim.SGD):
    """Keeps what PyTorch's own ``load_state_dict`` cannot build again."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["seen"] = np.ones(2)
        return super().step(closure)


def test_an_optimizer_that_does_not_load_what_it_saves_is_refused_before_training(tmp_path: Path) -> None:
    data = torch.randn(16, 4), torch.randint(0, 3, (16,))
    with pytest.raises(hp.InputError, match="KeepsArrays cannot load the state that it saves"):
        hp.fit(
            torch.nn.Linear(4, 3),
            data,
            optimizer=lambda params: KeepsArrays(params, lr=0.1),
            epochs=1,
            batch_size=8,
            run_dir=tmp_path / "run",
        )
