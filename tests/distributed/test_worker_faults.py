"""Mistakes that go unnoticed with several workers: handled, or one clear error."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import random_data, seeded, sgd
from tests.workers import IN_GROUP, TWO, fit_epoch, launch, start
from torch import nn

import heptane as hp
from heptane.distributed.heartbeat import is_connection_error
from heptane.distributed.workers import Worker, check_environment, this_worker

# The parent is killed


KILLED = """
import tempfile, torch, heptane as hp
tempfile.tempdir = "TEMPORARY"
data = torch.randn(4096, 64), torch.randint(0, 3, (4096,))
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
hp.fit(net, data, optimizer=torch.optim.SGD, epochs=100000, batch_size=8, tricks=tricks, run_dir="RUN", checkpoint_every=20)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    parent = start(KILLED.replace("RUN", str(run)).replace("TEMPORARY", str(temporary)), tmp_path)
    try:
        assert _within(120, lambda: any((run / "checkpoints").glob("step-*")))
        workers = _children(parent.pid)
        assert len(workers) >= 2
        assert list(temporary.glob("heptane-*"))
    finally:
        parent.kill()
        parent.join()
    assert _within(20, lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not list(temporary.glob("heptane-*"))
    assert not (run / "result.json").exists()


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _within(seconds: float, condition: Any) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.2)
    return False


# Decisions from files are rank 0's


def two_fits_one_late(folder: str) -> list[int]:
    os.environ["TORCHELASTIC_RUN_ID"] = "job-1"
    steps = []
    for name in ("a", "b"):
        begun = Path(folder, f"{name} has begun")
        if os.environ["RANK"] == "0":
            begun.touch()
        else:
            assert _within(60, begun.exists)
            time.sleep(1.0)  # rank 0 would have made its folder by now
        result = fit_epoch(seeded(0), tricks=IN_GROUP, run_dir=f"{folder}/{name}")
        steps.append(result.steps["applied"])
    return steps


def test_two_runs_in_one_job_do_not_wait_for_each_other(tmp_path: Path) -> None:
    assert launch(two_fits_one_late, {"folder": str(tmp_path)}, 2) == [4, 4]


def refused_folder(folder: str) -> str:
    try:
        fit_epoch(seeded(0), tricks=IN_GROUP, run_dir=folder)
    except hp.InputError as error:
        return str(error)
    return ""


def test_a_folder_that_is_refused_is_refused_on_all_workers(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert "already holds a run" in launch(refused_folder, {"folder": str(tmp_path)}, 2)


# Settings are those of one run


def differs(name: str) -> str:
    values: dict[str, Any] = {
        "seed": (0, 1),
        "epochs": (1, 2),
        "accumulate": (1, 2),
        "clip_norm": (None, 0.1),
        "evaluate_every_epochs": (1.0, 0.5),
        "target": (0.9, 0.8),
        "metrics": (None, {"same": lambda predictions, targets: 1.0}),
        "optimizer": (sgd, lambda params: torch.optim.SGD(params, lr=0.2)),
        "tricks": (IN_GROUP, hp.Tricks(data_parallel=hp.DataParallel(), label_smoothing=hp.LabelSmoothing())),
    }
    try:
        fit_epoch(seeded(0), valid=random_data(20), **{"tricks": IN_GROUP} | {name: values[name][int(os.environ["RANK"])]})
    except hp.InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("seed", "seed is 0 in worker 0, but 1 in worker 1"),
        ("epochs", "epochs is 1"),
        ("accumulate", "accumulate is 1"),
        ("clip_norm", "clip_norm is None"),
        ("evaluate_every_epochs", "in worker 0"),
        ("target", "goal is"),
        ("metrics", "metrics"),
        ("optimizer", r"lr is [0.1] in worker 0, but [0.2] in worker 1"),
        ("tricks", "label_smoothing"),
    ],
)
def test_settings_that_differ_between_workers_are_refused(name: str, said: str) -> None:
    found = launch(differs, {"name": name}, 2)
    assert said in found
    assert "pass the same value in all workers" in found


# Who failed, by type and origin


class Timed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and os.environ.get("RANK") == "1":
            raise RuntimeError("nccl timeout, connection reset by peer: my own words")
        return super().forward(x)


@pytest.mark.usefixtures("forked")
def test_a_models_error_is_its_own_whatever_its_words() -> None:
    with pytest.raises(RuntimeError, match=r"worker 1 of 2 failed with RuntimeError: nccl timeout"):
        fit_epoch(Timed(4, 3))


def test_errors_are_told_apart_by_where_they_were_raised() -> None:
    def raised(make: Any) -> BaseException:
        try:
            make()
        except Exception as error:
            return error
        raise AssertionError

    def own() -> None:
        raise RuntimeError("gloo: connection closed by peer")

    assert not is_connection_error(raised(own))
    assert not is_connection_error(raised(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert is_connection_error(raised(lambda: (_ for _ in ()).throw(torch.distributed.DistNetworkError("broken pipe"))))


# Models that were built without a seed


def unseeded() -> dict[str, torch.Tensor]:
    model = nn.Sequential(seeded(int(os.environ["RANK"])), nn.BatchNorm1d(3))  # as processes that do not seed build it
    fit_epoch(model, tricks=IN_GROUP)
    return model.state_dict()


def test_models_that_differ_between_workers_start_as_rank_0s() -> None:
    found = launch(unseeded, {}, 2)
    plain = nn.Sequential(seeded(0), nn.BatchNorm1d(3))
    launched = launch(lambda: fit_epoch(plain, tricks=IN_GROUP).model.state_dict(), {}, 2)
    torch.testing.assert_close(found, launched, atol=0, rtol=0)


def lazy() -> list[float]:
    torch.manual_seed(int(os.environ["RANK"]))
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))
    held: list[int] = []

    def optimizer(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        held.extend(p.numel() for p in params)
        return sgd(params)

    fit_epoch(model, tricks=IN_GROUP, optimizer=optimizer)
    return [float(sum(held)), float(sum(p.detach().double().sum() for p in model.parameters()))]


def test_lazy_layers_of_processes_that_do_not_seed_are_real_and_alike_before_the_optimizer_is_made() -> None:
    count, total = launch(lazy, {}, 2)  # copies that differ are an error
    assert count == 4 * 5 + 5 + 5 * 3 + 3
    assert torch.isfinite(torch.tensor(total))


def different() -> str:
    try:
        fit_epoch(nn.Linear(4, 3 + int(os.environ["RANK"])), tricks=IN_GROUP)
    except hp.InputError as error:
        return str(error)
    return ""


def test_models_of_two_kinds_are_refused() -> None:
    assert "build the same in each" in launch(different, {}, 2)


# What a launcher left behind; layers of all kinds are in test_worker_layers.py


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("left", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": ""}, {"LOCAL_RANK": "3"}])
def test_a_part_of_what_a_launcher_sets_is_no_launcher(left: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    for tricks in (IN_GROUP, TWO):
        assert fit_epoch(nn.Linear(4, 3), tricks=tricks).steps["applied"] == 4


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT not set"),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK invalid"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK invalid"),
    ],
)
def test_what_a_launcher_left_in_the_environment_is_one_clear_error(
    left: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(hp.InputError, match=f"{message}.*unset them"):
        fit_epoch(nn.Linear(4, 3), tricks=IN_GROUP)


def test_workers_that_nobody_started_are_not_waited_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    assert check_environment(600.0) <= 60.0
    assert check_environment(5.0) == 5.0
    tricks = hp.Tricks(data_parallel=hp.DataParallel(timeout_seconds=1.0))
    with pytest.raises(hp.InputError, match=r"other workers were not found.*RANK=0, WORLD_SIZE=2.*unset them"):
        fit_epoch(nn.Linear(4, 3), tricks=tricks)
    assert this_worker() == Worker()
