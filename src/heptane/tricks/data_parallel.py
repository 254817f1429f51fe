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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_bool, check_choice, check_range
from heptane.base.lazy import torch
from heptane.distributed.launch import launch as launch
from heptane.distributed.replicas import NOT_REENTRANT
from heptane.distributed.workers import Worker, environment_message, join_group, this_worker, under_launcher

if TYPE_CHECKING:
    from heptane.distributed.use import Use

NOT_SENT = ("int16", "uint16", "uint32", "uint64", "float8")  # types of numbers that DDP cannot broadcast


def _is_sent(buffer: torch.Tensor) -> bool:
    """Whether DDP can broadcast it."""
    return buffer.layout is torch.strided and not str(buffer.dtype).split(".")[1].startswith(NOT_SENT)


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
    """Look for parameters without a gradient at each step, for a model that leaves layers out. One that always does, or
    whose ``forward`` goes by values or by chance, is noticed by itself."""
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
                f"DataParallel.workers={self.workers}, and {worker.size} run{environment_message()}: expected as many; "
                f"start the script with torchrun --nproc-per-node={self.workers}, or call heptane.fit, which starts them"
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

    def shard(self, model: torch.nn.Module, use: Use | None = None) -> torch.nn.Module | None:
        """Shard ``model``, as it was seen to use its layers, in place where asked for; the outline in which it is gathered
        again, or None.

        Raises:
            InputError: it recomputes activations in a way that FSDP cannot follow.
        """
        if not self.shards:
            return None
        from heptane.distributed import sharding

        if use is not None and use.reentrant:
            raise InputError(f"DataParallel.strategy='fsdp' with checkpoint(..., use_reentrant=True): {NOT_REENTRANT}")
        empty = sharding.meta_copy(model)
        sharding.shard(model, next(model.parameters()).device.type, this_worker().size, use)
        return empty

    def in_one_piece(self, model: torch.nn.Module) -> list[torch.nn.Parameter]:
        """The parameters of a sharded model that are not, and train."""
        from heptane.distributed import sharding

        return [parameter for parameter in sharding.in_one_piece(model) if parameter.requires_grad]

    def wrap(self, model: torch.nn.Module, *, find_unused: bool = False) -> torch.nn.Module:
        """DDP around ``model`` where there is more than one worker; wrap again when other parameters become trainable.
        A sharded model needs none."""
        if this_worker().size == 1 or self.shards:
            return model
        left_out = [name for name, buffer in model.named_buffers() if not _is_sent(buffer)]
        if left_out:  # they stay as rank 0 gave them at the start, and are shared again before an evaluation
            wrapper: Any = torch.nn.parallel.DistributedDataParallel
            wrapper._set_params_and_buffers_to_ignore_for_model(model, left_out)
        return torch.nn.parallel.DistributedDataParallel(
            model, bucket_cap_mb=self.bucket_mib, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )
