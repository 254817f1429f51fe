"""Collect predictions over a data set, and the inputs of the worst ones."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch
from heptane.core.losses import Criterion
from heptane.report.examination.decode import Decoded, decode

MAX_MISTAKES = 24


class Collector:
    """Collects predictions batch by batch, and the inputs of the :data:`MAX_MISTAKES` worst ones.

    Args:
        criterion: the loss, which decides how outputs and targets are read.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.kind = ""
        self.num_classes = 0
        self.num_samples = 0
        self.worst: list[tuple[float, int, Any]] = []
        """(severity, sample index, input); worst first"""
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, inputs: Any, output: Any, targets: Any) -> bool:
        """Add a batch; False if outputs of this form cannot be examined."""
        found = decode(self.criterion, output, targets)
        if found is None or (self.kind and found.kind != self.kind):
            return False
        self.kind, self.num_classes = found.kind, max(self.num_classes, found.num_classes)
        indices = torch.arange(self.num_samples, self.num_samples + len(found.truth))
        self.num_samples += len(found.truth)
        confidence = found.confidence if found.confidence is not None else torch.full((len(found.truth),), torch.nan)
        severity = _severity(found, confidence)
        self._keep_worst(severity, indices, inputs)
        keep = found.counted if found.counted is not None else torch.ones(len(found.truth), dtype=torch.bool)
        self._parts.append((indices[keep], found.truth[keep], found.predicted[keep], confidence[keep]))
        return True

    def all(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Index, target, prediction and confidence of every sample that counts."""
        first, second, third, fourth = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return first, second, third, fourth

    def _keep_worst(self, severity: torch.Tensor, indices: torch.Tensor, inputs: Any) -> None:
        for place in severity.argsort(descending=True, stable=True)[:MAX_MISTAKES].tolist():
            bad = float(severity[place])
            if bad <= 0 or (len(self.worst) == MAX_MISTAKES and bad <= self.worst[-1][0]):
                break
            shown = inputs[place].detach().cpu().clone() if isinstance(inputs, torch.Tensor) else None
            self.worst.append((bad, int(indices[place]), shown))
            self.worst.sort(key=lambda kept: -kept[0])
            del self.worst[MAX_MISTAKES:]


def _severity(found: Decoded, confidence: torch.Tensor) -> torch.Tensor:
    """How wrong each prediction is; 0: right, or ignored."""
    if found.kind == "numbers":
        return (found.predicted - found.truth).abs().mean(1).nan_to_num(0.0, 0.0, 0.0)
    wrong = found.predicted != found.truth
    if found.kind == "labels":
        return wrong.float().mean(1)
    wrong = wrong if found.counted is None else wrong & found.counted
    return torch.where(wrong, confidence.nan_to_num(0.0) + 1e-6, torch.zeros(()))
