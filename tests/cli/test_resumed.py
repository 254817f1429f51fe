"""``heptane train --resume``: which flags may change, and which are refused by name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from heptane.cli import main

FAST = ["--data", "digits", "--model", "mlp", "--epochs", "1", "--batch-size", "120", "--tricks", "cyclical"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *FAST, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "0.02"], "--lr 0.02 with --resume, but the run has "),
        (["--clip-norm", "1"], "--clip-norm 1.0 with --resume, but the run has none: leave it out (these may change: --"),
        (["--mixup.alpha", "0.1"], "--mixup.alpha 0.1 with --resume, but the run has mixup off"),
        (["--cyclical.shape", "triangular"], "--cyclical.shape triangular with --resume, but the run has one_cycle"),
        (["--epochs", "2", "--batch-size", "60"], "--batch-size 60 with --resume, but the run has 120"),
        (["--no-cyclical"], "leave out other flags"),
        (["--out", "elsewhere"], "leave out other flags"),
    ],
)
def test_a_flag_that_would_make_another_run_of_it_is_refused_by_name(
    flags: list[str], said: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(finished), *flags]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_made_longer_and_the_new_length_is_kept(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads((finished / "result.json").read_text())
    again = ["--epochs", "2", "--patience", "9", "--batch-size", "120"]  # the last is what it has
    assert main(["train", "--resume", str(finished), *again]) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("note: new length:"))
    assert "2 epochs" in said
    assert "instead of 1 epochs" in said
    assert "the cycle now follows the new length" in said
    record = json.loads((finished / "result.json").read_text())
    assert record["history"][0] == first["history"][0]
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]
    assert any(note.startswith("new length: 2 epochs") for note in record["notes"])
    kept = tomllib.loads((finished / "settings.toml").read_text())
    assert (kept["epochs"], kept["patience"]) == (2, 9)
