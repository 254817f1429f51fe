"""The examination of a trained model takes no training time, changes nothing, and never fails a run."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.facts import fit_with_facts
from tests.helpers import make_images, sgd
from torch.utils.data import DataLoader

import heptane as hp
from heptane.report.examination.examine import Examination, examine
from heptane.report.examination.pictures import Scale, data_uris
from heptane.session.interruption import Interruption


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    parts = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.Flatten()
    return torch.nn.Sequential(*parts, torch.nn.Linear(144, 4))


def fit_and_read(
    folder: Path, train: Any = None, valid: Any = "same", model: Any = None, **settings: Any
) -> tuple[Any, dict[str, Any]]:
    data = make_images(96)
    train = data if train is None else train
    valid = data if isinstance(valid, str) else valid
    common = {"about": {}, "optimizer": sgd, "batch_size": None if isinstance(train, DataLoader) else 16}
    result = fit_with_facts(model or net(), train, valid, **{**common, "epochs": 1, "run_dir": folder, **settings})
    return result, json.loads((folder / "result.json").read_text())


def test_the_numbers_agree_with_the_evaluation_and_the_page_has_the_pictures(tmp_path: Path) -> None:
    result, record = fit_and_read(
        tmp_path, test=make_images(40, seed=5), about={"data": {"class_names": ["<i>", "b", "c", "d"]}}
    )
    seen = record["examination"]
    assert (seen["part"], seen["num_samples"]) == ("test", 40)
    assert seen["accuracy"] == pytest.approx(result.metrics["test_accuracy"])
    assert sum(map(sum, seen["confusion"])) == 40
    assert sum(seen["train_counts"]) == 96
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/') == 24 + len(seen["mistakes"])
    assert "&lt;i&gt;" in page
    assert "<i>, predicted" not in page


def test_it_changes_no_weight_buffer_mode_or_random_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(run: Any, model: torch.nn.Module, *rest: Any) -> Examination:
        def state() -> Any:
            tensors = [t.clone() for t in (*model.parameters(), *model.buffers())]
            modes = [module.training for module in model.modules()]
            return (
                tensors,
                modes,
                torch.random.get_rng_state(),
                np.random.get_state()[1].copy(),
                random.getstate(),
                run.clock.read()["train"],
            )

        before = state()
        found = examine(run, model, *rest)
        after = state()
        seen.append(all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True)))
        seen.append(before[1] == after[1] and torch.equal(before[2], after[2]) and bool((before[3] == after[3]).all()))
        seen.append(before[4] == after[4] and before[5] == after[5])
        assert found.record
        return found

    monkeypatch.setattr(sys.modules["heptane.training"], "examine", watched)
    fit_and_read(tmp_path / "a", augment=hp.CropFlip())

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 96

        def __getitem__(self, index: int) -> Any:
            random.random()
            return make_images(1, seed=index)[0][0] + float(np.random.rand()) + torch.rand(()), index % 4

    loader = torch.utils.data.DataLoader(Noisy(), 16, shuffle=True)
    fit_and_read(tmp_path / "b", loader, loader)
    assert seen == [True] * 6


def test_the_weights_are_those_of_a_run_without_a_folder(tmp_path: Path) -> None:
    alone = hp.fit(net(), make_images(96), make_images(96), optimizer=sgd, epochs=1, batch_size=16)
    with_report, _ = fit_and_read(tmp_path)
    pairs = zip(alone.model.state_dict().values(), with_report.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_whatever_goes_wrong_becomes_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptane.report.examination.examine.summarise", lambda *_: 1 / 0)
    result, record = fit_and_read(tmp_path)
    note = "could not examine mistakes (ZeroDivisionError: division by zero)"
    assert note in record["notes"]
    assert note in result.notes
    assert record["examination"] is None
    assert "validation accuracy" in (tmp_path / "report.html").read_text()


def test_a_signal_ends_the_look_and_not_the_run(tmp_path: Path) -> None:
    with Interruption(active=True) as interruption:
        interruption.asked = "SIGTERM"
        with interruption.waiting():
            found = examine(None, net(), {}, {}, interruption)  # type: ignore[arg-type]
    assert "interrupted" in found.note
    assert found.record is None


def test_the_result_is_on_disk_before_the_look_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def watch(*_: Any) -> Examination:
        found.append((tmp_path / "result.json").exists() and (tmp_path / "model.safetensors").exists())
        return Examination()

    monkeypatch.setattr(sys.modules["heptane.training"], "examine", watch)
    fit_and_read(tmp_path)
    assert found == [True]


def test_without_held_out_data_there_are_pictures_and_no_mistakes(tmp_path: Path) -> None:
    _, record = fit_and_read(tmp_path, valid=None)
    assert record.get("examination") is None
    assert "Training images" in (tmp_path / "report.html").read_text()
    assert "Set samples aside for validation" in (tmp_path / "report.html").read_text()


def test_a_loader_and_a_regression(tmp_path: Path) -> None:
    images, labels = make_images(64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 16)
    _, record = fit_and_read(tmp_path / "a", loader, loader)
    assert record["examination"]["num_samples"] == 64
    assert 'alt="training image 1' in (tmp_path / "a" / "report.html").read_text()
    data = torch.randn(50, 3), torch.randn(50)
    _, record = fit_and_read(tmp_path / "b", data, data, model=torch.nn.Linear(3, 1))
    assert record["examination"]["kind"] == "numbers"
    page = (tmp_path / "b" / "report.html").read_text()
    assert "Predicted against true values" in page
    assert page.count('scope="row" class="asis">sample ') == 12


def test_a_picture_is_what_the_normalised_input_was_made_of() -> None:
    from PIL import Image

    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4) * 5
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    stacked = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
    inputs = (pixels / 255 - stacked[0]) / stacked[1]
    (uri,) = data_uris(inputs, Scale.of(inputs, mean, std))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(shown, pixels[0].permute(1, 2, 0).numpy())


def test_a_large_picture_is_made_small() -> None:
    from PIL import Image

    (uri,) = data_uris(torch.rand(1, 3, 300, 600), Scale((0.0,), (1.0,)))
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (112, 56)
    assert len(uri) < 20_000


def test_files_name_the_mistakes(tmp_path: Path) -> None:
    names = [f"cats/{n}.png" for n in range(96)]
    images, labels = make_images(96)
    _, record = fit_and_read(tmp_path, valid=(images, labels.roll(1)), about={"files": {"valid": names}})
    assert all(row["file"] == names[row["index"]] for row in record["examination"]["mistakes"])
    assert record["examination"]["mistakes"]
    assert re.search(r"cats/\d+\.png", (tmp_path / "report.html").read_text())
