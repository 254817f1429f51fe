"""What a data set of images consists of, before any is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    from heptane.data.images.image_files import ImageList

PARTS = ("train", "valid", "test")
VALID_NAMES = ("valid", "val", "validation")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a data set before any is read.

    Attributes:
        name, where: of the data set, for people.
        images: all of them.
        labels: of each image: the class number, int64 (N,); for several classes 0 or 1 each, float32 (N, K); or a number to
            predict, float64 (N,).
        parts: positions of the images of each part: ``train`` and, if given, ``valid`` and ``test``; or ``all``.
        classes: names of the classes; () if the labels are numbers to predict.
        notes: for the user.
        encoded_bytes: size of all images as stored; 0 if unknown.
        named: whether the classes have names; False: they are the numbers of a label column, which say nothing.
    """

    name: str
    where: str
    images: ImageList
    labels: npt.NDArray[Any]
    parts: dict[str, npt.NDArray[np.int64]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    encoded_bytes: int
    named: bool = True

    @property
    def one_class(self) -> bool:
        """Whether each image has exactly one class."""
        return bool(self.classes) and self.labels.ndim == 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Images per class; () if the labels are numbers."""
        if not self.classes:
            return ()
        counts = np.bincount(self.labels, minlength=len(self.classes)) if self.one_class else self.labels.sum(0)
        return tuple(int(count) for count in counts)


def part_named(name: str) -> str | None:
    """The part that a name stands for: ``train``, ``valid`` or ``test``; None for another name.

    Example:
        >>> part_named("Validation"), part_named("unsup")
        ('valid', None)
    """
    lower = name.strip().lower()
    return "valid" if lower in VALID_NAMES else lower if lower in ("train", "test") else None
