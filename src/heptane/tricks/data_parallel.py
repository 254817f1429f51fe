"""Data parallel: split one global batch over workers; the result is that of one big worker.

Equation
    g = (1/N) * sum over all workers and samples of the gradient, N the *global* count of what the loss is a mean over.
    DDP averages the workers' gradients, so each worker's loss is its sum * workers / N: right for unequal shares too.

Source
    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 3, arXiv:1706.02677.
    Li et al. 2020, "PyTorch Distributed", VLDB 13(12).
    Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277.

Meets the loop at
    Before the loop: DDP wraps the model after its memory format is set, and again where layers are unfrozen; FSDP shards it
    before the optimizer is made.
    In the loop, each worker takes its share of the global batch.

Costs, and when it does not help
    One all-reduce of the gradients per step. On one CPU a single process already uses all cores: nothing to gain.
    BatchNorm normalises over each worker's share unless ``sync_batchnorm``.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from heptane.base.errors import InputError, check_bool, check_choice, check_range, one_line
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
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


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


def _described() -> str:
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    return ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)


def all_sum(value: torch.Tensor, worker: Worker) -> torch.Tensor:
    """The sum of ``value`` over all workers, in place; of a worker alone, whatever group its process is in, as it is."""
    if worker.size > 1:
        torch.distributed.all_reduce(value)
    return value


def from_all(value: Any, worker: Worker) -> list[Any]:
    """What every worker gives, in the order of their ranks."""
    found = [value] * worker.size
    if worker.size > 1:
        torch.distributed.all_gather_object(found, value)
    return found


def decided(decide: Callable[[], Any], worker: Worker) -> Any:
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


def any_of(flags: list[bool], worker: Worker) -> list[bool]:
    """For each flag whether some worker has raised it: one small message on the CPU, which no GPU waits for."""
    if worker.size == 1:
        return flags
    device = "cpu" if "gloo" in str(torch.distributed.get_backend_config()) else "cuda"
    together = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the workers each hold a part of ``model``."""
    if this_worker().size == 1:
        return False
    from heptane.distributed import sharding

    return sharding.is_sharded(model)


def without_sums(forward: torch.nn.Module) -> Any:
    """A context in which backward passes do not sum gradients over the workers: all but the last micro-batch of a step."""
    if not is_sharded(forward):
        return forward.no_sync()  # type: ignore[operator]
    from heptane.distributed import sharding

    return sharding.without_sums(forward)


def share_buffers(model: torch.nn.Module) -> None:
    """Give every worker rank 0's buffers, as each forward pass does, so that all evaluate one model."""
    if this_worker().size == 1:
        return
    for buffer in model.buffers():
        if buffer.layout is torch.strided and not torch.nn.parameter.is_lazy(buffer):
            _broadcast(buffer)


def share_model(model: torch.nn.Module, worker: Worker) -> None:
    """Give every worker rank 0's parameters and buffers, as DDP does: a script that builds its model without a seed starts
    with other weights in each process.

    Raises:
        InputError: the models are not of one kind.
    """
    if worker.size == 1:
        return
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ready = {name: t for name, t in held.items() if not torch.nn.parameter.is_lazy(t) and t.layout is torch.strided}
    mine = [(name, str(t.dtype), tuple(t.shape)) for name, t in ready.items()]
    for rank, theirs in enumerate(from_all(mine, worker)):
        if theirs != mine:
            other = next(iter({*theirs} ^ {*mine}), "their order")
            raise InputError(
                f"the model of worker {rank} is not that of worker {worker.rank} (first: {other}): build the same in each"
            )
    for tensor in ready.values():
        _broadcast(tensor)


def _broadcast(tensor: torch.Tensor) -> None:
    """Rank 0's values, in place; as bytes, since not every backend knows every type."""
    if not tensor.numel():
        return
    value = tensor.detach().contiguous()
    sent = (torch.view_as_real(value) if value.is_complex() else value).reshape(-1).view(torch.uint8)
    torch.distributed.broadcast(sent, 0)
    with torch.no_grad():
        tensor.copy_(value)  # whose memory ``sent`` shares


def check_replicas(model: torch.nn.Module) -> None:
    """Compare a hash of every worker's parameters, bit for bit, and name the first that differs.

    Raises:
        RuntimeError: the replicas are not equal.
    """
    names = [name for name, _ in model.named_parameters()]
    if this_worker().size == 1 or not names or is_sharded(model):
        return
    low = torch.stack([_hash(parameter) for parameter in model.parameters()])
    high = low.clone()
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    for name, same in zip(names, (low == high).tolist(), strict=True):
        if not same:
            raise RuntimeError(f"the workers' copies of the model have diverged: parameter {name!r} is the first to differ")


def _hash(parameter: torch.Tensor) -> torch.Tensor:
    """A number of the bits, in 64 bits that wrap around: NaN equals itself, and -0 is not 0."""
    value = parameter.detach()
    value = (torch.view_as_real(value) if value.is_complex() else value).contiguous().reshape(-1)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    found = torch.zeros((), dtype=torch.int64, device=value.device)
    for piece in torch.split(value.view(whole), 1 << 20):
        weights = torch.arange(1, 2 * len(piece), 2, device=value.device)
        found = found * 1_000_003 + (piece.long() * weights).sum()
    return found


