"""Outputs and targets of a batch as what a person compares: classes, labels or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heptane.base.lazy import torch
from heptane.core.losses import Criterion, CrossEntropy, Ctc, Elementwise

MAX_COLUMNS = 16  # of numbers or labels per sample: more are a picture or a sequence, which no table of errors helps with


@dataclass(frozen=True)
class Decoded:
    """A batch: what is true and what was predicted, on the CPU.

    ``kind`` is "classes" (both (N,), int64), "labels" (both (N, K), bool) or "numbers" (both (N, K), float32);
    ``sure`` (N,) is the probability of the predicted class; ``counted`` (N,) is False for targets that the loss ignores.
    """

    kind: str
    truth: torch.Tensor
    guess: torch.Tensor
    num_classes: int
    sure: torch.Tensor | None = None
    counted: torch.Tensor | None = None


def decode(criterion: Criterion, output: Any, targets: Any) -> Decoded | None:
    """What a batch says, or None where a sample has no single answer (sequences, masks, CTC, structures).

    Example:
        >>> decode(CrossEntropy(), torch.tensor([[2.0, 0.0]]), torch.tensor([1])).guess
        tensor([0])
    """
    output = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(output, torch.Tensor) or not isinstance(targets, torch.Tensor) or isinstance(criterion, Ctc):
        return None
    output, targets = output.detach().float().cpu(), targets.detach().cpu()
    if not output.ndim or len(output) != len(targets):
        return None
    if isinstance(criterion, Elementwise):
        return _labels(output, targets) if criterion.multi_label else _numbers(output, targets)
    if targets.is_floating_point() and not isinstance(criterion, CrossEntropy):
        return _numbers(output, targets)
    return _classes(criterion, output, targets)


def _classes(criterion: Criterion, output: torch.Tensor, targets: torch.Tensor) -> Decoded | None:
    if output.ndim != 2 or output.shape[1] < 2:
        return None
    if targets.is_floating_point():
        if targets.shape != output.shape:
            return None
        truth = targets.argmax(1)
    else:
        if targets.numel() != len(output):
            return None
        truth = targets.reshape(-1).long()
    num_classes = output.shape[1]
    chances = _chances(criterion, output)
    guess = output.argmax(1)
    sure = chances.gather(1, guess[:, None])[:, 0]
    return Decoded("classes", truth, guess, num_classes, sure, (truth >= 0) & (truth < num_classes))


def _chances(criterion: Criterion, output: torch.Tensor) -> torch.Tensor:
    if getattr(criterion, "log_probs", False):
        return output.exp()
    already = bool((output >= 0).all()) and torch.allclose(output.sum(1), output.new_ones(()), atol=1e-3)
    own = not isinstance(criterion, CrossEntropy)  # its model may end in a softmax
    return output if own and already else output.softmax(1)


def _labels(output: torch.Tensor, targets: torch.Tensor) -> Decoded | None:
    if output.numel() != targets.numel():
        return None
    if output.numel() == len(output):
        chance = output.reshape(-1).sigmoid()
        guess = output.reshape(-1) > 0
        return Decoded(
            "classes", (targets.reshape(-1) > 0.5).long(), guess.long(), 2, torch.where(guess, chance, 1 - chance)
        )
    if targets.ndim != 2:
        return None
    return Decoded("labels", targets > 0.5, output.reshape(targets.shape) > 0, targets.shape[1])


def _numbers(output: torch.Tensor, targets: torch.Tensor) -> Decoded | None:
    if output.numel() != targets.numel():
        return None
    rows = targets.reshape(len(targets), -1).float()
    if not 0 < rows.shape[1] <= MAX_COLUMNS:
        return None
    return Decoded("numbers", rows, output.reshape(rows.shape), 0)
