"""What was measured once on this machine, kept in the cache: one small JSON file per question, the first answer counts.

So the same command chooses alike each time, alone or beside other work. A file that is damaged is as one that is not there,
and a folder that cannot be written costs only the memory.
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

MOST_BYTES = 1 << 16


def decision_key(facts: dict[str, Any]) -> str:
    """A name for ``facts``, all that an answer depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def load_decision(kind: str, name: str) -> dict[str, Any] | None:
    """The answer that is kept for a question; None where there is none."""
    path = _path(kind, name)
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def store_decision(kind: str, name: str, answer: dict[str, Any], *, anew: bool = False) -> dict[str, Any]:
    """Keep an answer; return the one that counts: another process may have been first.

    Args:
        kind: of question; a folder in the cache.
        name: from :func:`decision_key`.
        answer: numbers, text and lists.
        anew: in place of what is there, which is no longer right.
    """
    path, content = _path(kind, name), json.dumps(answer, indent=1).encode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if anew or (path.exists() and load_decision(kind, name) is None):  # it is no longer right, or damaged
            replace_file(path, content)
        else:
            _create(path, content)
    return (None if anew else load_decision(kind, name)) or answer


def _create(path: Path, content: bytes) -> None:
    """Write ``path`` whole, unless it is there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write_file(aside, content)
        try:
            os.link(aside, path)
        except FileExistsError:
            pass  # another process was first
        except OSError:
            os.replace(aside, path)  # a file system without links: the last answer counts
    finally:
        aside.unlink(missing_ok=True)


def _path(kind: str, name: str) -> Path:
    return default_cache() / kind / f"{name}.json"
