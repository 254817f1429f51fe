"""Whether the loss of a batch can be put together from its parts: a worker's share, a micro-batch."""

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
from heptane.model.trying import try_output

TRIED, TRIED_ON_MODEL = 64, 16  # samples; on the model's own loss it is run three times
SAME = 1e-4  # relative; parts are added up in another order


def check_splittable(
    criterion: Criterion, model: torch.nn.Module, sample: tuple[Any, Any], targets: Any, parts: int
) -> list[str]:
    """Refuse to split a batch whose loss, the model's own, is a mean over nobody knows what; note it of a user's loss.

    Args:
        sample: inputs and targets on which that is tried.
        targets: all that are known.
        parts: workers times micro-batches.
    """
    if parts == 1:
        return []
    if isinstance(criterion, ModelLoss):
        inputs, labels = select_rows(sample, slice(TRIED_ON_MODEL))
        tried = _holds_ignored(labels) or not _holds_ignored(targets)
        if (criterion.counts == "unknown" and not tried) or not _adds_up(criterion, model, inputs, labels):
            raise InputError(
                "loss='model': what the model's mean is over cannot be told from its loss and logits, and it is not the "
                "number of samples, so parts of a batch cannot be weighed; train with one worker and accumulate=1, or pass "
                "a loss"
            )
    if not isinstance(criterion, CustomLoss):
        return []
    inputs, labels = select_rows(sample, slice(TRIED))
    found = is_mean_over_samples(criterion, loss_input(criterion, try_output(model, inputs)), labels)
    if found is None:
        return []
    whole, mean = found
    return [
        f"loss {criterion.name}: of {len(first_tensor(labels))} samples it is {whole:.4g}, and the mean of their parts' is "
        f"{mean:.4g}. So it is not a mean over samples, and its value for a batch in {parts} parts depends on how the batch "
        "is split: return one loss per sample, or train with one worker and accumulate=1"
    ]


def _holds_ignored(targets: Any) -> bool:
    return isinstance(targets, torch.Tensor) and not targets.is_floating_point() and bool((targets == IGNORE_INDEX).any())


def _adds_up(criterion: Criterion, model: torch.nn.Module, inputs: Any, labels: Any) -> bool:
    """Whether the model's own loss for these samples is that of two parts of them, by the count that it is taken for."""
    size = len(first_tensor(labels))
    cuts = (0, size // 3, size)
    parts = [slice(low, high) for low, high in pairwise(cuts) if high > low]

    def answer(part: slice) -> tuple[Any, Any]:
        own = select_rows(labels, part)
        return loss_input(criterion, try_output(model, select_rows(inputs, part), own)), own

    whole = criterion.mean(*answer(slice(0, size))).float()
    together = sum(criterion.total(*answer(part)).float() for part in parts) / safe_divisor(criterion.count(labels))
    return torch.allclose(whole, torch.as_tensor(together), rtol=SAME, atol=1e-6, equal_nan=True)


def is_mean_over_samples(criterion: Criterion, output: Any, targets: Any) -> tuple[float, float] | None:
    """The loss of some samples and the mean of that of their parts, each weighed by its samples, where a loss of the user's
    own tells them apart; None where they are equal: then parts of a batch can be weighed by their samples."""
    size = len(first_tensor(output))
    if not isinstance(criterion, CustomLoss) or len(first_tensor(targets)) != size:
        return None

    def of(part: slice) -> float:
        with torch.no_grad():
            return float(criterion.mean(select_rows(output, part), select_rows(targets, part)))

    for cuts in (range(size + 1), (0, size // 2, size)):  # a loss over pairs of samples may not take a single one
        parts = [slice(low, high) for low, high in pairwise(cuts) if high > low]
        with suppress(Exception):  # what fails on the whole batch is found, and named, in training
            whole, mean = of(slice(0, size)), sum(of(part) * (part.stop - part.start) for part in parts) / size
            if abs(whole - mean) > SAME * max(abs(whole), abs(mean), 1e-12):
                return whole, mean
    return None