NOT_SENT = ("int16", "uint16", "uint32", "uint64", "float8")  # types of numbers that DDP cannot broadcast


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """Trick 1: several workers, one global batch. ``DataParallel(workers=2)``, or as many as ``torchrun`` started."""

    workers: int | str = "auto"
    """Processes on this host, at least 1; auto: one per GPU, or one where there is no GPU."""
    strategy: str = "ddp"
    """What a worker holds: ddp, the whole model; fsdp, a part of it, for models that do not fit one device."""
    sync_batchnorm: bool = False
    """Let BatchNorm normalise over the global batch instead of each worker's share; on a CPU too."""
    bucket_mib: float = 25.0
    """Size of the buckets in which gradients are reduced, in MiB, above 0."""
    timeout_seconds: float = 600.0
    """How long a worker waits for another before it gives up and says for which, in seconds, above 0."""
    restarts: int = 0
    """How often the workers are started again from the last checkpoint after one has died; under torchrun, its own flag."""
    find_unused: bool = False
    """Look for parameters without a gradient at each step, for a model that leaves layers out at random; a model that always
    leaves some out is noticed by itself."""
    keep: str = "batch"
    """When the number of workers changes on the way: batch keeps the global batch and the rate; share keeps each worker's
    share of it, and the rate follows by the optimizer's rule."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, str) and self.workers != "auto":
            raise InputError(f"DataParallel.workers={self.workers!r}: expected 'auto' or a whole number in [1, inf)")
        if self.workers != "auto":
            check_range("DataParallel.workers", self.workers, 1, whole=True)  # type: ignore[arg-type]
        check_choice("DataParallel.strategy", self.strategy, ("ddp", "fsdp"))
        check_bool("DataParallel.sync_batchnorm", self.sync_batchnorm)
        check_range("DataParallel.bucket_mib", self.bucket_mib, 0, low_open=True)
        check_range("DataParallel.timeout_seconds", self.timeout_seconds, 0, low_open=True)
        check_range("DataParallel.restarts", self.restarts, 0, whole=True)
        check_bool("DataParallel.find_unused", self.find_unused)
        check_choice("DataParallel.keep", self.keep, ("batch", "share"))

    def join(self, device: str) -> Worker:
        """This process's place among the workers that run.

        Raises:
            InputError: another number of workers was asked for than runs.
        """
        worker = join_group(device, self.timeout_seconds) if under_launcher() else this_worker()
        if self.workers not in ("auto", worker.size):
            raise InputError(
                f"DataParallel.workers={self.workers}, and {worker.size} run: expected as many; start the script with "
                f"torchrun --nproc-per-node={self.workers}, or call heptane.fit, which starts them"
            )
        return worker

    def check_shares(self, num_samples: int, batch_size: int, accumulate: int, worker: Worker) -> None:
        """Refuse a batch of which a worker would hold fewer parts than the others, where each part is a meeting."""
        smallest = num_samples % batch_size or batch_size
        if self.sync_batchnorm and worker.size > 1 and smallest < worker.size * accumulate:
            raise InputError(
                f"DataParallel.sync_batchnorm=True with a batch of {smallest} samples for {worker.size} workers, each in "
                f"{accumulate} part(s): expected a sample for each; choose a batch_size that leaves more to the last batch"
            )

    def resolve(self) -> tuple[int, str]:
        """How many workers to start, and why."""
        if self.workers != "auto":
            return int(self.workers), "asked for"
        gpus = torch.cuda.device_count()
        return (gpus, f"one per GPU, {gpus} found") if gpus else (1, "no GPU, and one process uses all cores of a CPU")

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with its BatchNorm over the global batch where asked for; otherwise as it is."""
        if not self.sync_batchnorm or this_worker().size == 1:
            return model
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            from heptane.distributed.batchnorm import over_workers

            return over_workers(model)
        converted: torch.nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    @property
    def shards(self) -> bool:
        """Whether the workers of this process group each hold a part of the model."""
        return self.strategy == "fsdp" and this_worker().size > 1

    def shard(self, model: torch.nn.Module) -> torch.nn.Module | None:
        """Shard ``model`` in place where asked for; the outline in which it is gathered again, or None."""
        if not self.shards:
            return None
        from heptane.distributed import sharding

        empty = sharding.outline(model)
        sharding.shard(model, next(model.parameters()).device.type, this_worker().size)
        return empty

    def wrap(self, model: torch.nn.Module, *, find_unused: bool = False) -> torch.nn.Module:
        """DDP around ``model`` where there is more than one worker; wrap again when other parameters become trainable.
        A sharded model needs none."""
        if this_worker().size == 1 or self.shards:
            return model
        left_out = [n for n, buffer in model.named_buffers() if str(buffer.dtype).split(".")[1].startswith(NOT_SENT)]
        if left_out:  # they stay as rank 0 gave them at the start, and are shared again before an evaluation
            wrapper: Any = torch.nn.parallel.DistributedDataParallel
            wrapper._set_params_and_buffers_to_ignore_for_model(model, left_out)
        return torch.nn.parallel.DistributedDataParallel(
            model, bucket_cap_mb=self.bucket_mib, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )
