"""A worker that dies or hangs is named, and a run that may restart continues from its checkpoint."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import assert_equal_weights, sgd
from tests.workers import fork_workers
from torch.utils.data import Dataset

import heptane as hp
from heptane.base.storage import remove
from heptane.session.run_folder import goes_on


class Trouble(Dataset[Any]):
    """Twelve samples; reading one of them as rank 1, for the first time, kills the worker or keeps it asleep."""

    def __init__(self, mark: Path, at: int, how: str) -> None:
        self.mark, self.at, self.how = mark, at, how
        self.x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.reads = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if os.environ.get("RANK") == "1" and self.reads > self.at and not self.mark.exists():
            self.mark.touch()
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return self.x[index], index % 2


def fit_troubled(data: Any, run_dir: Path | None, **parallel: Any) -> hp.Result:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2, **parallel), cyclical=hp.Cyclical())
    return hp.fit(model, data, optimizer=sgd, epochs=3, batch_size=4, tricks=tricks, run_dir=run_dir)


def test_a_worker_that_is_killed_is_started_again_and_the_result_is_that_of_a_run_without_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fork_workers(patch)
        straight = fit_troubled(Trouble(tmp_path / "mark", 10**9, "die"), None)
    handlers, threads = signal.getsignal(signal.SIGINT), os.environ.get("OMP_NUM_THREADS")
    result = fit_troubled(Trouble(tmp_path / "mark", 20, "die"), tmp_path / "run", restarts=1)
    assert signal.getsignal(signal.SIGINT) is handlers
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "mark").exists()
    assert_equal_weights(straight.model, result.model)
    assert [record["epoch"] for record in result.history] == [1, 2, 3]


@pytest.mark.usefixtures("forked")
def test_without_restarts_left_it_is_an_error_that_names_the_worker(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"worker 1 of 2 died without a traceback \(exit code -9\)"):
        fit_troubled(Trouble(tmp_path / "mark", 20, "die"), tmp_path / "run")
    with pytest.raises(hp.InputError, match=r"restarts=2.*run_dir"):
        fit_troubled(Trouble(tmp_path / "mark", 20, "die"), None, restarts=2)


def test_a_silent_worker_is_named_once_after_the_timeout_and_no_one_hangs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        fit_troubled(Trouble(tmp_path / "mark", 20, "sleep"), None, timeout_seconds=8)
    assert time.monotonic() - start < 55
    message = str(caught.value).splitlines()[0]
    assert "worker 0 of 2 waited" in message
    assert "for worker 1 (last heartbeat" in message
    assert "DataParallel.timeout_seconds=8" in message
    assert capfd.readouterr() == ("", "")


def test_only_the_unfinished_run_of_the_same_job_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "job").write_text("seven")
    assert not goes_on(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "eight")
    assert not goes_on(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "seven")
    assert goes_on(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert not goes_on(tmp_path)
    (checkpoints / "job").write_text("none")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    (tmp_path / "result.json").unlink()
    assert not goes_on(tmp_path)


def half(tmp_path: Path, keep: str, optimizer: Any) -> tuple[hp.Result, hp.Result]:
    """Two workers for one epoch, then one alone for the other."""
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = x, torch.arange(24) % 2
    settings = {"optimizer": optimizer, "epochs": 2, "batch_size": 8, "run_dir": tmp_path / "run"}
    found = []
    for workers, more in ((2, {"target": ("valid_loss", 1e9)}), (1, {"resume": True})):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2).double()
        tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=workers, keep=keep))
        found.append(hp.fit(model, data, data, tricks=tricks, **settings, **more))
    return found[0], found[1]


@pytest.mark.usefixtures("forked")
def test_with_fewer_workers_the_batch_is_kept_or_their_shares_are_and_the_rate_follows(tmp_path: Path) -> None:
    _, same = half(tmp_path / "batch", "batch", sgd)
    assert same.steps["planned"] == 6
    assert same.schedule["learning_rate"][-1] == 0.1
    assert "1 worker(s) from step 3 on; before, 2: the global batch size of 8" in " ".join(same.notes)
    _, followed = half(tmp_path / "share", "share", sgd)
    assert (followed.steps["planned"], followed.steps["applied"]) == (12, 12)
    assert followed.schedule["learning_rate"][-1] == pytest.approx(0.05)
    assert "1 worker(s) from step 6 on; before, 2: the global batch size is now 4" in " ".join(followed.notes)
    adam = partial(torch.optim.Adam, lr=0.1)
    _, rooted = half(tmp_path / "adam", "share", adam)
    assert rooted.schedule["learning_rate"][-1] == pytest.approx(0.1 / 2**0.5)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_from_the_middle_of_an_epoch_another_number_of_workers_goes_on(strategy: str, tmp_path: Path) -> None:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = x, torch.arange(24) % 2
    often = {"optimizer": partial(torch.optim.AdamW, lr=0.01), "epochs": 2, "batch_size": 5, "checkpoint_every": 1}

    def go(workers: int, **more: Any) -> hp.Result:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
        tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=workers, strategy=strategy), mixup=hp.Mixup(alpha=0.4))
        return hp.fit(model, data, data, tricks=tricks, keep_checkpoints=50, average_decay=0.9, **often, **more)

    whole = go(1, run_dir=tmp_path / "whole")
    for before, after in ((2, 1), (1, 2)):
        folder = tmp_path / f"{before} then {after}"
        go(before, run_dir=folder)
        for step in (8, 9, 10):
            remove(folder / "checkpoints" / f"step-{step:09d}")
        again = go(after, run_dir=folder, resume=True)
        for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        assert again.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], abs=1e-10)
        assert f"{after} worker(s) from step 7 on; before, {before}" in " ".join(again.notes)
