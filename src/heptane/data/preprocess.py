"""From raw data to a model's inputs: learned on the training part, kept with the run as JSON, applied to new data."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from heptane.base.lazy import np, torch

if TYPE_CHECKING:
    import numpy.typing as npt


class Preprocess(ABC):
    """The step from raw data to the inputs of a model, the same in training and in prediction."""

    kind: ClassVar[str]
    """images, arrays or table: as :attr:`heptane.Data.kind`"""

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
        """A model's predictions in the units of the training data; other than they are only for tables' regression."""
        return predictions


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
