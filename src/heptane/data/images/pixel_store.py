"""Decoded pixels of a data set's images: each image is decoded once, and kept in memory or in a file.

Row ``i`` of the file ``pixels`` is image ``i``: uint8 (H, W, C), which crops and scales fastest. The file ``checksums`` has
a CRC-32 per row, written after the pixels; 0 means that the row is missing. So a reader believes only complete rows,
whatever was killed, and several processes may fill one store: each writes what the others would write. All rows have one
size, and a file that is only partly filled takes only that much of the disk.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heptane.base.lazy import np, torch
from heptane.base.progress import working
from heptane.data.images.read_image import decode, ignore_warnings, read_image_unguarded

if TYPE_CHECKING:
    import numpy.typing as npt

    from heptane.data.images.image_files import ImageList
    from heptane.data.reading import Reading

AT_ONCE, PIECE = 512, 8  # images in each round of ``fill``, and for a thread at a time
T = TypeVar("T")
Pixels = Any  # a NumPy array, uint8 (C, H, W)


class Unreadable(ValueError):
    """An image cannot be read; the cause is chained."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class PixelFile:
    """Rows in a file, with a checksum each."""

    def __init__(self, folder: Path, num_rows: int, row_bytes: int) -> None:
        self.num_rows, self.row_bytes = num_rows, row_bytes
        self._pixels = _open(folder / "pixels", num_rows * row_bytes)
        weakref.finalize(self, os.close, self._pixels)
        self._sums = _open(folder / "checksums", 4 * num_rows)
        weakref.finalize(self, os.close, self._sums)
        self._checked = np.zeros(num_rows, dtype=bool)
        self.full = False
        self.refresh()

    def refresh(self) -> None:
        """Read which rows there are now, since other processes may write some."""
        self.sums = np.frombuffer(
            bytearray(_read(self._sums, 4 * self.num_rows, 0).ljust(4 * self.num_rows, b"\0")), dtype=np.uint32
        )

    def get(self, row: int) -> npt.NDArray[np.uint8] | None:
        """The bytes of a row; None if it is missing or damaged."""
        if not self.sums[row]:
            return None
        content = np.frombuffer(_read(self._pixels, self.row_bytes, row * self.row_bytes), dtype=np.uint8)
        if len(content) < self.row_bytes:  # the file was truncated, and what is written later fills it up with zeros
            self._checked[:] = False
            return None
        if not self._checked[row]:
            if checksum(content) != self.sums[row]:
                self.sums[row] = 0
                return None
            self._checked[row] = True
        return content

    def put(self, row: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write a row, unless the disk is full."""
        if self.full:
            return
        content = np.ascontiguousarray(pixels).reshape(-1)
        total = checksum(content)
        try:
            _write(self._pixels, content.data, row * self.row_bytes)
            _write(self._sums, int(total).to_bytes(4, "little"), 4 * row)
        except OSError:  # the disk is full, or went away: the images are decoded each time
            self.full = True
            return
        self.sums[row], self._checked[row] = total, True

    def whole(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """All rows, mapped into memory and not to be written to: uint8 (num_rows, row_bytes); None if one of ``rows`` is
        missing or damaged."""
        mapped = mmap.mmap(self._pixels, self.num_rows * self.row_bytes, access=mmap.ACCESS_COPY)  # even if it was removed
        pixels = np.frombuffer(mapped, dtype=np.uint8).reshape(self.num_rows, self.row_bytes)
        for row in rows.tolist():
            if not self._checked[row] and (not self.sums[row] or checksum(pixels[row]) != self.sums[row]):
                return None
            self._checked[row] = True
        return torch.from_numpy(pixels)


class EarlierRows:
    """Rows of an earlier state of the data set.

    Args:
        rows: the file.
        keys: of each row, the image's key when it was decoded.
        images: the images now.
    """

    def __init__(self, rows: PixelFile, keys: npt.NDArray[np.uint64], images: ImageList) -> None:
        self._rows, self._keys, self._images = rows, keys, images
        self._where: npt.NDArray[np.int64] | None = None
        self._lock = threading.Lock()

    def get(self, index: int) -> npt.NDArray[np.uint8] | None:
        """The bytes of an image; None if it has changed, or its row is missing or damaged."""
        with self._lock:
            if self._where is None:
                self._where = _find(self._images.keys(), self._keys)
        row = int(self._where[index])
        return None if row < 0 else self._rows.get(row)


def _find(wanted: npt.NDArray[np.uint64] | None, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The row of each wanted key; -1: none."""
    assert wanted is not None
    order = np.argsort(keys[:, 0])
    found = order[np.searchsorted(keys[order, 0], wanted[:, 0]).clip(max=len(keys) - 1)]
    return np.where((keys[found] == wanted).all(1), found, -1)


class PixelMemory:
    """Rows in memory."""

    def __init__(self, num_rows: int, row_bytes: int) -> None:
        self.pixels = torch.empty((num_rows, row_bytes), dtype=torch.uint8)
        self.sums = np.zeros(num_rows, dtype=np.uint32)
        self.full = False

    def refresh(self) -> None:
        """Nobody else writes here."""

    def whole(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        return self.pixels if self.sums[rows].all() else None

    def get(self, row: int) -> npt.NDArray[np.uint8] | None:
        return self.pixels[row].numpy() if self.sums[row] else None

    def put(self, row: int, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels[row] = torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1))
        self.sums[row] = 1


class PixelStore:
    """The decoded pixels of images, read by number.

    Args:
        images: the encoded images.
        size: height and width, in pixels, to which images are fitted.
        channels: 1 (grey) or 3.
        reading: the number of threads that decode (Pillow does it without Python's lock), and the background.
        rows: where pixels are kept; None: nowhere, so that images are decoded at each use.
        reopen: makes ``rows`` again in another process.
    """

    def __init__(
        self,
        images: ImageList,
        size: tuple[int, int],
        channels: int,
        reading: Reading,
        rows: PixelFile | PixelMemory | None = None,
        reopen: Callable[[], PixelFile | PixelMemory | None] | None = None,
    ) -> None:
        self.images, self.size, self.channels, self.reading = images, size, channels, reading
        self.readers = reading.num_readers
        self.rows, self._reopen = rows, reopen
        self.earlier: EarlierRows | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[Pixels]] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W)."""
        return self.channels, *self.size

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape)

    def one(self, index: int) -> Pixels:
        """The pixels of an image.

        Raises:
            Unreadable: it cannot be decoded.
        """
        kept = self.rows.get(index) if self.rows is not None else None
        return self._decoded(index) if kept is None else kept.reshape(*self.size, self.channels)

    def _decoded(self, index: int) -> Pixels:
        kept = self.earlier.get(index) if self.earlier is not None else None
        if kept is not None:
            pixels = kept.reshape(*self.size, self.channels)
        else:
            try:
                source = self.images.read(index)
                size, is_grey, colour = self.size[::-1], self.channels == 1, self.reading.colour
                pixels = read_image_unguarded(source, lambda image: decode(image, size, is_grey, colour)).transpose(1, 2, 0)
            except Exception as error:  # Pillow's readers raise many types for damaged files
                raise Unreadable(index) from error
        if self.rows is not None:
            self.rows.put(index, pixels)
        return pixels

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """The pixels of some images: uint8 (N, C, H, W).

        Raises:
            Unreadable: one cannot be decoded.
        """
        found = np.empty((len(indices), *self.size, self.channels), dtype=np.uint8)
        with ignore_warnings():
            self.prefetch(indices)
            for at, index in enumerate(indices):
                waiting = self._pending.pop(index, None)
                found[at] = self.one(index) if waiting is None else waiting.result()
        return self.channels_first(torch.from_numpy(found))

    def channels_first(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows as images (N, C, H, W), in channels-last memory."""
        return rows.view(len(rows), *self.size, self.channels).permute(0, 3, 1, 2)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read images that will be needed soon."""
        if self.readers:
            for index in indices:
                if index not in self._pending:
                    self._pending[index] = self._threads().submit(self.one, index)

    def forget(self, indices: Sequence[int]) -> None:
        """Release what was read ahead."""
        for index in indices:
            if (waiting := self._pending.pop(index, None)) is not None:
                waiting.cancel()

    def fill(self, indices: Sequence[int], what: str, limit: int, first: int = 0) -> list[tuple[int, Exception]]:
        """Decode all images that are not kept yet.

        Args:
            indices: of the images.
            what: for the progress line.
            limit: stop after more than this many unreadable images.
            first: position at which to begin, so that several processes share the work.

        Returns:
            The unreadable ones, in order, with their errors.
        """
        bad: list[tuple[int, Exception]] = []
        turned = [*indices[first:], *indices[:first]]
        with working(what, len(turned)) as advance, ignore_warnings():
            for start in range(0, len(turned), AT_ONCE):
                some = turned[start : start + AT_ONCE]
                if self.rows is not None:
                    self.rows.refresh()
                missing = [index for index in some if self.rows is None or not self.rows.sums[index]]
                advance(len(some) - len(missing))
                pieces = [missing[at : at + PIECE] for at in range(0, len(missing), PIECE)]
                for piece, found in zip(pieces, self._map(self._errors, pieces), strict=True):
                    advance(len(piece))
                    bad += found
                if len(bad) > limit:
                    break
        return sorted(bad, key=lambda one: one[0])

    def _errors(self, indices: Sequence[int]) -> list[tuple[int, Exception]]:
        """Decode some images; return the unreadable ones with their errors."""
        bad: list[tuple[int, Exception]] = []
        for index in indices:
            try:
                self._decoded(index)
            except Unreadable as error:
                bad.append((index, error.__cause__ if isinstance(error.__cause__, Exception) else error))
        return bad

    def _map(self, function: Callable[[Any], T], values: Sequence[Any]) -> Iterator[T]:
        return self._threads().map(function, values) if self.readers else map(function, values)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.readers, thread_name_prefix="heptane-reader")
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        kept = None if self._reopen is not None else self.rows
        return {**vars(self), "_pool": None, "_pending": {}, "rows": kept, "earlier": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._reopen is not None:
            self.rows = self._reopen()


def checksum(content: npt.NDArray[np.uint8]) -> int:
    """CRC-32, but never 0, which stands for a missing row."""
    return zlib.crc32(content.data) or 1


def _open(path: Path, size: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    return descriptor


def _read(descriptor: int, size: int, at: int) -> bytes:
    content = os.pread(descriptor, size, at)
    while len(content) < size:
        more = os.pread(descriptor, size - len(content), at + len(content))
        if not more:
            break
        content += more
    return content


def _write(descriptor: int, content: Any, at: int) -> None:
    left = memoryview(content).cast("B")
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
