"""Preprocessing from raw data to a model's inputs: learned on the training part, stored as JSON, applied to new data."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from heptane.base.lazy import np, torch

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of regression targets in training: numbers, or lists per column for targets (N, K).

    Example:
        >>> scale = TargetScale.learn(torch.tensor([100.0, 300.0]))
        >>> scale, scale.apply(torch.tensor([300.0])), scale.undo(torch.tensor([0.5]))
        (TargetScale(mean=200.0, std=100.0), tensor([1.]), tensor([250.]))
    """

    mean: Any
    std: Any

    @classmethod
    def learn(cls, targets: torch.Tensor) -> TargetScale:
        """Learn from training targets; constant targets are only shifted."""
        known = targets.double()
        mean, std = known.mean(0), known.std(0, correction=0)
        std = torch.where(std.isfinite() & (std > 0), std, torch.ones_like(std))
        return cls(mean.tolist(), std.tolist())

    @classmethod
    def parse(cls, record: Mapping[str, Any] | None) -> TargetScale | None:
        """Rebuild from :meth:`record`."""
        return None if record is None else cls(record["mean"], record["std"])

    def record(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def apply(self, targets: torch.Tensor) -> torch.Tensor:
        """Standardize targets, to float32."""
        values = targets.double()
        return ((values - values.new_tensor(self.mean)) / values.new_tensor(self.std)).float()

    def undo(self, predictions: torch.Tensor) -> torch.Tensor:
        """Convert predictions to the units of the data."""
        return predictions * predictions.new_tensor(self.std) + predictions.new_tensor(self.mean)

    def note(self, name: str) -> str:
        """The note for the user."""
        several = isinstance(self.mean, list)
        about = "each column" if several else f"mean {self.mean:.6g}, standard deviation {self.std:.6g}"
        return f"{name} ({about}) is standardized for training: losses are in standardized units, predictions in its own"


class Preprocess(ABC):
    """Converts raw data to a model's inputs, the same way in training and prediction."""

    kind: ClassVar[str]
    """images, arrays, table or text, as :attr:`heptane.Data.kind`"""
    target: TargetScale | None = None
    """scale of regression targets; None for classes"""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Everything learned, as JSON values."""

    @abstractmethod
    def inputs(self, source: Any) -> tuple[list[str], Any]:
        """Return the names and the inputs, float32 (N, ...) or a dict of tensors, of the samples in ``source``.

        Raises:
            InputError: ``source`` cannot be read, or does not match the training data.
        """

    def outputs(self, predictions: torch.Tensor) -> torch.Tensor:
        """Convert predictions to the units of the training data; only regression predictions change."""
        return predictions if self.target is None else self.target.undo(predictions)


def as_array(source: Any) -> npt.NDArray[Any] | None:
    """Convert an array or tensor to a NumPy array; None for anything else."""
    if isinstance(source, torch.Tensor):
        known = source.detach().cpu()
        return (known.float() if known.dtype == torch.bfloat16 else known).numpy()  # NumPy has no bfloat16
    return source if isinstance(source, np.ndarray) else None


def is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def numbered(count: int) -> list[str]:
    """Default sample names: ``0``, ``1``, ..."""
    return [str(index) for index in range(count)]
