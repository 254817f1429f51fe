"""What is kept of a pass over data: an answer per sample, and the inputs of the few worst."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch
from heptane.core.losses import Criterion
from heptane.report.examination.decode import Decoded, decode

KEPT = 24  # mistakes that are shown


class Collector:
    """Takes batches one by one; of their inputs it keeps those of the :data:`KEPT` worst samples only.

    Args:
        criterion: the loss, which says what outputs and targets mean.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.kind = ""
        self.num_classes = 0
        self.num_samples = 0
        self.worst: list[tuple[float, int, Any]] = []
        """how bad, which sample, its input; the worst first"""
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, inputs: Any, output: Any, targets: Any) -> bool:
        """Take a batch; False where it cannot be examined, and then there is no use in more."""
        found = decode(self.criterion, output, targets)
        if found is None or (self.kind and found.kind != self.kind):
            return False
        self.kind, self.num_classes = found.kind, max(self.num_classes, found.num_classes)
        indices = torch.arange(self.num_samples, self.num_samples + len(found.truth))
        self.num_samples += len(found.truth)
        sure = found.sure if found.sure is not None else torch.full((len(found.truth),), torch.nan)
        badness = _badness(found, sure)
        self._keep_worst(badness, indices, inputs)
        keep = found.counted if found.counted is not None else torch.ones(len(found.truth), dtype=torch.bool)
        self._parts.append((indices[keep], found.truth[keep], found.guess[keep], sure[keep]))
        return True

    def all(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every sample that counts: its index, the truth, the prediction, how sure it was."""
        first, second, third, fourth = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return first, second, third, fourth

    def _keep_worst(self, badness: torch.Tensor, indices: torch.Tensor, inputs: Any) -> None:
        for place in badness.argsort(descending=True, stable=True)[:KEPT].tolist():
            bad = float(badness[place])
            if bad <= 0 or (len(self.worst) == KEPT and bad <= self.worst[-1][0]):
                break
            shown = inputs[place].detach().cpu().clone() if isinstance(inputs, torch.Tensor) else None
            self.worst.append((bad, int(indices[place]), shown))
            self.worst.sort(key=lambda kept: -kept[0])
            del self.worst[KEPT:]


def _badness(found: Decoded, sure: torch.Tensor) -> torch.Tensor:
    """How bad each prediction is; 0: right, or it does not count."""
    if found.kind == "numbers":
        return (found.guess - found.truth).abs().mean(1).nan_to_num(0.0, 0.0, 0.0)
    wrong = found.guess != found.truth
    if found.kind == "labels":
        return wrong.float().mean(1)
    wrong = wrong if found.counted is None else wrong & found.counted
    return torch.where(wrong, sure.nan_to_num(0.0) + 1e-6, torch.zeros(()))
