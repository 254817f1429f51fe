"""The cache folder: downloaded data, and measurements of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """``$HEPTANE_CACHE``, else ``heptane`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``."""
    if chosen := os.environ.get("HEPTANE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "heptane"
