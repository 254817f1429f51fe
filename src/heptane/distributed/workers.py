"""Which worker this process is, and how workers sum, gather and decide together. A worker alone needs no process group."""

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
from heptane.distributed.launch import launch as launch

FOUND_WITHIN_SECONDS = 60.0  # the other workers, where no launcher is known to have started them


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this process is: ``rank`` in [0, size)."""

    rank: int = 0
    size: int = 1

    def share(self, num_samples: int) -> slice:
        """This worker's part of ``num_samples``, as even as it goes: 8192 over 256 is 32 each; 10 over 4 is 2, 3, 2, 3.

        Example:
            >>> [Worker(r, 4).share(10) for r in range(4)]
            [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
        """
        return slice(self.rank * num_samples // self.size, (self.rank + 1) * num_samples // self.size)


ALONE = Worker()


def this_worker() -> Worker:
    """The worker this process is; the only one where no process group was started."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return Worker(distributed.get_rank(), distributed.get_world_size())
    return Worker()


def under_launcher() -> bool:
    """Whether ``torchrun`` or an elastic launcher started this process."""
    return bool(os.environ.get("RANK")) and bool(os.environ.get("WORLD_SIZE"))


def launched() -> int:
    """Workers that ``torchrun`` or an elastic launcher started; 1 where none did."""
    return int(os.environ["WORLD_SIZE"]) if under_launcher() else 1


def join_group(device: str, timeout_seconds: float = 600.0) -> Worker:
    """Join the process group that the launcher's environment describes: NCCL for GPUs, gloo for CPUs."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        timeout_seconds = check_environment(timeout_seconds)
        if device == "cuda":
            local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= found:
                raise InputError(
                    f"DataParallel.workers: {found} GPU(s) found, and none for worker {local}; start at most {found}"
                )
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        try:
            distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
        except (torch.distributed.DistError, ValueError) as error:
            raise InputError(
                f"the other workers were not found ({one_line(error)}). This process looks for them by {_described()}; if "
                "these variables are left over from another job, unset them"
            ) from error
        # A DDP wrapper that outlives the interpreter, as garbage in a cycle does, may abort the process at its very end.
        atexit.register(gc.collect)
    return this_worker()


def check_environment(timeout_seconds: float) -> float:
    """Refuse variables of a launcher that cannot be; for how long to wait for the others, in seconds.

    Raises:
        InputError: one is missing, or is no number.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    wrong = [name for name in (*names[:2], names[3]) if name not in missing and not os.environ[name].isdigit()]
    size = "" if missing or wrong else int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"])
    if missing or wrong or size:
        what = f"{', '.join(missing)} not set" if missing else f"{', '.join(wrong) or 'RANK'} cannot be"
        raise InputError(
            f"{_described()}: {what}. Start workers with torchrun; if these are left over from another job, unset them"
        )
    return timeout_seconds if "TORCHELASTIC_RUN_ID" in os.environ else min(timeout_seconds, FOUND_WITHIN_SECONDS)


def environment_message() -> str:
    """For a message: what the environment says of the number of workers."""
    return f", by {_described()} (left over from another job? unset them)" if under_launcher() else ""


def _described() -> str:
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    return ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)


def all_reduce(value: torch.Tensor, worker: Worker) -> torch.Tensor:
    """The sum of ``value`` over all workers, in place; of a worker alone, whatever group its process is in, as it is."""
    if worker.size > 1:
        torch.distributed.all_reduce(value)
    return value


def all_gather(value: Any, worker: Worker) -> list[Any]:
    """What every worker gives, in the order of their ranks."""
    found = [value] * worker.size
    if worker.size > 1:
        torch.distributed.all_gather_object(found, value)
    return found


def from_rank_zero(decide: Callable[[], Any], worker: Worker) -> Any:
    """What ``decide`` gives on rank 0, on all workers: files and clocks do not look the same to each of them.

    Raises:
        InputError: on all workers, where it raises one on rank 0.
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
    """For each flag whether some worker has raised it: one small message on the CPU, which no GPU waits for."""
    if worker.size == 1:
        return flags
    device = "cpu" if "gloo" in str(torch.distributed.get_backend_config()) else "cuda"
    together = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]
