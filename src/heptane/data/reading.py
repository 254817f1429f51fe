"""How data is read and cached."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from heptane.base.cache import default_cache
from heptane.base.errors import InputError, check_range

AUTO = "auto"
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How :func:`heptane.load_data` reads image files, and caches images, large tables and text.

    Args:
        cache: folder in which decoded images, columns of large tables and tokens are kept for later runs; ``"off"`` for
            none, ``"auto"`` for ``data`` in heptane's cache folder.
        cache_gb: largest size of that folder, in 10^9 bytes, above 0; what was used longest ago is removed first. None: 20,
            and at most half of the free disk.
        readers: threads that decode images, at least 0; 0: the training thread does it. None: one per processor core. The
            batches do not depend on it.
        room: the training images are kept this much larger than they are trained at, in [1, 4], for random crops.
        first: images at most that are decoded before training; of more, each is decoded when it is first needed. None:
            10,000. 0: nothing is decoded before, not even validation images of which some may be skipped.
        background: behind transparent pixels: ``white``, ``black``, ``grey``, a colour such as ``#ffcc00``, or ``auto``:
            white, but black if the image itself is nearly white.

    Example:
        >>> Reading(readers=0, background="#ffffff").colour
        (255, 255, 255)
    """

    cache: str | os.PathLike[str] = AUTO
    cache_gb: float | None = None
    readers: int | None = None
    room: float = 1.0
    first: int | None = None
    background: str = AUTO

    def __post_init__(self) -> None:
        if not os.fspath(self.cache):
            raise InputError("data_cache='': expected a folder, 'auto' or 'off'")
        if self.cache_gb is not None:
            check_range("data_cache_gb", self.cache_gb, 0, low_open=True)
        if self.readers is not None:
            check_range("readers", self.readers, 0, 256, whole=True)
        check_range("room", self.room, 1, 4)
        if self.first is not None:
            check_range("first", self.first, 0, whole=True)
        _ = self.colour

    @property
    def colour(self) -> tuple[int, int, int] | None:
        """The background as red, green and blue, each 0 to 255; None: by the image."""
        return parse_colour(self.background)

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache, if it is not off."""
        return default_cache() / "data" if self.cache == AUTO else Path(self.cache).expanduser()

    @property
    def num_readers(self) -> int:
        """Threads that decode."""
        return max(1, min(32, available_cores())) if self.readers is None else self.readers


def parse_colour(name: str) -> tuple[int, int, int] | None:
    """A background by name or as ``#rrggbb``; None for ``auto``."""
    if name == AUTO:
        return None
    if name in COLOURS:
        return COLOURS[name]
    try:
        if len(name) == 7 and name[0] == "#":
            red, green, blue = bytes.fromhex(name[1:])
            return red, green, blue
    except ValueError:
        pass
    raise InputError(f"background={name!r}: expected auto, {', '.join(COLOURS)}, or a colour such as #ffcc00")


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
