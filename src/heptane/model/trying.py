"""A model is tried on a few samples, and is then exactly as it was."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import copied, own_rows
from heptane.model.calling import call
from heptane.model.modes import eval_mode, no_gradients


def try_output(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """The model's output on a few inputs (and ``labels``, where the loss is the model's own), in eval mode and without
    gradients; afterwards the model and the random states are exactly as they were."""
    from heptane.model.snapshot import as_before

    with as_before(model):
        return evaluated(model, inputs, labels)


def evaluated(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """The same, for use inside :func:`heptane.model.snapshot.as_before`."""
    with eval_mode(model), no_gradients():
        return call(model, copied(inputs), copied(labels))  # copies: a model may work in place


def try_training(model: torch.nn.Module, inputs: Any) -> Any:
    """What the model gives for two samples in train mode, without gradients; then it is as it was, random states too."""
    from heptane.model.snapshot import as_before

    with as_before(model), torch.no_grad():
        model.train()
        return call(model, own_rows(inputs, slice(2)))


def least_samples(model: torch.nn.Module, inputs: Any, labels: Any = None) -> int:
    """How many samples a forward pass in training needs: 2 where BatchNorm sees one value per sample and channel, else 1."""
    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return 1
    one, label = own_rows((inputs, labels), slice(1)) if labels is not None else (own_rows(inputs, slice(1)), None)
    from heptane.model.snapshot import as_before

    try:
        with as_before(model), no_gradients():
            model.train()
            call(model, one, label)
    except ValueError as error:
        return 2 if "more than 1 value per channel" in str(error) else 1
    except Exception:  # what else fails is found, and named, by the checks that follow
        return 1
    return 1


def few(batch: tuple[Any, Any], loss: Any) -> tuple[Any, Any]:
    """Two samples to try a model on: the inputs, and the labels where the loss is the model's own."""
    inputs, targets = own_rows(batch, slice(2))
    return inputs, targets if loss == "model" else None
