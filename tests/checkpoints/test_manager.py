"""When checkpoints are written, which are kept, and what happens on a full or read-only disk."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import TRAIN, VALID, assert_equal_weights, checkpoint_steps, fit_mlp, mlp, sgd

import heptane as hp
from heptane.base import storage
from heptane.session import recorder
from heptane.session.checkpoints import checkpoint, manager
from heptane.session.checkpoints.manager import Interval

pytestmark = pytest.mark.usefixtures("undrawn")


def steps(folder: Path) -> list[int]:
    return checkpoint_steps(folder / "checkpoints")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, None),
        (500, Interval(steps=500)),
        ("500", Interval(steps=500)),
        ("30s", Interval(seconds=30.0)),
        ("5m", Interval(seconds=300.0)),
        ("1.5h", Interval(seconds=5400.0)),
        (" 2 min ", Interval(seconds=120.0)),
    ],
)
def test_an_interval_is_steps_or_a_time(text: Any, wanted: Any) -> None:
    assert Interval.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "0", 0, -3, "0s", "2.5", "often", "5 days", True, 1.5, float("nan"), "9" * 40, [], "1e3"]
)
def test_other_intervals_are_refused(text: Any, tmp_path: Path) -> None:
    with pytest.raises(
        hp.InputError, match=r"checkpoint_every=.*: expected a number of steps, at least 1, such as 500, or a time"
    ):
        fit_mlp(tmp_path / "run", checkpoint_every=text)
    assert not (tmp_path / "run").exists()


def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are saved from here on."""
    found: list[int] = []
    real = checkpoint.take_snapshot
    monkeypatch.setattr(
        manager.checkpoint, "take_snapshot", lambda run, step, history: (found.append(step), real(run, step, history))[1]
    )
    return found


def test_at_each_evaluation_unless_it_is_said_how_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = written(monkeypatch)
    fit_mlp(tmp_path / "a")
    assert found == [3, 6, 9, 12]
    del found[:]
    result = fit_mlp(tmp_path / "b", checkpoint_every=5)
    best = [r["valid_accuracy"] for r in result.history]
    not_worse = {3 * (i + 1) for i, value in enumerate(best) if value >= max(best[:i], default=-1)}
    assert found == sorted({5, 10, 12} | not_worse)


def test_by_time_it_is_saved_when_so_much_has_gone_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(manager.time, "monotonic", lambda: now[0])
    real = recorder.steps

    def ticking(run: Any, start: int = 0) -> Iterator[Any]:
        for event in real(run, start):
            now[0] += 10.0
            yield event

    monkeypatch.setattr(recorder, "steps", ticking)
    found = written(monkeypatch)
    hp.fit(
        mlp(), TRAIN, optimizer=sgd, epochs=4, batch_size=16, device="cpu", run_dir=tmp_path / "run", checkpoint_every="45s"
    )
    assert found == [5, 10, 12]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_stay_and_the_best(keep: int, tmp_path: Path) -> None:
    result = fit_mlp(tmp_path / "run", keep_checkpoints=keep, epochs=6)
    best = max(reversed(result.history), key=lambda record: record["valid_accuracy"])["step"]  # of equal ones the last
    assert result.best_step == best
    assert steps(tmp_path / "run") == sorted({*[18, 15, 12][:keep], best}, reverse=True)
    with pytest.raises(hp.InputError, match="keep_checkpoints=0"):
        fit_mlp(tmp_path / "run", keep_checkpoints=0, resume=True)


def test_a_damaged_checkpoint_is_passed_over_with_a_note_and_the_end_is_the_same(tmp_path: Path) -> None:
    whole = fit_mlp(tmp_path / "whole")
    fit_mlp(tmp_path / "run", target=("valid_loss", 1e9))
    fit_mlp(tmp_path / "run", resume=True, target=("valid_loss", 1e-9), max_seconds=1e-9, keep_checkpoints=5)
    newest = tmp_path / "run" / "checkpoints" / f"step-{steps(tmp_path / 'run')[0]:09d}"
    (newest / "state.safetensors").write_bytes(b"torn")
    again = fit_mlp(tmp_path / "run", resume=True)
    assert again.notes[-2].startswith(f"checkpoint {newest} is damaged (state.safetensors has 4 of ") or any(
        note.startswith(f"checkpoint {newest} is damaged (state.safetensors has 4 of ") for note in again.notes
    )
    assert_equal_weights(whole.model, again.model)


def test_a_checkpoint_that_cannot_be_written_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = storage.os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(threading.current_thread().name)
        if calls[-1] == "heptane-checkpoint" and 6 <= len(calls) <= 8:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(storage.os, "fsync", full)
    result = fit_mlp(tmp_path / "run", checkpoint_every=2, keep_checkpoints=20)
    assert result.steps["applied"] == 12
    said = [note for note in result.notes if "could not be written" in note]
    assert said
    assert said[0].endswith("the checkpoint could not be written ([Errno 28] No space left on device)")
    assert 12 in steps(tmp_path / "run")
    assert checkpoint.find_newest(tmp_path / "run" / "checkpoints")[1] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Two megabytes of memory as a file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mount: {made.stderr}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_on_a_disk_that_fills_up_the_result_is_there_and_the_last_good_checkpoint(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heptane.session.run_folder.LEAST_FREE_BYTES", 0)
    (small_disk / "ballast").write_bytes(bytes(2_000_000))
    with pytest.warns(UserWarning, match=r"cannot write .*: make room, and resume"):
        result = hp.fit(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 4)),
            TRAIN,
            VALID,
            optimizer=sgd,
            epochs=2,
            batch_size=16,
            device="cpu",
            run_dir=small_disk / "run",
        )
    assert result.steps["applied"] == 6
    assert any("No space left on device" in note for note in result.notes)
    checkpoint.find_newest(small_disk / "run" / "checkpoints")
    (small_disk / "ballast").unlink()


def test_where_a_disk_turns_read_only_training_goes_on_too(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptane.session.run_folder.LEAST_FREE_BYTES", 0)
    real = recorder.steps

    def steps_(run: Any, start: int = 0) -> Iterator[Any]:
        for event in real(run, start):
            if event.step == 7:
                subprocess.run(["mount", "--bind", small_disk / "run", small_disk / "run"], check=True)
                subprocess.run(["mount", "-o", "remount,ro,bind", small_disk / "run"], check=True)
            yield event

    monkeypatch.setattr(recorder, "steps", steps_)
    with pytest.warns(UserWarning, match=r"cannot write .*Read-only file system"):
        result = fit_mlp(small_disk / "run")
    assert result.steps["applied"] == 12
    subprocess.run(["umount", small_disk / "run"], check=True)
    monkeypatch.setattr(recorder, "steps", real)
    assert steps(small_disk / "run")[0] == 6
    again = fit_mlp(small_disk / "run", resume=True)
    assert_equal_weights(result.model, again.model)
    assert json.loads((small_disk / "run" / "result.json").read_text())["steps"]["applied"] == 12
