"""This process's rank, and collectives over all workers; a single worker needs no process group."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch

RENDEZVOUS_SECONDS = 60.0  # time limit to find the other workers, unless an elastic launcher started them


@dataclass(frozen=True)
class Worker:
    """A worker's ``rank``, in [0, size), and the number of workers, ``size``."""

    rank: int = 0
    size: int = 1

    def share(self, num_samples: int) -> slice:
        """This worker's slice of ``num_samples``; the workers' shares differ by at most one sample.

        Example:
            >>> [Worker(r, 4).share(10) for r in range(4)]
            [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
        """
        return slice(self.rank * num_samples // self.size, (self.rank + 1) * num_samples // self.size)


SINGLE_WORKER = Worker()


def this_worker() -> Worker:
    """Return this process's worker; without a process group, a single worker."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return Worker(distributed.get_rank(), distributed.get_world_size())
    return Worker()


def under_launcher() -> bool:
    """Whether ``torchrun`` or an elastic launcher started this process."""
    return bool(os.environ.get("RANK")) and bool(os.environ.get("WORLD_SIZE"))


def launched_workers() -> int:
    """Number of workers that ``torchrun`` or an elastic launcher started, else 1."""
    return int(os.environ["WORLD_SIZE"]) if under_launcher() else 1


def join_group(device: str, timeout_seconds: float = 600.0) -> Worker:
    """Join the process group that the launcher's environment variables describe: NCCL for GPUs, gloo for CPUs."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        timeout_seconds = check_environment(timeout_seconds)
        if device == "cuda":
            local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= found:
                raise InputError(
                    f"DataParallel.workers: this machine has {found} GPU(s), none for worker {local}; start at most {found}"
                )
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        try:
            distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
        except (torch.distributed.DistError, ValueError) as error:
            raise InputError(
                f"the other workers were not found ({one_line(error)}) with {_described()}; if these environment variables "
                "are left over from another job, unset them"
            ) from error
        # A DDP wrapper that outlives the interpreter, as garbage in a cycle, can abort the process at exit.
        atexit.register(gc.collect)
    return this_worker()


def check_environment(timeout_seconds: float) -> float:
    """Check the launcher's environment variables; return how long to wait for the other workers, in seconds.

    Raises:
        InputError: a variable is missing or invalid.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    wrong = [name for name in (*names[:2], names[3]) if name not in missing and not os.environ[name].isdigit()]
    if not missing and not wrong and int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        wrong = ["RANK"]
    if missing or wrong:
        what = f"{', '.join(missing)} not set" if missing else f"{', '.join(wrong)} invalid"
        raise InputError(
            f"{_described()}: {what}. Start workers with torchrun; if these are left over from another job, unset them"
        )
    return timeout_seconds if "TORCHELASTIC_RUN_ID" in os.environ else min(timeout_seconds, RENDEZVOUS_SECONDS)


def environment_message() -> str:
    """Part of a message: the environment variables that set the number of workers, if they are set."""
    return f", from {_described()} (left over from another job? unset them)" if under_launcher() else ""


def _described() -> str:
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    return ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)


def all_reduce(value: torch.Tensor, worker: Worker) -> torch.Tensor:
    """Sum ``value`` over all workers in place; a single worker keeps its value, whatever group its process is in."""
    if worker.size > 1:
        torch.distributed.all_reduce(value)
    return value


def all_gather(value: Any, worker: Worker) -> list[Any]:
    """Gather every worker's ``value``, ordered by rank."""
    found = [value] * worker.size
    if worker.size > 1:
        torch.distributed.all_gather_object(found, value)
    return found


def from_rank_zero(decide: Callable[[], Any], worker: Worker) -> Any:
    """Call ``decide`` on rank 0 and return its result on all workers, which may see different files and clocks.

    Raises:
        InputError: on all workers, if ``decide`` raised it on rank 0.
    """
    if worker.size == 1:
        return decide()
    found: list[Any] = [None]
    if worker.rank == 0:
        try:
            found = [(decide(), None)]
        except InputError as error:
            found = [(None, str(error))]
    torch.distributed.broadcast_object_list(found, 0)
    value, refused = found[0]
    if refused is not None:
        raise InputError(refused)
    return value


def any_rank(flags: list[bool], worker: Worker) -> list[bool]:
    """For each flag, whether any worker set it; communicates on the CPU if possible, so that no GPU synchronises."""
    if worker.size == 1:
        return flags
    device = "cpu" if "gloo" in str(torch.distributed.get_backend_config()) else "cuda"
    together = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]
