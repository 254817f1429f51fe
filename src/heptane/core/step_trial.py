"""What a training step needs of a batch, and writes to, found by trying it."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows
from heptane.core.criterion import model_output
from heptane.core.losses import Criterion
from heptane.core.run import Stages
from heptane.model.probe import min_train_samples, written_parameters


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
