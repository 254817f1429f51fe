"""Data parallel: split one global batch over workers; the result is that of one big worker.

Equation
    g = (1/N) * sum over all workers and samples of the gradient, N the *global* count of what the loss is a mean over.
    DDP averages the workers' gradients, so each worker's loss is its sum * workers / N: right for unequal shares too.

Source
    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 3, arXiv:1706.02677.
    Li et al. 2020, "PyTorch Distributed", VLDB 13(12).

Meets the loop at
    Before the loop: the model is wrapped after its memory format is set, and again where layers are unfrozen.
    In the loop, each worker takes its share of the global batch.

Costs, and when it does not help
    One all-reduce of the gradients per step. On one CPU a single process already uses all cores: nothing to gain.
    BatchNorm normalises over each worker's share unless ``sync_batchnorm``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.errors import InputError, check_range


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


def this_worker() -> Worker:
    """The worker this process is; the only one where no process group was started."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return Worker(distributed.get_rank(), distributed.get_world_size())
    return Worker()


def under_launcher() -> bool:
    """Whether ``torchrun`` or an elastic launcher started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_group(device: str) -> Worker:
    """Join the process group that the launcher's environment describes: NCCL for GPUs, gloo for CPUs."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    return this_worker()


def all_sum(value: torch.Tensor) -> torch.Tensor:
    """The sum of ``value`` over all workers, in place."""
    if this_worker().size > 1:
        torch.distributed.all_reduce(value)
    return value


def check_replicas(model: torch.nn.Module) -> None:
    """Compare every worker's parameters, and name the first that differs.

    Raises:
        RuntimeError: the replicas are not equal.
    """
    worker = this_worker()
    if worker.size == 1:
        return
    sums = torch.stack([_checksum(p) for p in model.parameters()])
    low, high = sums.clone(), sums.clone()
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    for (name, _), same in zip(model.named_parameters(), (low == high).tolist(), strict=True):
        if not same:
            raise RuntimeError(f"the workers' copies of the model have diverged: parameter {name!r} is the first to differ")


def _checksum(parameter: torch.Tensor) -> torch.Tensor:
    flat = parameter.detach().double().reshape(-1)
    return (flat * torch.arange(1, flat.numel() + 1, device=flat.device, dtype=flat.dtype)).sum()


def launch(function: Callable[..., Any], kwargs: dict[str, Any], workers: int) -> Any:
    """Run ``function(**kwargs)`` in ``workers`` new processes on this host; return what rank 0 returned.

    The processes are started by ``torch.distributed``'s elastic launcher, each as a fresh interpreter: functions and classes
    of the calling script travel by value, so it needs no ``if __name__ == "__main__"``.

    Raises:
        RuntimeError: a worker failed; the message holds the first failure.
    """
    import sys

    import cloudpickle
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, (os.cpu_count() or 1) // workers)
    with tempfile.TemporaryDirectory(prefix="heptane-") as folder:
        task, answer = Path(folder, "task.pt"), Path(folder, "answer.pt")
        torch.save((function, kwargs, sys.path), task, pickle_module=cloudpickle)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder, "logs")), tee=Std.NONE),
        )
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)
        try:
            elastic_launch(config, sys.executable)("-m", "heptane.worker", str(task), str(answer))
        except ChildFailedError as error:
            failure = Path(folder, "failure.txt")
            reason = failure.read_text() if failure.exists() else str(error)
            raise RuntimeError(f"a worker failed:\n{reason}") from error
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        return torch.load(answer, weights_only=False)  # our own file, in a folder that only this user can read


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """Trick 1: several workers, one global batch. ``DataParallel(workers=2)``, or as many as ``torchrun`` started."""

    workers: int | str = "auto"
    """processes on this host, at least 1; auto is one per GPU, or one where there is no GPU"""
    sync_batchnorm: bool = False
    """let BatchNorm normalise over the global batch instead of each worker's share (GPU only)"""
    bucket_mib: float = 25.0
    """gradients are reduced in buckets of this size, in MiB, above 0"""

    def __post_init__(self) -> None:
        if isinstance(self.workers, str) and self.workers != "auto":
            raise InputError(f"DataParallel.workers={self.workers!r}: expected 'auto' or a whole number in [1, inf)")
        if self.workers != "auto":
            check_range("DataParallel.workers", self.workers, 1, whole=True)  # type: ignore[arg-type]
        check_range("DataParallel.bucket_mib", self.bucket_mib, 0, low_open=True)

    def resolve(self) -> tuple[int, str]:
        """How many workers to start, and why."""
        if self.workers != "auto":
            return int(self.workers), "asked for"
        gpus = torch.cuda.device_count()
        return (gpus, f"one per GPU, {gpus} found") if gpus else (1, "no GPU, and one process uses all cores of a CPU")

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with SyncBatchNorm where asked for; otherwise as it is."""
        if not self.sync_batchnorm or this_worker().size == 1:
            return model
        if not torch.cuda.is_available():
            raise InputError("DataParallel.sync_batchnorm=True needs GPUs: PyTorch has none for CPUs; leave it off")
        converted: torch.nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def wrap(self, model: torch.nn.Module, *, find_unused: bool = False) -> torch.nn.Module:
        """DDP around ``model`` where there is more than one worker; wrap again when other parameters become trainable."""
        if this_worker().size == 1:
            return model
        return torch.nn.parallel.DistributedDataParallel(
            model, bucket_cap_mb=self.bucket_mib, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )
