"""The data cache: a bounded folder with one folder per data set; those used longest ago are removed first."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from heptane.base.storage import replace_file

OFF = "off"
FACTS = "facts.json"  # of an entry; its time says when the entry was used last
DEFAULT_BYTES, SHARE_OF_DISK = 20 * 2**30, 0.5  # the limit of a cache: the smaller of the two, of the free space


def entries(folder: Path, path: Path) -> list[Path]:
    """The folders in the cache other than ``path``, those used longest ago first."""
    return sorted((p for p in folder.iterdir() if (p / FACTS).is_file() and p != path), key=_used)


def make_room(folder: Path, path: Path, wanted: int, gigabytes: float | None, what: str = "their pixels take") -> str:
    """Remove what was used longest ago until ``wanted`` bytes fit; return the reason if they cannot, else ''.

    Args:
        folder: the cache.
        path: the entry in it that needs room.
        wanted: its size in bytes.
        gigabytes: the limit of the cache; None: by the disk.
        what: needs them, for the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = entries(folder, path)
    sizes = {other: _disk_bytes(other) for other in others}
    here = _disk_bytes(path) if path.is_dir() else 0
    free = shutil.disk_usage(folder).free + sum(sizes.values()) + here
    limit = min(DEFAULT_BYTES, SHARE_OF_DISK * free) if gigabytes is None else gigabytes * 1e9
    if wanted > min(limit, free):
        remedy = "raise data_cache_gb" if wanted > limit else "free some space"
        return f"{what} {wanted / 1e9:.3g} GB, and the cache may take {min(limit, free) / 1e9:.3g}: {remedy}"
    while others and sum(sizes.values()) + wanted > limit:
        _remove(others[0])
        del sizes[others.pop(0)]
    return ""


def mark_used(path: Path, facts: dict[str, Any]) -> None:
    """Record what an entry is for, and that it is used now."""
    replace_file(path / FACTS, json.dumps(facts).encode(errors="replace"))


def _remove(path: Path) -> None:
    """Remove an entry, its facts last: after a kill it is still known."""
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            if file.name != FACTS and file.is_file():
                file.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _used(path: Path) -> float:
    try:
        return (path / FACTS).stat().st_mtime
    except OSError:  # another process removes it
        return 0.0


def _disk_bytes(path: Path) -> int:
    try:
        return sum(file.stat().st_blocks * 512 for file in path.iterdir() if file.is_file())
    except OSError:  # another process removes it
        return 0
