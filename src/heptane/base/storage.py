"""Atomic, checksummed files: written to a temporary name, synced, then renamed.

A *sealed* folder holds files and ``facts.json``, with the size and SHA-256 of each file and of itself. A full disk or a
killed process leaves the previous version in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

FACTS = "facts.json"
PIECE = 1 << 22  # bytes written or read at a time
MAX_FACTS_BYTES = 1 << 28


class Damaged(ValueError):
    """Stored content is missing or was altered; the message says what differs."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file and sync it to disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left[:PIECE]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` atomically: after a failure it has its previous content."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_file(aside, content)
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text to ``path`` atomically, as UTF-8."""
    # A folder name that is not valid UTF-8 arrives with lone surrogates, which cannot be encoded.
    replace_file(path, text.encode("utf-8", errors="replace"))


def seal(aside: Path, path: Path, facts: dict[str, Any], checksums: dict[str, list[Any]] | None = None) -> None:
    """Add ``facts`` to the finished folder ``aside``, then rename it to ``path``.

    Args:
        checksums: of the files, if known; else they are computed.
    """
    if checksums is None:
        checksums = {part.name: checksum(part) for part in sorted(aside.iterdir())}
    body = {"files": checksums, "facts": facts}
    write_file(aside / FACTS, json.dumps({"sha256": _of_body(body), **body}).encode())
    sync_folder(aside)
    remove(path)
    os.replace(aside, path)
    sync_folder(path.parent)


def read_facts(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the facts of a sealed folder, and its files' sizes and checksums, without reading the files.

    Raises:
        Damaged: ``facts.json`` is missing or was altered.
    """
    try:
        about = (path / FACTS).stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FACTS_BYTES:
            raise Damaged(f"{FACTS} is not a regular file of at most {MAX_FACTS_BYTES >> 20} MiB")
        found = json.loads((path / FACTS).read_bytes())
        body = {"files": found["files"], "facts": found["facts"]}
        if found["sha256"] != _of_body(body):
            raise Damaged(f"{FACTS} was altered")
        return dict(body["facts"]), dict(body["files"])
    except Damaged:
        raise
    except OSError as error:
        raise Damaged(f"{FACTS}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{FACTS} cannot be parsed ({type(error).__name__})") from None


def check_files(path: Path, files: dict[str, list[Any]]) -> None:
    """Verify the files of a sealed folder against their checksums.

    Raises:
        Damaged: a file is missing, truncated or altered.
    """
    for name, wanted in files.items():
        part = path / name
        if os.path.basename(name) != name or part.is_symlink() or (part.exists() and not part.is_file()):
            raise Damaged(f"{name!r} is not a regular file in the folder")
        try:
            found = checksum(part) if part.stat().st_size == wanted[0] else [part.stat().st_size]
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None
        if found[0] != wanted[0]:
            raise Damaged(f"{name} has {found[0]} of {wanted[0]} bytes")
        if found != wanted:
            raise Damaged(f"{name} was altered")


def checksum(path: Path) -> list[Any]:
    """Return the size of a file in bytes and its SHA-256."""
    found, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
            size += len(piece)
    return [size, found.hexdigest()]


def sync(path: Path) -> None:
    """Sync an existing file to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Sync a folder's entries to disk, if the file system allows it."""
    with contextlib.suppress(PermissionError):
        sync(path)


def make_empty_folder(folder: Path) -> None:
    """Create an empty folder, removing what was there."""
    remove(folder)
    folder.mkdir(parents=True)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists; a folder is renamed first, so that nobody sees it half removed."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith("."):
            aside = path.with_name(f".{path.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            path = path.rename(aside)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _of_body(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
