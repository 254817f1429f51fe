"""Decode the outputs and targets of a batch into classes, labels or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heptane.base.lazy import torch
from heptane.core.losses import Criterion, CrossEntropy, Ctc, Elementwise

MAX_COLUMNS = 16  # numbers per sample; more are an image or a sequence, for which a table of errors is no help


@dataclass(frozen=True)
class Decoded:
    """Targets and predictions of a batch, on the CPU.

    ``kind`` is "classes" (both (N,), int64), "labels" (both (N, K), bool) or "numbers" (both (N, K), float32).
    ``confidence`` (N,) is the probability of the predicted class. ``counted`` (N,) is False where the loss ignores it.
    """

    kind: str
    truth: torch.Tensor
    predicted: torch.Tensor
    num_classes: int
    confidence: torch.Tensor | None = None
    counted: torch.Tensor | None = None


def decode(criterion: Criterion, output: Any, targets: Any) -> Decoded | None:
    """Decode a batch; None where a sample has no single answer (sequences, masks, CTC, structures).

    Example:
        >>> decode(CrossEntropy(), torch.tensor([[2.0, 0.0]]), torch.tensor([1])).predicted
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
    probabilities = _probabilities(criterion, output)
    predicted = output.argmax(1)
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    return Decoded("classes", truth, predicted, num_classes, confidence, (truth >= 0) & (truth < num_classes))


def _probabilities(criterion: Criterion, output: torch.Tensor) -> torch.Tensor:
    if getattr(criterion, "log_probs", False):
        return output.exp()
    normalised = bool((output >= 0).all()) and torch.allclose(output.sum(1), output.new_ones(()), atol=1e-3)
    custom = not isinstance(criterion, CrossEntropy)  # the model may already end in a softmax
    return output if custom and normalised else output.softmax(1)


def _labels(output: torch.Tensor, targets: torch.Tensor) -> Decoded | None:
    if output.numel() != targets.numel():
        return None
    if output.numel() == len(output):
        probability, predicted, truth = output.reshape(-1).sigmoid(), output.reshape(-1) > 0, targets.reshape(-1) > 0.5
        confidence = torch.where(predicted, probability, 1 - probability)
        return Decoded("classes", truth.long(), predicted.long(), 2, confidence)
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
