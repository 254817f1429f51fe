"""``heptane export``: exported files compute what the model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heptane as hp
import heptane.session.finished.export
from heptane.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    flags = ["--data", "digits", "--model", "resnet", "--epochs", "0.3", "--batch-size", "120", "--tricks", "none"]
    assert main(["train", *flags, "--out", str(folder)]) == 0
    return folder


def test_onnx_computes_what_the_model_does_at_any_batch_size(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "m.onnx"
    assert main(["export", "--run", str(run), "--out", str(out)]) == 0
    assert "largest difference from the model's outputs" in capsys.readouterr().out
    loaded, about = hp.load_run(run), json.loads((tmp_path / "m.onnx.json").read_text())
    assert about["classes"] == list(loaded.classes)
    assert about["preprocess"]["mean"] == loaded.record["data"]["mean"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for size in (1, 33):
        inputs = torch.randn(size, 1, 8, 8)
        (found,) = session.run(["output"], {"input": inputs.numpy()})
        with torch.no_grad():
            assert np.allclose(found, loaded.model(inputs).numpy(), atol=1e-4)
    assert main(["export", "--run", str(run), "--out", str(out)]) == 2
    assert "exists: choose another file" in capsys.readouterr().err


def test_torch_export_is_loaded_and_compared(run: Path, tmp_path: Path) -> None:
    loaded = hp.load_run(run)
    path = loaded.export(tmp_path / "m.pt2", to="torch", sample=np.random.randint(0, 16, (7, 8, 8)).astype("uint8"))
    inputs = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(path).module()(inputs), loaded.model(inputs), atol=1e-5)


def test_a_file_that_computes_something_else_is_not_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = heptane.session.finished.export._run_torch
    monkeypatch.setattr(heptane.session.finished.export, "_run_torch", lambda *args: real(*args) + 1)
    with pytest.raises(hp.InputError, match="differs from the model by 1"):
        hp.load_run(run).export(tmp_path / "m.pt2", to="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_format_file_or_folder_is_refused(run: Path, tmp_path: Path) -> None:
    loaded = hp.load_run(run)
    wrong: list[dict[str, Any]] = [
        {"to": "tflite"}, {"path": tmp_path / "m.pt2"}, {"path": tmp_path / "no" / "m.onnx"}, {"sample": np.zeros((2, 3))},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(hp.InputError):
            loaded.export(**{"path": tmp_path / "m.onnx"} | settings)
    assert list(tmp_path.iterdir()) == []
