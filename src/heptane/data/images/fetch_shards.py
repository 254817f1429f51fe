"""Download shards once, into heptane's cache folder."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from heptane.base.cache import default_cache
from heptane.base.download import download
from heptane.base.errors import InputError, one_line
from heptane.base.progress import working

CLASS_FILES = ("classes.txt", "classes.json")
NO_CLASSES = "no-classes"  # the server has none of them


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def fetch_shards(urls: Sequence[str]) -> list[Path]:
    """The local files of shards, and beside them the file of classes if the server has one.

    A partial download goes on where it ended; a complete one is never repeated.

    Raises:
        InputError: one cannot be downloaded.
    """
    base = urls[0].rsplit("/", 1)[0]
    folder = default_cache() / "shards" / hashlib.sha256(base.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # other workers wait, and find the files
            _fetch_classes(base, folder)
            return [_fetch(url, folder, f"{number} of {len(urls)}") for number, url in enumerate(urls, 1)]
    except OSError as error:
        raise InputError(f"the shards cannot be kept in {str(folder)!r} ({one_line(error)}): free some space") from error


def _fetch(url: str, folder: Path, which: str) -> Path:
    path = folder / unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    part = path.with_name(f"{path.name}.part")
    if not path.exists():
        try:
            with working(f"downloading shard {which} ({path.name}), bytes") as advance:
                download(url, part, advance=advance)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(
                f"shard {url!r} cannot be downloaded ({one_line(error)}): check the address and the connection; the next "
                "attempt goes on where this one ended"
            ) from error
        part.replace(path)
    return path


def _fetch_classes(base: str, folder: Path) -> None:
    """Fetch the file of classes, unless it is there, or known to be absent."""
    if any((folder / name).exists() for name in (*CLASS_FILES, NO_CLASSES)):
        return
    for name in CLASS_FILES:
        part = folder / f"{name}.part"
        part.unlink(missing_ok=True)
        try:
            download(f"{base}/{name}", part)
        except urllib.error.HTTPError as error:
            if error.code not in (403, 404, 410):
                raise InputError(f"{base}/{name} cannot be downloaded ({one_line(error)}): try again later") from error
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"{base}/{name} cannot be downloaded ({one_line(error)}): check the connection") from error
        else:
            part.replace(folder / name)
            return
    (folder / NO_CLASSES).touch()
