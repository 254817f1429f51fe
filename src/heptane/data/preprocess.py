"""From raw data to a model's inputs: learned on the training part, kept with the run as JSON, applied to new data."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch

if TYPE_CHECKING:
    import numpy.typing as npt


class Preprocess(ABC):
    """The step from raw data to the inputs of a model, the same in training and in prediction.

    Example:
        >>> from heptane.data import load_data
        >>> data = load_data("digits")
        >>> again = Preprocess.from_record(data.preprocess.record())
        >>> names, inputs = again.inputs(np.zeros((2, 8, 8), dtype="uint8"))
        >>> names, inputs.shape
        (['0', '1'], torch.Size([2, 1, 8, 8]))
    """

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

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Preprocess:
        """What :meth:`record` described.

        Raises:
            InputError: it is damaged, or of a kind that this version does not know.
        """
        from heptane.data.images import ImagePreprocess
        from heptane.data.table import TablePreprocess
        from heptane.data.vectors import ArrayPreprocess

        kinds: dict[str, type[Any]] = {"images": ImagePreprocess, "arrays": ArrayPreprocess, "table": TablePreprocess}
        kind = record.get("kind") if isinstance(record, Mapping) else None
        if kind not in kinds:
            raise InputError(
                f"preprocess has kind {kind!r}: expected one of {', '.join(kinds)}; was the run made by another version?"
            )
        try:
            made: Preprocess = kinds[kind].parse(record)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"preprocess of kind {kind!r} is damaged ({type(error).__name__}: {error})") from error
        return made


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
