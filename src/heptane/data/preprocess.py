"""From raw data to a model's inputs: learned on the training part, kept with the run as JSON, applied to new data."""

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
    """Mean and standard deviation of real-valued targets in training: a number each, or for targets (N, K) one per column.

    Example:
        >>> scale = TargetScale.learn(torch.tensor([100.0, 300.0]))
        >>> scale, scale.apply(torch.tensor([300.0])), scale.undo(torch.tensor([0.5]))
        (TargetScale(mean=200.0, std=100.0), tensor([1.]), tensor([250.]))
    """

    mean: Any
    std: Any

    @classmethod
    def learn(cls, targets: torch.Tensor) -> TargetScale:
        """Of the training part's; targets that are all the same are only shifted."""
        known = targets.double()
        mean, std = known.mean(0), known.std(0, correction=0)
        std = torch.where(std.isfinite() & (std > 0), std, torch.ones_like(std))
        return cls(mean.tolist(), std.tolist())

    @classmethod
    def parse(cls, record: Mapping[str, Any] | None) -> TargetScale | None:
        """What :meth:`record` described."""
        return None if record is None else cls(record["mean"], record["std"])

    def record(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def apply(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets as a model is trained on them, float32."""
        values = targets.double()
        return ((values - values.new_tensor(self.mean)) / values.new_tensor(self.std)).float()

    def undo(self, predictions: torch.Tensor) -> torch.Tensor:
        """Predictions in the units of the data."""
        return predictions * predictions.new_tensor(self.std) + predictions.new_tensor(self.mean)

    def note(self, name: str) -> str:
        """What is to be said of it."""
        several = isinstance(self.mean, list)
        about = "each column" if several else f"mean {self.mean:.6g}, standard deviation {self.std:.6g}"
        return f"{name} ({about}) is standardized for training: losses are in these units, predictions in its own"


class Preprocess(ABC):
    """The step from raw data to the inputs of a model, the same in training and in prediction."""

    kind: ClassVar[str]
    """images, arrays or table: as :attr:`heptane.Data.kind`"""
    target: TargetScale | None = None
    """what was taken out of real-valued targets; None for classes and labels"""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Everything that was learned, as JSON holds it."""

    @abstractmethod
    def inputs(self, source: Any) -> tuple[list[str], torch.Tensor]:
        """A name for each sample of ``source``, and the samples as a model takes them: float32 (N, ...).

        Raises:
            InputError: ``source`` cannot be read, or holds something else than the training data did.
        """

    def outputs(self, predictions: torch.Tensor) -> torch.Tensor:
        """A model's predictions in the units of the training data; other than they are only for regression."""
        return predictions if self.target is None else self.target.undo(predictions)


def as_array(source: Any) -> npt.NDArray[Any] | None:
    """A NumPy array or a tensor as an array; None for anything else."""
    if isinstance(source, torch.Tensor):
        known = source.detach().cpu()
        return (known.float() if known.dtype == torch.bfloat16 else known).numpy()  # NumPy has no bfloat16
    return source if isinstance(source, np.ndarray) else None


def is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def numbered(count: int) -> list[str]:
    """Names for samples that have none."""
    return [str(index) for index in range(count)]
