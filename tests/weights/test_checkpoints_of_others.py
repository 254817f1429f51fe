"""Weights inside other projects' checkpoints: found by a fixed rule, without running code."""

from __future__ import annotations

import argparse
import datetime
import enum
import os
import pickle
import sys
import types
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from heptane import InputError, load_weights
from heptane.pretrained.weights import read_weights


def net(value: float = 1.0) -> torch.nn.Sequential:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model


def state(value: float = 1.0) -> dict[str, Any]:
    return dict(net(value).state_dict())


class Easy(dict[str, Any]):
    """A dict with attributes, as configurations are."""


class Many(list[Any]):
    """A list of a class of its own."""


class Mode(enum.Enum):
    FAST = "fast"


@dataclass
class Config:
    lr: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.999)
    inner: dict[str, Any] = field(default_factory=lambda: {"a": Mode.FAST})


def easy() -> Easy:
    made = Easy(lr=0.1, inner=Easy(a=1))
    made.__dict__["lr"] = 0.1
    return made


BESIDE: dict[str, Any] = {
    "a NumPy number": np.float64(0.5),
    "a NumPy integer": np.int64(3),
    "a NumPy array": np.arange(6.0).reshape(2, 3),
    "a NumPy array of text": np.array(["a", "bc"]),
    "a Namespace": argparse.Namespace(lr=0.1, sizes=[1, 2], inner=argparse.Namespace(a=1)),
    "a dataclass": Config(),
    "an enum": Mode.FAST,
    "a dict of a class of its own": easy(),
    "a list of a class of its own": Many([1, easy()]),
    "a default dict": defaultdict(list, a=[1]),
    "a path and a time": [PurePosixPath("a/b"), datetime.datetime(2024, 1, 1)],
    "a SimpleNamespace": types.SimpleNamespace(a=1),
    "a version": torch.__version__,
    "an optimizer and a scheduler": (optimizer := torch.optim.SGD(net().parameters(), lr=0.1)),
    "a function": np.sum,
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_beside_the_weights_does_not_matter(name: str, zipped: bool, tmp_path: Path) -> None:
    content = {"beside": BESIDE[name], "net": state(2.0), "again": [BESIDE[name]] * 2, "epoch": torch.tensor(3)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    model = net()
    report = load_weights(model, tmp_path / "w.pth")
    assert all(bool((value == 2).all()) for value in model.state_dict().values())
    assert report.unexpected == ()
    assert "taken: 'net' of the file" in str(report).splitlines()


def test_a_class_of_a_library_that_is_not_here_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("omegaconf_like")
    kind = type("DictConfig", (), {"__module__": "omegaconf_like", "__setstate__": lambda self, state: os._exit(3)})
    library.DictConfig = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf_like", library)
    config = kind()
    config.content = {"a": kind(), "b": [np.float32(1)]}  # type: ignore[attr-defined]
    torch.save({"cfg": config, "weights": state(2.0)}, tmp_path / "w.ckpt")
    assert read_weights(tmp_path / "w.ckpt").keys() == state().keys()  # it is here, and would end this process
    monkeypatch.delitem(sys.modules, "omegaconf_like")
    assert read_weights(tmp_path / "w.ckpt").keys() == state().keys()
    assert "Inert" not in str(torch.serialization.get_safe_globals())


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["system", "eval", "getattr", "import", "popen", "attrgetter"])
def test_what_only_a_file_of_bad_intent_has_is_refused_beside_weights_too(name: str, zipped: bool, tmp_path: Path) -> None:
    import importlib
    import operator
    import subprocess

    trap = tmp_path / "ran"
    line = f"open({str(trap)!r}, 'w')"
    calls = {"system": Runs(os.system, f"touch {trap}"), "eval": Runs(eval, line), "getattr": Runs(getattr, "a", "upper")}
    calls |= {"import": Runs(importlib.import_module, "this"), "popen": Runs(subprocess.Popen, ["touch", str(trap)])}
    calls |= {"attrgetter": Runs(operator.attrgetter, "a")}
    torch.save({"net": state(), "beside": calls[name]}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"refused: reading it could run code \(.*\); get a \.safetensors file"):
        read_weights(tmp_path / "w.pth")
    assert not trap.exists()


def planted(path: str) -> None:
    Path(path).write_text("ran")


def test_a_function_that_is_not_known_to_be_bad_is_not_run_either(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    torch.save({"net": state(), "beside": Runs(planted, str(trap))}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == state().keys()
    assert not trap.exists()
    torch.save({"net": Runs(planted, str(trap))}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"refused: reading it could run code \(\S*planted\)"):
        read_weights(tmp_path / "w.pth")
    assert not trap.exists()


WHERE: dict[str, tuple[dict[str, Any], str]] = {
    "net": ({"net": state(2.0)}, "taken: 'net' of the file"),
    "params": ({"params": state(2.0), "lr": torch.tensor(0.1)}, "taken: 'params' of the file"),
    "weights": ({"weights": state(2.0)}, "taken: 'weights' of the file"),
    "model_ema alone": ({"model_ema": state(2.0), "epoch": 3}, "taken: 'model_ema' of the file"),
    "both": ({"model_ema": state(1.0), "model": state(2.0)}, "taken: 'model' of the file, not 'model_ema'"),
    "params and its average": (
        {"params_ema": state(1.0), "params": state(2.0)},
        "taken: 'params' of the file, not 'params_ema'",
    ),
    "nested": ({"state": {"model": state(2.0), "step": 7}}, "taken: 'state.model' of the file"),
    "nested under a name of its own": ({"run": {"net": state(2.0)}, "n": 1}, "taken: 'run.net' of the file"),
    "nested with an average": (
        {"state": {"model": state(2.0), "ema": state(1.0)}},
        "taken: 'state.model' of the file, not 'state.ema'",
    ),
    "a name of its own": (
        {"classifier": state(2.0), "optimizer": {"state": {0: {"buf": torch.ones(2)}}}, "loss": torch.tensor(0.1)},
        "taken: 'classifier' of the file",
    ),
    "an empty one first": ({"state_dict": {}, "net": state(2.0)}, "taken: 'net' of the file"),
}


@pytest.mark.parametrize("name", WHERE)
def test_the_weights_are_found_and_it_is_said_where(name: str, tmp_path: Path) -> None:
    content, said = WHERE[name]
    torch.save(content, tmp_path / "w.pt")
    model = net()
    report = load_weights(model, tmp_path / "w.pt")
    assert all(bool((value == 2).all()) for value in model.state_dict().values())
    assert said in str(report).splitlines()
    assert report.unexpected == ()


def test_of_two_that_nobody_knows_none_is_taken(tmp_path: Path) -> None:
    torch.save({"generator": state(), "discriminator": state()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="under 'generator', 'discriminator', and which to load is ambiguous"):
        read_weights(tmp_path / "w.pt")


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds no named tensors"):
        read_weights(tmp_path / "w.pt")


def test_a_state_dict_is_taken_as_it_is_and_one_of_single_numbers_too(tmp_path: Path) -> None:
    torch.save(state(2.0), tmp_path / "w.pt")
    assert load_weights(net(), tmp_path / "w.pt").taken == ""
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")) == ["scale"]


def test_a_pickle_of_another_protocol_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"net": {"a": 1}}, protocol=5))
    with pytest.raises(InputError, match="is damaged, or holds more than tensors"):
        read_weights(tmp_path / "w.pt")
