"""Where decoded pixels are kept: in a bounded cache on the disk, else in memory, else nowhere.

The cache (``disk_cache.py``) holds one folder per data set and image size, named after a checksum of the files' names, sizes
and times and of the way of decoding. If some files have changed, the rows of the others are copied from the earlier folder.
Removing a folder that is in use is safe: a process keeps its files open.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np
from heptane.base.memory import available_memory_bytes
from heptane.base.storage import replace_file
from heptane.data.disk_cache import FACTS, OFF, entries, make_room, mark_used
from heptane.data.images.pixel_store import EarlierRows, PixelFile, PixelMemory, PixelStore
from heptane.data.images.read_image import FIT
from heptane.data.reading import AUTO, Reading

if TYPE_CHECKING:
    from heptane.data.images.image_files import ImageList

KEYS = "keys"
FORMAT = 2  # raise it when decoding changes
MEMORY_SHARE = 0.25  # of the available memory that pixels may take
SMALL = 8 * 2**20  # bytes of files and pixels: smaller data sets are decoded in a moment


def open_store(
    images: ImageList, size: tuple[int, int], channels: int, num_rows: int, reading: Reading, encoded_bytes: int
) -> tuple[PixelStore, str]:
    """A store for images of this size, and how it keeps them, in words ('' where there is nothing to say).

    Args:
        images: of the data set.
        size: (height, width) in pixels.
        channels: 1 or 3.
        num_rows: how many images will be used.
        reading: where they are kept, and how they are read.
        encoded_bytes: size of all files, to tell a small data set; 0 if unknown.
    """
    store = PixelStore(images, size, channels, reading)
    row, wanted = store.row_bytes, num_rows * store.row_bytes
    fits = fits_in_memory(num_rows, store.shape)
    why = "the cache is off" if reading.cache == OFF else ""
    small = fits and encoded_bytes > 0 and encoded_bytes + wanted < SMALL
    if not why and not small:
        folder = reading.cache_folder
        decoding = _decoding(size, channels, reading)
        path = folder / _checksum(decoding, images.fingerprint())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # opened before room is made: what is removed then can still be read
            earlier = _earlier(folder, path, images, decoding, row) if shutil.disk_usage(folder).free > wanted else None
            why = make_room(folder, path, wanted, reading.cache_gb)
            if not why:
                reopen = partial(_open, path, len(images), row)
                store = PixelStore(images, size, channels, reading, reopen(), reopen)
                store.earlier = earlier
                _describe(path, images, size, wanted, decoding)
                return store, f"cached in {folder}"
        except OSError as error:
            if reading.cache != AUTO:
                raise InputError(f"data_cache={str(folder)!r} cannot be used ({one_line(error)}): choose another") from error
            why = f"{folder} cannot be used ({one_line(error)})"
    if fits:
        store.rows = PixelMemory(len(images), row)
    return store, "" if small else why


def _open(path: Path, num_rows: int, row_bytes: int) -> PixelFile:
    path.mkdir(parents=True, exist_ok=True)
    return PixelFile(path, num_rows, row_bytes)


def _decoding(size: tuple[int, int], channels: int, reading: Reading) -> str:
    """A checksum of the way of decoding."""
    import PIL

    return _checksum(FORMAT, PIL.__version__, FIT, size, channels, reading.colour)


def _checksum(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _earlier(folder: Path, path: Path, images: ImageList, decoding: str, row_bytes: int) -> EarlierRows | None:
    """What was decoded of an earlier state of the data set, before files were changed, added or removed."""
    for other in reversed(entries(folder, path)):
        try:
            facts = json.loads((other / FACTS).read_text())
            if (facts.get("data"), facts.get("decoding")) == (images.where, decoding):
                keys = np.fromfile(other / KEYS, dtype=np.uint64).reshape(-1, 2)
                return EarlierRows(PixelFile(other, len(keys), row_bytes), keys, images)
        except (OSError, ValueError, AttributeError):  # it is damaged, or another process removes it
            continue
    return None


def _describe(path: Path, images: ImageList, size: tuple[int, int], wanted: int, decoding: str) -> None:
    """Record what a folder is for; its time says when it was used last."""
    if not (path / KEYS).exists() and (keys := images.keys()) is not None:
        replace_file(path / KEYS, keys.tobytes())
    facts = {"data": images.where, "size": list(size), "images": len(images), "bytes": wanted, "decoding": decoding}
    mark_used(path, facts)


def fits_in_memory(num_rows: int, shape: tuple[int, ...]) -> bool:
    """Whether the pixels may stay in memory."""
    return num_rows * math.prod(shape) <= MEMORY_SHARE * available_memory_bytes()
