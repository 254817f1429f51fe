"""Several workers keep a note of where they are, so that the one that is missing can be named by those that wait for it."""

from __future__ import annotations

import json
import time
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


def of_connection(error: BaseException) -> bool:
    """Whether PyTorch's communication raised ``error``, by where it comes from: a model's own error may use any words.

    gloo's errors are plain ``RuntimeError``s, which come out of a collective, or of the backward pass that waits for one.
    """
    if isinstance(error, torch.distributed.DistError):
        return True
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = Path(trace.tb_frame.f_code.co_filename).as_posix()
    root = Path(torch.__file__).parent.as_posix()
    return any(raised_in.startswith(f"{root}/{part}") for part in ORIGINS) and any(
        sign in str(error).lower() for sign in SIGNS
    )


class Heartbeat:
    """Written to the store of the process group, which outlives a worker."""

    def __init__(self, worker: Worker, timeout_seconds: float) -> None:
        self.worker, self.timeout_seconds = worker, timeout_seconds
        self._store: Any = None
        self._noted = 0.0
        if worker.size > 1:
            c10d: Any = torch.distributed.distributed_c10d
            self._store = c10d.PrefixStore("heptane", c10d._get_default_store())
            self._note(0)

    @contextmanager
    def at(self, step: int, doing: str = "in step") -> Iterator[None]:
        """Around what the workers do together; an error of the connection comes out as one that names who is missing."""
        if self._store is None:
            yield
            return
        if time.monotonic() - self._noted >= EVERY_SECONDS:
            self._note(step)
        try:
            yield
        except RuntimeError as error:
            if not of_connection(error):
                raise
            raise RuntimeError(self._explain(step, doing)) from error

    def _note(self, step: int) -> None:
        self._noted = time.monotonic()
        with suppress(RuntimeError):
            self._store.set(f"at/{self.worker.rank}", json.dumps([time.time(), step]))

    def _explain(self, step: int, doing: str) -> str:
        me = f"worker {self.worker.rank} of {self.worker.size}"
        missing = []
        with suppress(RuntimeError):  # the store went down with its host
            self._store.set(f"waits/{self.worker.rank}", "1")
            time.sleep(GRACE_SECONDS)  # the others that wait find out at about the same time
            for rank in range(self.worker.size):
                if not self._store.check([f"waits/{rank}"]) and self._store.check([f"at/{rank}"]):
                    when, where = json.loads(self._store.get(f"at/{rank}"))
                    missing.append(f"worker {rank} (last heard of {time.time() - when:.0f} s ago, at step {where})")
        whom = ", ".join(missing) or "the others (none of them is known to be missing: was a connection cut?)"
        return (
            f"{me} waited {doing} {step} for {whom}: dead, stuck, or slower than "
            f"DataParallel.timeout_seconds={self.timeout_seconds:g}"
        )
