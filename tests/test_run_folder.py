"""A run's folder: what is refused, what ``force`` removes, and strict JSON."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from tests.workers import COMMAND_LINE, start

import heptane as hp
from heptane.base.errors import InputError
from heptane.base.storage import write_text
from heptane.cli import main
from heptane.session import run_folder
from heptane.session.run_folder import HOLDER, LOCK, OWN, RunFolder, check_folder, clean


def old_run(folder: Path) -> Path:
    """A folder that holds an older run, and files of the user's beside it and among its checkpoints."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("result.json", "events.jsonl", "model.safetensors", "report.html", "settings.toml"):
        (folder / name).write_text(f"old {name}")
    for name in ("step-000000007", ".step-000000009"):
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "state.safetensors").write_text("old")
    (folder / "notes.txt").write_text("mine")
    return folder


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in (LOCK, HOLDER)}


def test_a_new_folder_is_made_with_its_parents_and_stays_empty(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a" / "b")
    assert everything(tmp_path) == {"a", "a/b"}


def test_a_folder_with_only_files_of_the_users_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(str(tmp_path)).event("epoch", {})
    assert everything(tmp_path) == {"notes.txt", "events.jsonl"}


@pytest.mark.parametrize("name", OWN)
def test_a_folder_that_holds_any_part_of_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    for check in (RunFolder, check_folder):
        with pytest.raises(InputError, match=rf"already holds a run \({name}\): choose another folder, --force or --resume"):
            check(tmp_path)
    assert (tmp_path / name).read_text() == "x"


def test_force_removes_the_older_run_and_nothing_of_the_users(tmp_path: Path) -> None:
    RunFolder(old_run(tmp_path), force=True)
    assert everything(tmp_path) == {"notes.txt"}


def test_force_keeps_what_the_user_put_among_the_checkpoints(tmp_path: Path) -> None:
    (old_run(tmp_path) / "checkpoints" / "best.pt").write_text("mine")
    RunFolder(tmp_path, force=True)
    assert everything(tmp_path) == {"notes.txt", "checkpoints", "checkpoints/best.pt"}


def test_force_removes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights.pt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "mine")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "mine" / "weights.pt")
    RunFolder(tmp_path / "run", force=True)
    assert everything(tmp_path) == {"mine", "mine/weights.pt", "run"}


def test_resume_keeps_everything_even_with_force(tmp_path: Path) -> None:
    before = everything(old_run(tmp_path))
    for force in (False, True):
        RunFolder(tmp_path, force=force, resume=True)
        assert everything(tmp_path) == before


def test_a_file_in_the_way_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        for check in (RunFolder, check_folder):
            with pytest.raises(InputError, match=r"cannot write to .*is a file, not a folder\): choose another folder"):
                check(path, force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(InputError, match="no right to write"):
        RunFolder(tmp_path / "run")
    assert everything(tmp_path) == set()


def test_a_folder_that_refuses_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot write to .* \(Read-only file system\): choose another folder"):
        RunFolder(tmp_path)


@pytest.mark.parametrize("path", ["", 5, b"", ["runs"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InputError, match="expected the path of a folder"):
        RunFolder(path)


def test_a_path_that_no_system_accepts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write to"):
        RunFolder(str(tmp_path / "a\0b"))
    with pytest.raises(InputError, match="cannot write to"):
        RunFolder(tmp_path / ("n" * 300))


def test_a_full_disk_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 5 << 20

    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: Usage)
    for check in (RunFolder, check_folder):
        with pytest.raises(InputError, match="has 5 MiB free: at least 64 MiB are needed"):
            check(tmp_path / "run")
    assert everything(tmp_path) == set()


def test_checking_makes_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert everything(tmp_path) == set()


def test_events_are_lines_of_strict_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.event("epoch", {"epoch": 1, "train_loss": math.nan, "name": "zwölf\n"})
    folder.event("end", {"metrics": {}})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines)
    assert {key: first[key] for key in ("event", "epoch", "train_loss", "name")} == {
        "event": "epoch",
        "epoch": 1,
        "train_loss": None,
        "name": "zwölf\n",
    }
    assert second["event"] == "end"
    assert first["time"] <= second["time"]


def test_clean_makes_anything_strict_json() -> None:
    dirty = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf, 1.5],
        "tuple": (1, True, None),
        "path": Path("a/b"),
        3: "three",
        "array": np.array([1.0, np.nan]),
        "scalar": np.float32(0.5),
        "count": np.int64(7),
        "yes": np.bool_(True),
        "tensor": torch.tensor([1, 2]),
        "loss": torch.tensor(2.0),
        "dtype": torch.bfloat16,
    }
    assert clean(dirty) == {
        "nan": None,
        "inf": [None, None, 1.5],
        "tuple": [1, True, None],
        "path": "a/b",
        "3": "three",
        "array": [1.0, None],
        "scalar": 0.5,
        "count": 7,
        "yes": True,
        "tensor": [1, 2],
        "loss": 2.0,
        "dtype": "torch.bfloat16",
    }
    json.dumps(clean(dirty), allow_nan=False)


