"""Unreadable training images, found as they are reached: each is replaced by the next readable one of its class.

The replacement depends on the data alone, so the batches are the same after a resume, with any number of readers and on any
number of workers, whatever was found before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from heptane.base.errors import DataError, one_line
from heptane.base.lazy import np
from heptane.data.images.pixel_store import Unreadable

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from heptane.data.images.image_files import ImageList

MAX_NAMED = 5


class ReplacedImages:
    """The unreadable images of the training part.

    Args:
        images: of the data set.
        rows: the numbers of the part's images.
        labels: the class of each image of the data set.
        limit: how many may be replaced.
    """

    def __init__(self, images: ImageList, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], limit: int) -> None:
        self.images, self.rows, self.labels, self.limit = images, rows, labels, limit
        self._next: dict[int, int] = {}
        """of each unreadable image the next one of its class"""
        self._messages: list[str] = []
        self._say: Callable[[str], None] | None = None

    def report_to(self, say: Callable[[str], None]) -> None:
        """Call ``say`` with a message for each replaced image, also for those found before."""
        for message in self._messages:
            say(message)
        self._say = say

    def read(self, read: Callable[[Sequence[int]], torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
        """What ``read`` makes of the images ``rows``, unreadable ones replaced.

        Raises:
            DataError: they are too many, or all images of a class are unreadable.
        """
        while True:
            try:
                return read([self._readable(row) for row in rows])
            except Unreadable as error:
                self._add(error)

    def _readable(self, row: int) -> int:
        while row in self._next:
            row = self._next[row]
        return row

    def _add(self, error: Unreadable) -> None:
        name = f"{self.images.where}/{self.images.name(error.index)}"
        cause = one_line(error.__cause__) if isinstance(error.__cause__, Exception) else "damaged"
        if len(self._next) >= self.limit:
            named = ", ".join(repr(self.images.name(row)) for row in list(self._next)[:MAX_NAMED])
            which = f"it is one more than --skip-bad allows{f', after {named}' if named else ''}"
            raise DataError(f"image {name!r} cannot be read ({cause}): {which}; repair or remove it") from error
        members = self.rows[self.labels[self.rows] == self.labels[error.index]]
        if all(int(row) in self._next or int(row) == error.index for row in members):
            raise DataError(f"no training image of the class of {name!r} can be read ({cause}): add some") from error
        self._next[error.index] = int(members[(np.searchsorted(members, error.index) + 1) % len(members)])
        self._messages.append(f"image {name!r} cannot be read ({cause}): the next one of its class is used in its place")
        if self._say is not None:
            self._say(self._messages[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_say": None}
