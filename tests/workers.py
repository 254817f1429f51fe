"""Workers that are forked from one process that has imported everything, since importing PyTorch takes seconds in each.

For tests of what several workers compute. Those of how workers are started, watched and started again use the real launcher.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
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
COMMAND_LINE = "import runpy, sys; sys.argv[1:] = {}; runpy.run_module('heptane.cli', run_name='__main__')"
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


def start(code: str, folder: Path, **environment: str) -> SERVER.Process:
    """Run a program in a process of its own, forked as workers are; what it prints is in ``folder``."""
    program = SERVER.Process(target=_run, args=(code, folder, environment))
    program.start()
    return program


def alone(code: str) -> Any:
    """What a program of ``benchmarks/`` prints last, from JSON. It may fork, as a process that has computed may not."""
    with tempfile.TemporaryDirectory(prefix="heptane-") as folder:
        program = start(f"import json, sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n{code}", Path(folder))
        program.join(500)
        program.kill()
        assert program.exitcode == 0, Path(folder, "stderr").read_text()[-3000:]
        return json.loads(Path(folder, "stdout").read_text().splitlines()[-1])


def _run(code: str, folder: Path, environment: dict[str, str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    exec(compile(code, "program", "exec"), {"__name__": "__main__"})


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
