"""A model is tried on a few samples, and is then exactly as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, leaves, tree_copy
from heptane.model.calling import call, main_output
from heptane.model.modes import eval_mode, gradients_on, no_gradients


def try_output(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """The model's output on a few inputs (and ``labels``, where the loss is the model's own), in eval mode and without
    gradients; afterwards the model and the random states are exactly as they were. An error of the model has a note on its
    inputs."""
    from heptane.model.snapshot import as_before

    try:
        with as_before(model):
            return evaluated(model, inputs, labels)
    except Exception as error:
        given = ", ".join(
            f"{tuple(leaf.shape)} {leaf.dtype}" for _, leaf in leaves(inputs) if isinstance(leaf, torch.Tensor)
        )
        error.add_note(f"heptane tried {type(model).__name__} on a few of the samples before anything was trained: {given}")
        raise


def evaluated(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """The same, for use inside :func:`heptane.model.snapshot.as_before`."""
    with eval_mode(model), no_gradients():
        return call(model, tree_copy(inputs), tree_copy(labels))  # copies: a model may work in place


def try_training(model: torch.nn.Module, inputs: Any) -> Any:
    """What the model gives for two samples in train mode, without gradients; then it is as it was, random states too."""
    from heptane.model.snapshot import as_before

    with as_before(model), torch.no_grad():
        model.train()
        return call(model, copy_rows(inputs, slice(2)))


def least_samples(model: torch.nn.Module, inputs: Any, labels: Any, train: Callable[[torch.nn.Module], None]) -> int:
    """How many samples a forward pass in training needs: 2 where BatchNorm, also one of the user's own, sees one value per
    sample and channel, else 1. ``train`` sets the modes that the model trains in."""
    one, label = copy_rows((inputs, labels), slice(1)) if labels is not None else (copy_rows(inputs, slice(1)), None)
    from heptane.model.snapshot import as_before

    try:
        with as_before(model), no_gradients(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model)
            if _finite(call(model, one, label)):
                return 1
            two = call(model, copy_rows(inputs, slice(2)), None if labels is None else copy_rows(labels, slice(2)))
            return 2 if _finite(two) else 1  # the deviation of one is 0 / 0
    except ValueError as error:
        return 2 if "more than 1 value per channel" in str(error) else 1
    except Exception:  # what else fails is found, and named, by the checks that follow
        return 1


def written_parameters(model: torch.nn.Module, step: Callable[[], Any]) -> list[str]:
    """Names of the parameters that a forward pass writes to by itself; the model is then as it was."""
    from heptane.model.snapshot import as_before

    with as_before(model) as snapshot, gradients_on():
        with suppress(Exception):  # what fails is the first step's to report
            step()
        written = {id(parameter) for parameter in snapshot.written()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in written]


def _finite(output: Any) -> bool:
    """Whether the main output is, where it is a tensor of real numbers."""
    main = main_output(output)[0]
    return not isinstance(main, torch.Tensor) or not main.is_floating_point() or bool(main.isfinite().all())


def two_samples(batch: tuple[Any, Any], loss: Any) -> tuple[Any, Any]:
    """Two samples to try a model on: the inputs, and the labels where the loss is the model's own."""
    inputs, targets = copy_rows(batch, slice(2))
    return inputs, targets if loss == "model" else None