def test_a_text_is_replaced_whole_and_leaves_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "one ü \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "one ü ?"

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "two")
    assert everything(tmp_path) == {"a.txt"}
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "one ü ?"


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    for force in (False, True):
        with pytest.raises(
            InputError, match=rf"another run is working in .* \(process {os.getpid()} on .*, since .*\): wait for"
        ):
            RunFolder(tmp_path, force=force, resume=not force)
    first.close()
    second = RunFolder(tmp_path)
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_stale(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    code = (
        "import os; from heptane.session.run_folder import RunFolder; "
        f"f = RunFolder({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    )
    killed = start(code, tmp_path_factory.mktemp("printed"))
    killed.join(60)
    assert killed.exitcode == -9
    assert (tmp_path / LOCK).exists()
    RunFolder(tmp_path).close()


WAITING_MODEL = """
import os, threading, time
from pathlib import Path
import torch
from tests.workers import COMMAND_LINE, start

class Waits(torch.nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        if self.passes == 20 and "HERE" in os.environ:
            for thread in threading.enumerate():
                if thread.name == "heptane-checkpoint":
                    thread.join()
            here = Path(os.environ["HERE"])
            (here / "waits").touch()
            while not (here / "go").exists():
                time.sleep(0.02)
        return super().forward(x.flatten(1))

def make(input_shape, num_classes):
    return Waits(input_shape[-1] * input_shape[-2], num_classes)
"""


def test_a_second_run_is_refused_while_the_first_works_and_the_first_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_net.py").write_text(WAITING_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=draw.integers(0, 255, (100, 4, 4), dtype=np.uint8), y=np.arange(100) % 3)
    settings = ["train", "--data", str(tmp_path / "d.npz"), "--model", "my_net:make", "--epochs", "6", "--batch-size", "16"]
    settings += ["--tricks", "none", "--checkpoint-every", "5"]
    out = tmp_path / "run"
    first = start(COMMAND_LINE.format([*settings, "--out", str(out)]), tmp_path, HERE=str(tmp_path))
    try:
        until = time.monotonic() + 90
        while not (tmp_path / "waits").exists() and first.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        working = f"another run is working in {out} (process {first.pid} on "
        assert refused([*settings, "--out", str(out)], capsys).startswith(f"heptane: {out} already holds a run")
        assert refused([*settings, "--out", str(out), "--force"], capsys).startswith(f"heptane: {working}")
        assert refused(["train", "--resume", str(out)], capsys).startswith(f"heptane: {working}")
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    finally:
        (tmp_path / "go").touch()
    first.join(60)
    assert first.exitcode == 0, (tmp_path / "stderr").read_text()
    record = json.loads((out / "result.json").read_text())
    assert record["steps"]["applied"] == record["steps"]["planned"]
    assert not (out / LOCK).exists()


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error; the plan and notes on the data may come before it."""
    capsys.readouterr()
    assert main(command) == 2
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("heptane: ")] == [last]
    return last


def test_what_a_killed_run_had_started_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = filelock.FileLock(tmp_path / LOCK, thread_local=False)
    held.acquire()
    (tmp_path / HOLDER).write_text(json.dumps({"pid": 2**22 - 3, "host": socket.gethostname(), "since": "then"}))
    threading.Timer(0.3, held.release).start()
    RunFolder(tmp_path).close()
    held.acquire()
    (tmp_path / HOLDER).write_text("{}")
    monkeypatch.setattr(run_folder, "DYING_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"another run is working in \S+: wait for it, stop it, or choose another folder"):
        RunFolder(tmp_path)
    held.release()


def test_the_holder_on_another_host_is_taken_to_live(tmp_path: Path) -> None:
    assert run_folder.alive({"pid": 1, "host": "elsewhere"})
    assert run_folder.alive({"pid": os.getpid(), "host": socket.gethostname()})
    assert not run_folder.alive({"pid": 2**22 - 3, "host": socket.gethostname()})
    assert not run_folder.alive({})
    for text in ("", "[]", "{"):
        (tmp_path / HOLDER).write_text(text)
        assert run_folder.holder(tmp_path) == {}


def test_a_line_that_cannot_be_written_is_remembered(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "events.jsonl").mkdir()
    folder.event("epoch", {})
    assert folder.unwritten == f"{tmp_path / 'events.jsonl'} (Is a directory)"


def test_progress_is_shown_and_not_kept_and_the_end_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setattr("heptane.session.listeners.SHOW_SECONDS", 0)
    monkeypatch.setattr("heptane.report.console.Progress.update", lambda self, step, **facts: shown.append(step))
    data = torch.randn(32, 4), torch.arange(32) % 2
    folder = tmp_path / "run"
    hp.fit(torch.nn.Linear(4, 2), data, optimizer="sgd", epochs=2, batch_size=8, run_dir=folder, progress=True)
    assert shown == list(range(1, 9))
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert "step" not in kinds
    assert kinds.count("end") == 1
    assert kinds[-1] == "end"
