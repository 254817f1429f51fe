"""Try metrics on a few samples before training, so that an error does not cost an epoch."""

from __future__ import annotations

from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, in_memory, inputs_and_targets, length
from heptane.core.criterion import loss_input
from heptane.core.custom_losses import ModelLoss
from heptane.core.custom_metrics import MetricSet, takes_model
from heptane.core.losses import Criterion
from heptane.core.precision.step import Precision
from heptane.data.batches import BatchTransform, dataset_tensors
from heptane.data.spaced_samples import spaced_samples
from heptane.distributed.workers import SINGLE_WORKER
from heptane.model.probe import eval_output

TRIED = 256  # samples, spread over the data, which may be sorted by class
WHOLE = 512  # functions of the model are tried on all samples, and only if there are at most this many


def try_metrics(
    model: torch.nn.Module,
    criterion: Criterion,
    place: BatchTransform,
    precision: Precision,
    metrics: dict[str, Any],
    name: str,
    data: Any,
) -> None:
    """Compute each metric once on a few samples of ``data``; the model and the random states are restored.

    Data that can only be read in order are not touched.

    Raises:
        InputError: a metric fails, or returns no number.
    """
    from heptane.model.snapshot import preserved_model

    with preserved_model(model):
        few = spaced_samples(data, TRIED)
        if few is None:
            return
        inputs, targets = place.inputs(few[0]), place.targets(few[1])
        output = loss_input(criterion, eval_output(model, inputs, targets if isinstance(criterion, ModelLoss) else None))
        output = precision.to_fp32(output)
        for called, metric in metrics.items():
            of_model = not hasattr(metric, "update") and takes_model(metric)
            if of_model and not _is_small(data):
                continue
            shown = data if of_model else few
            try:
                with torch.no_grad():
                    measures = MetricSet({called: metric}, place.device, SINGLE_WORKER)
                    measures.add(output, targets)
                    model.eval()
                    measures.read(model, shown)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"metrics[{called!r}] fails on {len(targets) if hasattr(targets, '__len__') else 'a few'} samples of "
                    f"{name} ({type(error).__name__}: {one_line(error)}), before training: a metric is "
                    "(predictions, targets) -> number, (model, data) -> number, or has update, compute and reset"
                ) from error
            finally:
                if hasattr(metric, "reset"):
                    metric.reset()


def _is_small(data: Any) -> bool:
    if in_memory(dataset_tensors(data)):
        size = length(first_tensor(inputs_and_targets(dataset_tensors(data))[0]))
    else:
        size = length(getattr(data, "dataset", data))
    return size is not None and size <= WHOLE
