"""Launch workers on this host; return rank 0's result, or raise the error that made them fail."""

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

# Errors of a worker that the launcher raises again with their own type.
_RERAISED: tuple[type[BaseException], ...] = (InputError, FloatingPointError, Interrupted, KeyboardInterrupt)
PARENT = "HEPTANE_PARENT"  # the launcher's process id, for its workers: they exit when it does


def launch(
    function: Callable[..., Any],
    kwargs: dict[str, Any],
    workers: int,
    restarts: int = 0,
    timeout_seconds: float = 600.0,
) -> Any:
    """Run ``function(**kwargs)`` in ``workers`` new processes on this host; return rank 0's result.

    Uses ``torch.distributed``'s elastic launcher. Functions and classes of the calling script are pickled by value, so it
    needs no ``if __name__ == "__main__"``.

    Args:
        restarts: how often to restart all workers after one dies.
        timeout_seconds: how long a worker waits for another.

    Raises:
        InputError, FloatingPointError, KeyboardInterrupt: a worker raised it.
        RuntimeError: a worker failed otherwise; the message names the first to fail, with its traceback.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from heptane.distributed import pickling

    with tempfile.TemporaryDirectory(prefix="heptane-") as folder, _quiet_launcher(workers):
        task, answer = Path(folder, "task.pt"), Path(folder, "answer.pt")
        pickling.write((function, kwargs, timeout_seconds, torch_settings()), task)
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
            killed = {rank: f.exitcode for rank, f in error.failures.items() if f.exitcode not in (1, -signal.SIGTERM)}
            raise_failure(Path(folder, "failures"), workers, killed)
        except SignalException as error:
            facts = _read_failures(Path(folder, "failures"))  # rank 0's message says where it stopped
            message = next((f["message"] for f in facts if f["kind"] == "Interrupted" and f["rank"] == "0"), "")
            if error.sigval == signal.SIGINT and not message:  # Ctrl-C with nothing to save
                raise KeyboardInterrupt from None
            raise Interrupted(message or signal.Signals(error.sigval).name) from None
        return torch.load(answer, weights_only=False)  # our own file, in a folder that only this user can read


@contextmanager
def _quiet_launcher(workers: int) -> Iterator[None]:
    """Set the workers' environment; restore the caller's signal handlers and log level, which the launcher changes."""
    log, level = logging.getLogger("torch.distributed.elastic"), logging.getLogger("torch.distributed.elastic").level
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    wanted = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers)),
        PARENT: str(os.getpid()),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else restarted workers find the addresses of dead ones
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    with suppress(ValueError):  # only the main thread can set handlers
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
    """Append a worker's error to the file ``failures`` for the launcher; the first line is the cause of later ones."""
    text = "".join(traceback.format_exception(error)).rstrip()
    kind = next((kind.__name__ for kind in _RERAISED if isinstance(error, kind)), type(error).__name__)
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    fact = {"attempt": attempt, "rank": os.environ.get("RANK"), "kind": kind, "message": str(error), "traceback": text}
    with Path(folder, "failures").open("a") as file:
        file.write(json.dumps(fact) + "\n")


def _read_failures(file: Path) -> list[dict[str, Any]]:
    """What :func:`record_failure` wrote."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def raise_failure(failures: Path, workers: int, killed: dict[int, int]) -> NoReturn:
    """Raise the cause of a failure: a worker that died without a traceback (``killed``: rank to exit code), or else the
    first recorded error, since the others follow from it."""
    for rank, code in killed.items():
        raise RuntimeError(
            f"worker {rank} of {workers} died without a traceback (exit code {code}): was it killed, perhaps out of memory?"
        )
    facts = _read_failures(failures)
    if not facts:
        raise RuntimeError(f"the {workers} workers could not start: see their output above")
    fact = next(fact for fact in facts if fact["attempt"] == facts[-1]["attempt"])
    for kind in _RERAISED:
        if fact["kind"] == kind.__name__:
            raise kind(*filter(None, [fact["message"]]))
    summary = f"worker {fact['rank']} of {workers} failed with {fact['kind']}: {fact['message']}"
    raise RuntimeError(f"{summary}\n\n{fact['traceback']}")


def torch_settings() -> dict[str, Any]:
    """PyTorch's global settings, which its workers take over."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device().type,
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only_warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "anomalies": torch.is_anomaly_enabled(),
    }


def apply_torch_settings(found: dict[str, Any]) -> None:
    """Apply what :func:`torch_settings` returned in another process."""
    torch.set_default_dtype(found["dtype"])
    if found["device"] != torch.get_default_device().type:
        torch.set_default_device(found["device"])
    torch.set_float32_matmul_precision(found["matmul"])
    torch.use_deterministic_algorithms(found["deterministic"], warn_only=found["only_warns"])
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = found["cudnn"]
    torch.autograd.set_detect_anomaly(found["anomalies"])
