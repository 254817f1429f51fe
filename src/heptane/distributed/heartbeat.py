"""Heartbeats: each worker records its step, so that the others can name a worker that is missing."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch

if TYPE_CHECKING:
    from heptane.distributed.workers import Worker

ORIGINS = ("distributed/", "autograd/", "_tensor.py", "nn/parallel/", "_ops.py", "utils/_contextlib.py")
EVERY_SECONDS, GRACE_SECONDS = 1.0, 2.0
SIGNS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "gloo", "nccl", "socket")


def is_connection_error(error: BaseException) -> bool:
    """Whether PyTorch's communication raised ``error``.

    gloo raises plain ``RuntimeError``s, in a collective or in the backward pass that waits for one. So this looks at where
    the error was raised as well as at its message, since a model's own error may use the same words.
    """
    if isinstance(error, torch.distributed.DistError):
        return True
    files = [Path(frame.filename).as_posix() for frame in traceback.extract_tb(error.__traceback__)]
    origins = tuple(f"{Path(torch.__file__).parent.as_posix()}/{part}" for part in ORIGINS)
    raised_by_torch = bool(files) and files[-1].startswith(origins)
    return raised_by_torch and any(sign in str(error).lower() for sign in SIGNS)


class Heartbeat:
    """Record this worker's step in the process group's store, which survives the death of a worker."""

    def __init__(self, worker: Worker, timeout_seconds: float) -> None:
        self.worker, self.timeout_seconds = worker, timeout_seconds
        self._store: Any = None
        self._written_at = 0.0
        if worker.size > 1:
            c10d: Any = torch.distributed.distributed_c10d
            self._store = c10d.PrefixStore("heptane", c10d._get_default_store())
            self._write(0)

    @contextmanager
    def at(self, step: int, doing: str = "in step") -> Iterator[None]:
        """Wrap a collective operation: a connection error becomes a ``RuntimeError`` that names the missing workers."""
        if self._store is None:
            yield
            return
        if time.monotonic() - self._written_at >= EVERY_SECONDS:
            self._write(step)
        try:
            yield
        except RuntimeError as error:
            if not is_connection_error(error):
                raise
            raise RuntimeError(self._explain(step, doing)) from error

    def _write(self, step: int) -> None:
        self._written_at = time.monotonic()
        with suppress(RuntimeError):
            self._store.set(f"at/{self.worker.rank}", json.dumps([time.time(), step]))

    def _explain(self, step: int, doing: str) -> str:
        me = f"worker {self.worker.rank} of {self.worker.size}"
        missing = []
        with suppress(RuntimeError):  # the store is lost if its host died
            self._store.set(f"waits/{self.worker.rank}", "1")
            time.sleep(GRACE_SECONDS)  # until the other waiting workers have noticed too
            for rank in range(self.worker.size):
                if not self._store.check([f"waits/{rank}"]) and self._store.check([f"at/{rank}"]):
                    when, where = json.loads(self._store.get(f"at/{rank}"))
                    missing.append(f"worker {rank} (last heartbeat {time.time() - when:.0f} s ago, at step {where})")
        whom = ", ".join(missing) or "the other workers (none is known to be missing: was a connection lost?)"
        return (
            f"{me} waited {doing} {step} for {whom}: dead, stuck, or slower than "
            f"DataParallel.timeout_seconds={self.timeout_seconds:g}"
        )
