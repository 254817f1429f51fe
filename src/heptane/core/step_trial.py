"""What a training step needs, writes to, and leaves out, found by trying it on a few samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows
from heptane.core.criterion import model_output
from heptane.core.losses import Criterion
from heptane.core.run import Replicas, Stages
from heptane.distributed.workers import Worker, any_rank
from heptane.model.probe import min_train_samples, written_parameters

if TYPE_CHECKING:
    from heptane.distributed.layer_usage import LayerUsage


def least_batch(model: torch.nn.Module, stages: Stages, few: tuple[Any, Any], total_steps: int, steps_per_epoch: int) -> int:
    """Samples that a batch needs, in the phase in which most of the model trains: frozen BatchNorm needs one."""
    with stages.as_in_last(model, stages.phases(model, total_steps, steps_per_epoch)):
        return min_train_samples(model, *few, stages.modes)


def written_by_forward(
    model: torch.nn.Module, loss: torch.nn.Module | None, criterion: Criterion, stages: Stages, sample: tuple[Any, Any]
) -> list[str]:
    """Names, in the model and its loss together, of the parameters that a step's forward pass writes to."""
    inputs, targets = copy_rows(sample, slice(2))

    def step() -> None:
        stages.modes(model)
        criterion.mean(model_output(criterion, model, inputs, targets), targets)

    return written_parameters(model if loss is None else torch.nn.ModuleList([model, loss]), step)


def step_layer_usage(
    model: torch.nn.Module, criterion: Criterion, sample: tuple[Any, Any], seed: int, replicas: Replicas, worker: Worker
) -> LayerUsage:
    """How ``model`` uses its layers in a step, the same on all workers; the model is left as it was."""
    from heptane.distributed.layer_usage import observe_usage  # these need PyTorch as they are imported
    from heptane.distributed.sharding import units

    use = observe_usage(
        model,
        lambda inputs, targets: model_output(criterion, model, inputs, targets),
        criterion.mean,
        sample,
        units(model) if replicas.shards else [],
        seed,
    )
    flags = [use.is_dynamic, use.varies or (replicas.shards and replicas.find_unused), use.reentrant]
    use.is_dynamic, use.varies, use.reentrant = any_rank(flags, worker)
    return use
