"""Workers that are forked from one process that has imported everything, since importing PyTorch takes seconds in each.

For tests of what several workers compute. Those of how workers are started, watched and started again use the real launcher.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import fit, random_data

import heptane as hp
from heptane.distributed import pickling, worker
from heptane.distributed.launch import raise_failure, torch_settings

TWO = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
IN_GROUP = hp.Tricks(data_parallel=hp.DataParallel())  # as many workers as run already
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",
        "heptane.fit",
        "heptane.distributed.batchnorm",
        "heptane.session.checkpoints.sharded",
        "heptane.distributed.sharding",
        "torchmetrics",
    ]
)


def fit_epoch(model: torch.nn.Module, train: Any = None, valid: Any = None, **settings: Any) -> hp.Result:
    """One epoch, on two workers where the tricks do not say otherwise."""
    return fit(model, random_data() if train is None else train, valid, **{"epochs": 1, "tricks": TWO, **settings})


def launch(
    function: Callable[..., Any], kwargs: dict[str, Any], workers: int, restarts: int = 0, timeout_seconds: float = 60.0
) -> Any:
    """As :func:`heptane.distributed.launch.launch`, but none is started again."""
    assert restarts == 0
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="heptane-") as folder:
        task, answer = Path(folder, "task.pt"), Path(folder, "answer.pt")
        pickling.write((function, kwargs, min(timeout_seconds, 60.0), torch_settings()), task)
        group = [SERVER.Process(target=_work, args=(rank, workers, port, task, answer)) for rank in range(workers)]
        for process in group:
            process.start()
        for process in group:
            process.join()
        codes = {rank: process.exitcode for rank, process in enumerate(group) if process.exitcode}
        if codes:
            raise_failure(Path(folder, "failures"), workers, {rank: code for rank, code in codes.items() if code != 1})
        return torch.load(answer, weights_only=False)


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on ``hp.fit`` forks its workers."""
    import heptane.training  # noqa: F401

    monkeypatch.setattr(sys.modules["heptane.training"], "launch", launch)


def alone(code: str) -> Any:
    """What a program that uses ``benchmarks/`` and forks prints last, from JSON: a process that has computed may not fork.

    Its coverage is not measured, which would take half as long again.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", f"import json, sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _work(rank: int, workers: int, port: int, task: Path, answer: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, OMP_NUM_THREADS="1")
    gc.freeze()  # collecting what was imported before the fork would copy its pages
    multiprocessing.set_start_method("fork", force=True)  # else a loader in here starts a fork server of its own
    worker.main(str(task), str(answer))
