"""How a model uses its layers in a training step with its own loss, alike on all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch
from heptane.core.criterion import model_output
from heptane.core.losses import Criterion
from heptane.core.run import Replicas
from heptane.distributed.workers import Worker, any_rank

if TYPE_CHECKING:
    from heptane.distributed.layer_usage import LayerUsage


def seen_use(
    model: torch.nn.Module, criterion: Criterion, sample: tuple[Any, Any], seed: int, replicas: Replicas, worker: Worker
) -> LayerUsage:
    """Run a step of ``model`` on a few samples, watched; the model is afterwards as it was."""
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
