"""The plan that ``heptane train`` prints: short, a batch size that fits the data, a budget that is kept."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heptane.cli import main
from heptane.pretrained.hubs import cached, efficientnet_hub
from heptane.report.examination.advice import advise


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """24 coloured pictures of two classes, 40x32 pixels, some transparent."""
    for label, name in enumerate(("warm", "cold")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(100 * label + i).integers(0, 120, (5, 4, 4), dtype="u1")
            noise[..., 0 if label == 0 else 2] += 120
            noise[..., 3] = 255 if i % 3 else 200
            image = Image.fromarray(noise).resize((32, 40), Image.Resampling.BICUBIC)
            image.save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "find_pretrained", lambda: None)


def plan_of(printed: str) -> list[str]:
    lines = printed.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("data "))
    last = next(i for i, line in enumerate(lines) if line.startswith("time "))
    return lines[first : last + 1]


@pytest.mark.parametrize("data", ["pictures", "digits"])
def test_the_plan_has_at_most_ten_lines_and_says_why(
    data: str, pictures: Path, none_installed: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = str(pictures) if data == "pictures" else data
    assert main(["train", "--data", name, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    lines = plan_of(capsys.readouterr().out)
    assert len(lines) <= 10
    assert [line.split()[0] for line in lines][-1] == "time"
    assert all(len(line) <= 125 for line in lines)
    assert {"data", "model", "batch", "length", "rate", "tricks"} <= {line.split()[0] for line in lines}
    if data == "pictures":
        assert "pip install" in next(line for line in lines if line.startswith("model"))


def test_a_folder_trains_without_a_flag_and_its_settings_repeat_it(
    pictures: Path, none_installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(pictures), "--epochs", "4", "--out", str(tmp_path / "a")]) == 0
    assert len(plan_of(capsys.readouterr().err)) <= 10
    content = tomllib.loads((tmp_path / "a" / "settings.toml").read_text())
    assert content["batch_size"] <= 20
    assert {"image_size", "lr", "augment", "optimizer", "evaluate_every_epochs"} <= set(content)
    assert main(["train", "--config", str(tmp_path / "a" / "settings.toml"), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert main(["evaluate", "--run", str(tmp_path / "a")]) == 0


def test_the_plan_of_a_resumed_run_does_not_say_that_its_settings_were_given(
    pictures: Path, none_installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "--data", str(pictures), "--image-size", "24", "--epochs", "1", "--out", out]) == 0
    assert any(line.endswith("24x24 pixels: given") for line in plan_of(capsys.readouterr().err))
    assert main(["train", "--resume", out, "--epochs", "2"]) == 0
    text = "\n".join(plan_of(capsys.readouterr().err))
    assert "24x24 pixels: as in the resumed run" in text
    assert "given" not in text
    assert "not asked for" not in text
    assert "--budget" not in text


def test_a_budget_is_kept(pictures: Path, none_installed: None, tmp_path: Path) -> None:
    began = time.time()
    flags = ["--epochs", "100000", "--budget", "6s", "--evaluate-every-epochs", "1000"]
    earlier = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heptane.cli.planning.process_start", lambda: earlier)
        assert main(["train", "--data", str(pictures), *flags, "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["steps"]["applied"] < record["steps"]["planned"]
    assert any(note.startswith(f"time ran out after step {record['history'][-1]['step']} of ") for note in record["notes"])
    assert (advise(record)[0].title, advise(record)[0].command.split()[-2:]) == ("Give it more time", ["--budget", "12s"])
    assert time.time() - began < 60  # of a busy machine: without the budget it would be hours


@pytest.mark.skipif(not efficientnet_hub.is_installed(), reason="the extra pretrained is not installed")
def test_pictures_start_from_imagenets_weights_and_their_frozen_part_is_computed_once(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--image-size", "32", "--epochs", "3", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", str(pictures), *flags]) == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["model"]["name"] == "efficientnet-lite0"
    assert sum("frozen features cached" in note for note in record["notes"]) == 1
    assert record["data"]["mean"] == [0.485, 0.456, 0.406]
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0


def test_what_is_frozen_can_be_given_where_the_weights_are_the_default(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cached.Pretrained(efficientnet_hub.NAME, efficientnet_hub.NAME, "found")
    monkeypatch.setattr(cached, "find_pretrained", lambda: found)
    flags = ["train", "--data", str(pictures), "--image-size", "32", "--dry-run", "--out", str(tmp_path / "run")]
    for own, expected in (([], 'mode = "head"'), (["--transfer.freeze", "16"], "freeze = 16")):
        assert main([*flags, *own]) == 0
        printed = capsys.readouterr().out
        assert expected in printed
        assert 'weights = "efficientnet-lite0"' in printed


def test_without_the_extra_the_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from heptane.base.errors import InputError
    from heptane.pretrained.models import build

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r'efficientnet-lite0.*pip install "heptane\[pretrained\]"'):
        build("efficientnet-lite0", input_shape=(3, 64, 64), num_classes=2)
    with pytest.raises(InputError, match="colour images"):
        build("efficientnet-lite0", input_shape=(1, 28, 28), num_classes=2)


def test_other_weights_are_found_in_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_hub, "is_installed", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "transformers" else None)
    assert cached.find_pretrained() is None
    file = tmp_path / "models--microsoft--resnet-18" / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    found = cached.find_pretrained()
    assert found is not None
    assert found.model == "hf:microsoft/resnet-18"


def test_a_rate_that_is_chosen_is_not_scaled_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = [
        "train",
        "--data",
        "digits",
        "--optimizer",
        "sgd",
        "--batch-size",
        "32",
        "--dry-run",
        "--out",
        str(tmp_path / "run"),
    ]
    rates = []
    for tricks in ("cyclical", "cyclical,lr_scaling"):
        assert main([*flags, "--tricks", tricks]) == 0
        printed = capsys.readouterr().out
        rates.append(float(next(line for line in printed.splitlines() if line.startswith("lr = ")).split()[-1]))
    assert rates[1] / rates[0] == pytest.approx(256 / 32)


def test_a_model_that_is_not_known_is_refused_before_anything_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "digits", "--model", "auto", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("heptane: model='auto' is not known")
    assert printed.err.count("\n") == 1
