"""Start workers on this host, and bring back what the first of them returned, or the one reason why they failed."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from heptane.base.errors import InputError, Interrupted
from heptane.base.lazy import torch

_SAME: tuple[type[BaseException], ...] = (
    InputError,
    FloatingPointError,
    Interrupted,
    KeyboardInterrupt,
)  # raised again as they are


PARENT = "HEPTANE_PARENT"  # the process that launches, for its workers: they end with it


def launch(
    function: Callable[..., Any],
    kwargs: dict[str, Any],
    workers: int,
    restarts: int = 0,
    timeout_seconds: float = 600.0,
) -> Any:
    """Run ``function(**kwargs)`` in ``workers`` new processes on this host; return what rank 0 returned.

    The processes are started by ``torch.distributed``'s elastic launcher, each as a fresh interpreter: functions and classes
    of the calling script travel by value, so it needs no ``if __name__ == "__main__"``. When one dies, all are started
    again, up to ``restarts`` times. A worker waits ``timeout_seconds`` for another.

    Raises:
        InputError, FloatingPointError, KeyboardInterrupt: a worker raised it, and it comes back with its message.
        RuntimeError: a worker failed otherwise; the message names the first to fail, what it raised, and where.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from heptane.distributed import pickling, process

    with tempfile.TemporaryDirectory(prefix="heptane-") as folder, _quiet_launcher(workers):
        task, answer = Path(folder, "task.pt"), Path(folder, "answer.pt")
        pickling.write((function, kwargs, timeout_seconds, process.settings()), task)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=f"heptane-{uuid.uuid4().hex}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder, "logs")), tee=Std.NONE),
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "heptane.distributed.worker", str(task), str(answer))
        except ChildFailedError as error:
            silent = {rank: f.exitcode for rank, f in error.failures.items() if f.exitcode not in (1, -signal.SIGTERM)}
            raise_failure(Path(folder, "failures"), workers, silent)
        except SignalException as error:
            said = _last_words(Path(folder, "failures"))
            if error.sigval == signal.SIGINT and not said:  # Ctrl-C where nothing was to be saved: as in any script
                raise KeyboardInterrupt from None
            raise Interrupted(said or signal.Signals(error.sigval).name) from None
        return torch.load(answer, weights_only=False)  # our own file, in a folder that only this user can read


@contextmanager
def _quiet_launcher(workers: int) -> Iterator[None]:
    """Its environment for the workers; and the caller's signal handlers and log level, which the launcher changes."""
    log, level = logging.getLogger("torch.distributed.elastic"), logging.getLogger("torch.distributed.elastic").level
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    wanted = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers)),
        PARENT: str(os.getpid()),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or workers that are started again find the addresses of the dead
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    with suppress(ValueError):  # in another thread than the main one there are no handlers
        handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def record_failure(error: BaseException, folder: Path) -> None:
    """For the process that launched this worker: what it raised. The first line is the cause, others follow from it."""
    text = "".join(traceback.format_exception(error)).rstrip()
    kind = next((kind.__name__ for kind in _SAME if isinstance(error, kind)), type(error).__name__)
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    fact = {"attempt": attempt, "rank": os.environ.get("RANK"), "kind": kind, "message": str(error), "traceback": text}
    with Path(folder, "failures").open("a") as file:
        file.write(json.dumps(fact) + "\n")


def _last_words(failures: Path) -> str:
    """What the first worker had to say about where it stopped for a signal."""
    facts = [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else []
    return next((str(fact["message"]) for fact in facts if fact["kind"] == "Interrupted" and fact["rank"] == "0"), "")


def raise_failure(failures: Path, workers: int, silent: dict[int, int]) -> NoReturn:
    """Raise the first failure on record; but where a worker ended ``silent``, the others failed for want of it."""
    for rank, code in silent.items():
        raise RuntimeError(
            f"worker {rank} of {workers} ended without a word (exit code {code}): was it killed, for memory say?"
        )
    if not failures.exists():
        raise RuntimeError(f"the {workers} workers could not start: what they printed says why")
    facts = [json.loads(line) for line in failures.read_text().splitlines()]
    fact = next(fact for fact in facts if fact["attempt"] == facts[-1]["attempt"])
    for kind in _SAME:
        if fact["kind"] == kind.__name__:
            raise kind(*filter(None, [fact["message"]]))
    summary = f"worker {fact['rank']} of {workers} failed with {fact['kind']}: {fact['message']}"
    raise RuntimeError(f"{summary}\n\n{fact['traceback']}")
