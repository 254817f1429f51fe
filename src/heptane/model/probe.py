"""Run a model on a few samples before training, and leave it unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, tree_copy, tree_leaves
from heptane.model.forward import call, main_output
from heptane.model.modes import enable_gradients, eval_mode, no_gradients


def probe_output(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """Return the model's output in eval mode, without gradients, leaving the model and the random states unchanged.

    Args:
        model: any module.
        inputs: a few samples; an error of the model gets a note on their shapes and dtypes.
        labels: if the model computes its own loss.
    """
    from heptane.model.snapshot import preserved_model

    try:
        with preserved_model(model):
            return eval_output(model, inputs, labels)
    except Exception as error:
        given = ", ".join(
            f"{tuple(leaf.shape)} {leaf.dtype}" for _, leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)
        )
        error.add_note(f"heptane ran {type(model).__name__} on a few samples before training: {given}")
        raise


def eval_output(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """:func:`probe_output` for use inside :func:`heptane.model.snapshot.preserved_model`."""
    with eval_mode(model), no_gradients():
        return call(model, tree_copy(inputs), tree_copy(labels))  # copies: a model may work in place


def probe_training(model: torch.nn.Module, inputs: Any) -> Any:
    """Return the model's output for two samples in train mode, without gradients, leaving everything unchanged."""
    from heptane.model.snapshot import preserved_model

    with preserved_model(model), torch.no_grad():
        model.train()
        return call(model, copy_rows(inputs, slice(2)))


def min_train_samples(model: torch.nn.Module, inputs: Any, labels: Any, train: Callable[[torch.nn.Module], None]) -> int:
    """Number of samples that a forward pass in training needs: 2 if BatchNorm (PyTorch's or the user's own) sees one value
    per sample and channel, else 1. ``train`` puts the model into its training modes."""
    from heptane.model.snapshot import preserved_model

    one, two = (copy_rows((inputs, labels), slice(size)) for size in (1, 2))
    try:
        with preserved_model(model), no_gradients(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model)
            # the standard deviation of one value is 0 / 0
            return 2 if not _finite(call(model, *one)) and _finite(call(model, *two)) else 1
    except ValueError as error:
        return 2 if "more than 1 value per channel" in str(error) else 1
    except Exception:  # later checks report other failures
        return 1


def written_parameters(model: torch.nn.Module, step: Callable[[], Any]) -> list[str]:
    """Names of the parameters that the forward pass itself writes to; the model is left unchanged."""
    from heptane.model.snapshot import preserved_model

    with preserved_model(model) as snapshot, enable_gradients():
        with suppress(Exception):  # the first step reports failures
            step()
        written = {id(parameter) for parameter in snapshot.written()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in written]


def _finite(output: Any) -> bool:
    """Whether the main output is finite; True if it is not a tensor of real numbers."""
    main = main_output(output)[0]
    return not isinstance(main, torch.Tensor) or not main.is_floating_point() or bool(main.isfinite().all())


def two_samples(batch: tuple[Any, Any], loss: Any) -> tuple[Any, Any]:
    """Take two samples of a batch: inputs, and labels if the model computes its own loss."""
    inputs, targets = copy_rows(batch, slice(2))
    return inputs, targets if loss == "model" else None
