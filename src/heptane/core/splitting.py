"""Check whether the loss of a batch can be computed from its parts: worker shares and micro-batches."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, select_rows
from heptane.core.criterion import loss_input
from heptane.core.cross_entropy import IGNORE_INDEX
from heptane.core.custom_losses import CustomLoss, ModelLoss
from heptane.core.losses import Criterion, safe_divisor
from heptane.model.probe import probe_output

TRIED, TRIED_ON_MODEL = 64, 16  # samples; fewer for the model's own loss, which needs three forward passes
RTOL = 1e-4  # parts are summed in another order


def check_splittable(
    criterion: Criterion, model: torch.nn.Module, sample: tuple[Any, Any], targets: Any, parts: int
) -> list[str]:
    """Refuse to split a batch whose model-computed loss has an unknown divisor; note a custom loss that is not a mean over
    samples.

    Args:
        sample: inputs and targets on which this is tried.
        targets: all known targets.
        parts: workers times micro-batches.

    Returns:
        Notes for the user.
    """
    if parts == 1:
        return []
    if isinstance(criterion, ModelLoss):
        inputs, labels = select_rows(sample, slice(TRIED_ON_MODEL))
        tried = _holds_ignored(labels) or not _holds_ignored(targets)
        if (criterion.counts == "unknown" and not tried) or not _adds_up(criterion, model, inputs, labels):
            raise InputError(
                "loss='model': the loss of a batch cannot be computed from its parts, since what the model averages over is "
                "unknown and is not the samples; train with one worker and accumulate=1, or pass a loss"
            )
    if not isinstance(criterion, CustomLoss):
        return []
    inputs, labels = select_rows(sample, slice(TRIED))
    found = is_mean_over_samples(criterion, loss_input(criterion, probe_output(model, inputs)), labels)
    if found is None:
        return []
    whole, mean = found
    return [
        f"loss {criterion.name} is not a mean over samples: it is {whole:.4g} on {len(first_tensor(labels))} samples and "
        f"{mean:.4g} as the mean over parts of them. A batch is split into {parts} parts here, so the result depends on the "
        "split: return one loss per sample, or train with one worker and accumulate=1"
    ]


def _holds_ignored(targets: Any) -> bool:
    return isinstance(targets, torch.Tensor) and not targets.is_floating_point() and bool((targets == IGNORE_INDEX).any())


def _adds_up(criterion: Criterion, model: torch.nn.Module, inputs: Any, labels: Any) -> bool:
    """Whether the model's loss on these samples equals that of two parts of them, weighted by its assumed count."""
    size = len(first_tensor(labels))
    bounds = (0, size // 3, size)
    parts = [slice(low, high) for low, high in pairwise(bounds) if high > low]

    def answer(part: slice) -> tuple[Any, Any]:
        own = select_rows(labels, part)
        return loss_input(criterion, probe_output(model, select_rows(inputs, part), own)), own

    whole = criterion.mean(*answer(slice(0, size))).float()
    together = sum(criterion.total(*answer(part)).float() for part in parts) / safe_divisor(criterion.count(labels))
    return torch.allclose(whole, torch.as_tensor(together), rtol=RTOL, atol=1e-6, equal_nan=True)


def is_mean_over_samples(criterion: Criterion, output: Any, targets: Any) -> tuple[float, float] | None:
    """The custom loss of some samples, and the weighted mean over parts of them, if the two differ.

    None if they are equal, so that parts of a batch can be weighted by their number of samples.
    """
    size = len(first_tensor(output))
    if not isinstance(criterion, CustomLoss) or len(first_tensor(targets)) != size:
        return None

    def of(part: slice) -> float:
        with torch.no_grad():
            return float(criterion.mean(select_rows(output, part), select_rows(targets, part)))

    for bounds in (range(size + 1), (0, size // 2, size)):  # a loss over pairs of samples may fail on a single one
        parts = [slice(low, high) for low, high in pairwise(bounds) if high > low]
        with suppress(Exception):  # an error on the whole batch is reported in training
            whole, mean = of(slice(0, size)), sum(of(part) * (part.stop - part.start) for part in parts) / size
            if abs(whole - mean) > RTOL * max(abs(whole), abs(mean), 1e-12):
                return whole, mean
    return None
