"""Cache of measured decisions: one small JSON file per decision; the first answer is kept.

So the same command always makes the same choice, whatever the load of the machine. A damaged file counts as missing, and a
folder that cannot be written only costs the caching.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from heptane.base.cache import default_cache
from heptane.base.storage import replace_file, write_file

MAX_BYTES = 1 << 16


def decision_key(facts: dict[str, Any]) -> str:
    """A name for ``facts``, everything that the decision depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def load_decision(kind: str, name: str) -> dict[str, Any] | None:
    """The cached answer, or None."""
    path = _path(kind, name)
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def store_decision(kind: str, name: str, answer: dict[str, Any], *, anew: bool = False) -> dict[str, Any]:
    """Cache an answer and return the one that counts: another process may have stored one first.

    Args:
        kind: kind of decision, a folder in the cache.
        name: from :func:`decision_key`.
        answer: numbers, text and lists.
        anew: replace the cached answer, which is out of date.
    """
    path, content = _path(kind, name), json.dumps(answer, indent=1).encode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if anew or (path.exists() and load_decision(kind, name) is None):  # out of date, or damaged
            replace_file(path, content)
        else:
            _create(path, content)
    return (None if anew else load_decision(kind, name)) or answer


def _create(path: Path, content: bytes) -> None:
    """Write ``path`` atomically, unless it exists."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write_file(aside, content)
        try:
            os.link(aside, path)
        except FileExistsError:
            pass  # another process was first
        except OSError:
            os.replace(aside, path)  # a file system without hard links: the last answer counts
    finally:
        aside.unlink(missing_ok=True)


def _path(kind: str, name: str) -> Path:
    return default_cache() / kind / f"{name}.json"
