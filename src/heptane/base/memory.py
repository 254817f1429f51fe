"""Available memory, and a check that data fit into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from heptane.base.errors import InputError

MEMORY_SHARE = 0.6  # of the available memory: the model, its optimizer and the batches need the rest


def check_memory(what: str, num_bytes: int, remedy: str) -> None:
    """Raise :class:`InputError` if ``num_bytes`` exceeds ``MEMORY_SHARE`` of the available memory."""
    available = available_memory_bytes()
    if num_bytes > MEMORY_SHARE * available:
        limit = f"{MEMORY_SHARE:.0%} of the {available / 2**30:.3g} GiB available"
        raise InputError(f"{what} would take {num_bytes / 2**30:.3g} GiB of memory, the limit is {limit}: {remedy}")


def available_memory_bytes() -> float:
    """Memory available without swapping, within this container's limit; infinity if unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError):  # SC_AVPHYS_PAGES excludes the file cache
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        limits += [int(Path("/sys/fs/cgroup/memory.max").read_text())]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits += [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(limits, default=float("inf"))
