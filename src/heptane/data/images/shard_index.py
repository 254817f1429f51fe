"""The index of a shard: where its images are, and what their labels say; kept in heptane's cache folder.

The headers of a tar lie between its members, so reading them visits the whole file. The index of a large shard is therefore
kept, and used while the shard's path, size and time are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptane.base.cache import default_cache
from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np
from heptane.base.storage import replace_file
from heptane.data.images.read_image import SUFFIXES

LABELS = ("cls", "json", "txt")  # members that may hold the label; the first that occurs does
BLOCK = 512  # bytes of a tar header
MAX_LABEL_BYTES = 1 << 20
KEY = re.compile(r"(?P<key>(?:.*/|)[^./][^./]*)\.(?P<ending>[^/]+)", re.DOTALL)
FORMAT = 1  # raise it when an index changes
SMALL = 8 * 2**20  # bytes: the headers of a smaller shard are read in a moment
MAX_KEPT = 2**30  # bytes of all kept indices: those used longest ago are removed


@dataclass
class Index:
    """What shards hold."""

    names: list[str] = field(default_factory=list)
    """of the images"""
    places: list[tuple[int, int]] = field(default_factory=list)
    """offset and size of each"""
    labels: dict[str, list[bytes | None]] = field(default_factory=lambda: {kind: [] for kind in LABELS})
    """content of each image's member of that name"""
    without_image: int = 0


def shard_index(file: Path, name: str) -> tuple[Index, tuple[int, int]]:
    """The index of a shard, and its size and time of change in ns.

    Args:
        file: the shard.
        name: for messages.

    Raises:
        InputError: it is damaged or missing.
    """
    try:
        about = file.stat()
        facts = about.st_size, about.st_mtime_ns
        known = json.dumps([FORMAT, str(file.resolve()), facts, SUFFIXES]).encode()
        kept = default_cache() / "shard-index" / f"{hashlib.sha256(known).hexdigest()[:32]}.npz"
        index = _kept(kept) if facts[0] >= SMALL else None
        if index is None:
            index = _read(file, name)
            if facts[0] >= SMALL and file.stat().st_mtime_ns == facts[1]:
                _keep(index, kept)
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"shard {str(file)!r} cannot be read ({one_line(error)}): it is missing, damaged, truncated or compressed; "
            "write it again, as a plain .tar"
        ) from error
    return index, facts


def _read(file: Path, name: str) -> Index:
    """Read the headers and the labels of a shard."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    places: dict[str, tuple[int, int]] = {}
    kinds = {suffix[1:] for suffix in SUFFIXES} | set(LABELS)
    with file.open("rb") as raw:
        end = 0
        with tarfile.open(fileobj=raw, mode="r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK * member.isreg()
                if member.isreg():
                    places[member.name] = member.offset_data, member.size
                place = places.get(member.linkname if member.islnk() else member.name)  # a hard link has no content
                found = KEY.fullmatch(member.name) if place else None
                kind = found["ending"].lower() if found else ""
                if found and place and kind in kinds:
                    sample = samples.setdefault(found["key"], {})
                    if kind in sample:
                        raise InputError(f"shard {name!r} has two members {member.name!r}: give each sample its own key")
                    sample[kind] = place
                archive.members = []  # type: ignore[attr-defined]  # the headers of a large shard take much memory
        raw.seek(end)
        if raw.read(BLOCK).strip(b"\0"):
            raise tarfile.ReadError("damaged header")
        index = Index()
        for key, sample in samples.items():
            _add_sample(index, key, sample, raw)
    return index


def _add_sample(index: Index, key: str, sample: dict[str, tuple[int, int]], raw: Any) -> None:
    kind = next((suffix[1:] for suffix in SUFFIXES if suffix[1:] in sample), None)
    if kind is None:
        index.without_image += 1
        return
    index.names.append(f"{key}.{kind}")
    index.places.append(sample[kind])
    for one in LABELS:
        content = None
        if one in sample and sample[one][1] <= MAX_LABEL_BYTES:
            raw.seek(sample[one][0])
            content = raw.read(sample[one][1])
        index.labels[one].append(content)


def _kept(path: Path) -> Index | None:
    """The index in a file; None if it is missing or damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        index = Index(
            [os.fsdecode(name) for name in _split(arrays["names"], arrays["name_ends"])],
            list(map(tuple, arrays["places"].tolist())),
            without_image=int(arrays["without_image"]),
        )
        for kind in LABELS:
            texts = _split(arrays[kind], arrays[f"{kind}_ends"])
            index.labels[kind] = [
                text if there else None for text, there in zip(texts, arrays[f"{kind}_there"], strict=True)
            ]
        os.utime(path)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return index


def _keep(index: Index, path: Path) -> None:
    """Write an index, and remove others if they take too much; a cache that cannot be written does not matter."""
    names = [os.fsencode(name) for name in index.names]
    arrays: dict[str, Any] = {"places": np.array(index.places, dtype=np.int64).reshape(-1, 2)}
    arrays |= {"without_image": np.array(index.without_image), "names": _joined(names), "name_ends": _ends(names)}
    for kind, contents in index.labels.items():
        texts = [content or b"" for content in contents]
        arrays |= {kind: _joined(texts), f"{kind}_ends": _ends(texts)}
        arrays[f"{kind}_there"] = np.array([content is not None for content in contents], dtype=bool)
    content = io.BytesIO()
    np.savez(content, **arrays)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())
        others = sorted((other.stat().st_mtime, other.stat().st_size, other) for other in path.parent.glob("*.npz"))
        total = sum(size for _, size, _ in others)
        for _, size, other in others[:-1]:
            if total > MAX_KEPT:
                other.unlink(missing_ok=True)
                total -= size


def _joined(texts: list[bytes]) -> Any:
    return np.frombuffer(b"".join(texts), dtype=np.uint8)


def _ends(texts: list[bytes]) -> Any:
    return np.cumsum([len(text) for text in texts], dtype=np.int64)


def _split(content: Any, ends: Any) -> list[bytes]:
    whole, stops = content.tobytes(), ends.tolist()
    return [whole[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
