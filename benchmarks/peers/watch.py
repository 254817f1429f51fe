"""The stopwatch of all loops; it pauses during validation."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn


class Watch:
    """Times training, and looks at the validation accuracy at the end of each epoch.

    Args:
        valid: images and labels.
        target: accuracy at which training is to stop; None goes on to the end.
    """

    def __init__(self, valid: tuple[Tensor, Tensor], target: float | None) -> None:
        self.valid, self.target = valid, target
        self.curve: list[tuple[float, float]] = []
        self.seconds = 0.0
        self._since = time.perf_counter()

    @torch.no_grad()
    def look(self, model: nn.Module) -> bool:
        """Evaluate in fp32, in batches of 512; returns whether to stop."""
        self.seconds += time.perf_counter() - self._since
        training = model.training
        model.eval()
        pairs = zip(self.valid[0].split(512), self.valid[1].split(512), strict=True)
        right = sum(int((model(x).float().argmax(1) == y).sum()) for x, y in pairs)
        model.train(training)
        accuracy = right / len(self.valid[1])
        self.curve.append((self.seconds, accuracy))
        self._since = time.perf_counter()
        return self.target is not None and accuracy >= self.target

    @property
    def reached(self) -> float | None:
        """Training seconds at the first evaluation at the target; None if there is none."""
        return next((s for s, accuracy in self.curve if self.target is not None and accuracy >= self.target), None)
