"""Data parallel: split the global batch over workers; the result equals that of one worker with the whole batch.

Equation
    g = (1/N) * sum over all workers and samples of the gradient, with N the *global* count that the loss is a mean over.
    DDP averages gradients over workers, so each worker's loss is its sum * workers / N, which is exact for unequal shares.

Source
    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 3, arXiv:1706.02677.
    Li et al. 2020, "PyTorch Distributed", VLDB 13(12).
    Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277.

Meets the loop at
    Before the loop: DDP wraps the model once its memory format is set, and again whenever layers are unfrozen; FSDP shards
    the model before the optimizer is built.
    In the loop: each worker takes its share of the global batch.

Costs, and when it does not help
    One all-reduce of the gradients per step. On one CPU there is nothing to gain: a single process already uses all cores.
    BatchNorm normalizes over each worker's share unless ``sync_batchnorm`` is on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_bool, check_choice, check_range
from heptane.base.lazy import torch
from heptane.distributed.replicas import NOT_REENTRANT
from heptane.distributed.workers import Worker, environment_message, join_group, this_worker, under_launcher

if TYPE_CHECKING:
    from heptane.distributed.layer_usage import LayerUsage

NOT_BROADCAST = ("int16", "uint16", "uint32", "uint64", "float8")  # dtypes that DDP cannot broadcast


def _can_broadcast(buffer: torch.Tensor) -> bool:
    """Whether DDP can broadcast ``buffer``."""
    return buffer.layout is torch.strided and not str(buffer.dtype).split(".")[1].startswith(NOT_BROADCAST)


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """Settings of data parallelism: the workers of this host, or those that ``torchrun`` started."""

    workers: int | str = "auto"
    """Processes on this host, at least 1; auto: one per GPU, or one where there is no GPU."""
    strategy: str = "ddp"
    """How to use the workers: ddp, each holds the whole model; or fsdp, each holds a shard, for models too large for one."""
    sync_batchnorm: bool = False
    """Let BatchNorm normalize over the global batch instead of each worker's share; works on a CPU too."""
    bucket_mib: float = 25.0
    """Size of the gradient buckets that are reduced together, in MiB, above 0."""
    timeout_seconds: float = 600.0
    """Seconds that a worker waits for the others, above 0; the error names the missing worker."""
    restarts: int = 0
    """How often failed workers are restarted from the last checkpoint, at least 0; under torchrun use its own flag."""
    find_unused: bool = False
    """Search for parameters without a gradient at each step, for a model that skips layers. A model that always does, or
    whose forward pass branches on values or at random, is detected automatically."""
    keep: str = "batch"
    """When a run resumes on another number of workers: batch keeps the global batch and the learning rate; share keeps the
    batch per worker and scales the learning rate by the optimizer's rule."""

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
        """Join the process group and return this process's place in it.

        Raises:
            InputError: the number of running workers differs from ``workers``.
        """
        worker = join_group(device, self.timeout_seconds) if under_launcher() else this_worker()
        if self.workers not in ("auto", worker.size):
            raise InputError(
                f"DataParallel.workers={self.workers}, but {worker.size} run{environment_message()}: expected as many; "
                f"start the script with torchrun --nproc-per-node={self.workers}, or call heptane.fit, which starts them"
            )
        return worker

    def check_shares(self, num_samples: int, batch_size: int, accumulate: int, worker: Worker) -> None:
        """Refuse a last batch with fewer samples than ``sync_batchnorm`` needs: one per worker and micro-batch."""
        smallest = num_samples % batch_size or batch_size
        if self.sync_batchnorm and worker.size > 1 and smallest < worker.size * accumulate:
            raise InputError(
                f"DataParallel.sync_batchnorm=True with a batch of {smallest} samples for {worker.size} workers, each in "
                f"{accumulate} micro-batch(es): expected a sample for each; choose a batch_size with a larger remainder"
            )

    def resolve(self) -> tuple[int, str]:
        """The number of workers to start, and the reason."""
        if self.workers != "auto":
            return int(self.workers), "asked for"
        gpus = torch.cuda.device_count()
        return (gpus, f"one per GPU, {gpus} found") if gpus else (1, "no GPU, and one process uses all cores of a CPU")

    def convert(self, model: torch.nn.Module) -> torch.nn.Module:
        """Let the model's BatchNorm normalize over the global batch if ``sync_batchnorm`` is on."""
        if not self.sync_batchnorm or this_worker().size == 1:
            return model
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            from heptane.distributed.batchnorm import convert_batchnorm

            return convert_batchnorm(model)
        converted: torch.nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    @property
    def shards(self) -> bool:
        """Whether the workers of this process group each hold a shard of the model."""
        return self.strategy == "fsdp" and this_worker().size > 1

    def shard(self, model: torch.nn.Module, use: LayerUsage | None = None) -> torch.nn.Module | None:
        """Shard ``model`` in place if the strategy is fsdp.

        Args:
            model: on its device, before the optimizer is built.
            use: how its forward pass uses its layers.

        Returns:
            A copy on the meta device, into which the shards are gathered later; None if nothing was sharded.

        Raises:
            InputError: the model uses reentrant activation checkpointing, which FSDP does not support.
        """
        if not self.shards:
            return None
        from heptane.distributed import sharding

        if use is not None and use.reentrant:
            raise InputError(f"DataParallel.strategy='fsdp' with checkpoint(..., use_reentrant=True): {NOT_REENTRANT}")
        meta = sharding.meta_copy(model)
        sharding.shard(model, next(model.parameters()).device.type, this_worker().size, use)
        return meta

    def in_one_piece(self, model: torch.nn.Module) -> list[torch.nn.Parameter]:
        """The trainable parameters of a sharded model that are not sharded."""
        from heptane.distributed import sharding

        return [parameter for parameter in sharding.unsharded_parameters(model) if parameter.requires_grad]

    def wrap(self, model: torch.nn.Module, *, find_unused: bool = False) -> torch.nn.Module:
        """Wrap ``model`` in DDP if there are several workers; wrap again when other parameters become trainable. A sharded
        model needs no wrapper."""
        if this_worker().size == 1 or self.shards:
            return model
        ignored = [name for name, buffer in model.named_buffers() if not _can_broadcast(buffer)]
        if ignored:  # they keep the values of rank 0 and are synchronized again before an evaluation
            wrapper: Any = torch.nn.parallel.DistributedDataParallel
            wrapper._set_params_and_buffers_to_ignore_for_model(model, ignored)
        return torch.nn.parallel.DistributedDataParallel(
            model, bucket_cap_mb=self.bucket_mib, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )
