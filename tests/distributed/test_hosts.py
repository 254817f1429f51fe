"""Two and three hosts, as network namespaces: train over ``torchrun``'s own rendezvous, lose a host, cut a link.

Needs root and ``ip``. ``make test-hosts`` runs it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from heptane.cli import main

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from namespaces import address, cut, kill, network, start, why_not

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(why_not()), reason=why_not())]
TRAIN = ["train", "--data", "digits", "--model", "mlp", "--lr", "0.02", "--batch-size", "120", "--tricks", "cyclical"]


STARTED: list[subprocess.Popen[Any]] = []


class Job:
    """One elastic job over hosts; each host's launcher writes to its own log."""

    def __init__(self, out: Path, nodes: str, *flags: str) -> None:
        self.out, self.nodes, self.flags = out, nodes, flags
        self.launchers: dict[int, subprocess.Popen[Any]] = {}

    def launch(self, host: int) -> None:
        """``torchrun`` on a host, as a person would type it there."""
        keep = "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=3,join_timeout=90"
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", self.nodes, "--nproc-per-node", "1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-id", "seven", "--rdzv-endpoint", f"{address(0)}:29431"]
        command += ["--rdzv-conf", f"is_host={str(host == 0).lower()},{keep}", "--local-addr", address(host)]
        command += ["--max-restarts", "5", "--monitor-interval", "0.2", "-m", "heptane.cli", *TRAIN, "--workers", "auto"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or a host that comes back waits in vain for its address
        self.out.parent.mkdir(parents=True, exist_ok=True)
        flags = [*self.flags, "--out", str(self.out)]
        with (self.out.parent / f"host{host}.log").open("ab") as log:
            self.launchers[host] = start(host, [*command, *flags], env=environment, stdout=log, stderr=log)
        STARTED.append(self.launchers[host])

    def kill(self, host: int) -> None:
        """The launcher and its worker, without a word."""
        kill(host)
        self.launchers.pop(host).wait(10)

    def step(self) -> int:
        """Of the newest checkpoint."""
        found = [int(path.stem.split("-")[1]) for path in (self.out / "checkpoints").glob("step-*")]
        return max(found, default=0)

    def logs(self) -> str:
        """What every host printed."""
        return "\n".join(path.read_text() for path in sorted(self.out.parent.glob("host*.log")))

    def until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        """Wait, while the job lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.logs()[-6000:]
            time.sleep(0.1)

    def result(self, hosts: list[int]) -> dict[str, Any]:
        """The record, once the launchers of ``hosts`` are done."""
        for host in hosts:
            assert self.launchers[host].wait(150) == 0, self.logs()[-6000:]
        record: dict[str, Any] = json.loads((self.out / "result.json").read_text())
        return record


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[None]:
    with network(request.param):
        yield
    for launcher in STARTED:
        launcher.wait(10)
    STARTED.clear()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("hosts", [2], indirect=True)
def test_two_hosts_are_one_worker(hosts: None, tmp_path: Path) -> None:
    job = Job(tmp_path / "job" / "run", "2", "--epochs", "2")
    job.launch(0)
    job.launch(1)
    assert job.result([0, 1])["settings"]["workers"] == 2
    assert main([*TRAIN, "--epochs", "2", "--out", str(tmp_path / "alone")]) == 0
    alone, together = weights(tmp_path / "alone"), weights(job.out)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-5)
    assert job.logs().count("wall clock") == 1  # rank 0 speaks alone


LONG = ("--epochs", "300", "--evaluate-every-epochs", "10")


@pytest.mark.parametrize("hosts", [3], indirect=True)
def test_a_host_that_dies_is_done_without_and_one_that_comes_back_is_taken_in(hosts: None, tmp_path: Path) -> None:
    job = Job(tmp_path / "job" / "run", "2:3", *LONG)
    for host in range(3):
        job.launch(host)
    job.until(lambda: job.step() >= 240)
    job.kill(2)
    left = job.step()
    job.until(lambda: job.step() > left)
    job.launch(2)
    record = job.result([0, 1, 2])
    assert record["settings"]["workers"] == 3
    notes = " ".join(record["notes"])
    assert re.search(
        r"3 worker\(s\) from step \d+ on; before, 2: the global batch size of 120 and the learning rate stay", notes
    )
    assert record["steps"]["applied"] == record["steps"]["planned"]
    assert main([*TRAIN, *LONG, "--out", str(tmp_path / "alone")]) == 0
    alone, together = weights(tmp_path / "alone"), weights(job.out)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-2)


@pytest.mark.parametrize("hosts", [3], indirect=True)
def test_a_host_whose_link_is_cut_is_done_without(hosts: None, tmp_path: Path) -> None:
    job = Job(tmp_path / "job" / "run", "2:3", *LONG, "--data-parallel.timeout-seconds", "6")
    for host in range(3):
        job.launch(host)
    job.until(lambda: job.step() >= 240)
    cut(2)
    record = job.result([0, 1])
    assert record["settings"]["workers"] == 2
    assert record["steps"]["applied"] == record["steps"]["planned"]
    assert record["metrics"]["valid_accuracy"] > 0.9
