"""The image files of a data set: their names, compact enough for millions, their sizes and their times."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from heptane.base.errors import InputError
from heptane.base.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


class Names(Sequence[str]):
    """Many strings in one buffer: about a third of the memory of a list."""

    def __init__(self, names: Iterable[str]) -> None:
        self._text = os.fsencode("".join(f"{name}\0" for name in names))
        self._ends = np.flatnonzero(np.frombuffer(self._text, dtype=np.uint8) == 0)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])])

    def digest(self) -> bytes:
        """A checksum of all names."""
        return hashlib.sha256(self._text).digest()


class NamesAt(Sequence[str]):
    """The names at some positions, such as those of one part."""

    def __init__(self, names: Sequence[str], chosen: npt.NDArray[np.int64]) -> None:
        self._names, self._chosen = names, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._names[at] for at in self._chosen[index].tolist()]
        return self._names[int(self._chosen[index])]


class ImageList(ABC):
    """The encoded images of a data set, by number.

    Attributes:
        where: the data set, for messages and for the cache's records.
        names: of the images, unique in the data set.
    """

    where: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The name of an image."""
        return self.names[index]

    def names_at(self, chosen: npt.NDArray[np.int64]) -> Sequence[str]:
        """The names of some of them."""
        return NamesAt(self.names, chosen)

    @abstractmethod
    def read(self, index: int) -> Path | bytes:
        """The file of an image, or its content.

        Raises:
            OSError: it vanished, or changed since it was listed.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A checksum that changes when any image may have changed."""

    def keys(self) -> npt.NDArray[np.uint64] | None:
        """A checksum of each image, (N, 2), that changes if the image may have changed; None if there is none."""
        return None

    @abstractmethod
    def sizes(self) -> npt.NDArray[np.int64]:
        """The size of each encoded image in bytes; at most 0 if it is unknown."""

    def digest(self, index: int) -> bytes:
        """A checksum of an image's content; if it cannot be read, one that no other has."""
        try:
            source = self.read(index)
            if isinstance(source, bytes):
                return hashlib.sha256(source).digest()
            with open(source, "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return hashlib.sha256(f"unreadable {index}".encode()).digest()


@dataclass(frozen=True)
class ListedImage:
    """An image of a list, to be read when it is needed."""

    images: ImageList
    index: int

    @property
    def name(self) -> str:
        return self.images.name(self.index)

    def read(self) -> Path | bytes:
        return self.images.read(self.index)

    def __str__(self) -> str:
        return str(Path(self.images.where) / self.name)


class ImageFiles(ImageList):
    """Image files under a folder.

    Args:
        root: the folder.
        names: relative to it.
        facts: the size in bytes and the time of change in ns of each, (N, 2) int64; None: they are read now.
    """

    def __init__(self, root: Path, names: Sequence[str], facts: npt.NDArray[np.int64] | None = None) -> None:
        self.root, self.where = root, str(root)
        self.names: Names = names if isinstance(names, Names) else Names(names)
        self.facts = np.array([_facts(root / name) for name in names]).reshape(-1, 2) if facts is None else facts

    def read(self, index: int) -> Path:
        path = self.root / self.names[index]
        if self.facts[index, 1] >= 0 and _facts(path) != tuple(self.facts[index].tolist()):
            raise OSError("it changed or vanished after the folder was listed")
        return path

    def fingerprint(self) -> str:
        return hashlib.sha256(self.where.encode(errors="replace") + self.names.digest() + self.facts.tobytes()).hexdigest()

    def keys(self) -> npt.NDArray[np.uint64]:
        return checksums(
            f"{name}\0{size}\0{time}" for name, (size, time) in zip(self.names, self.facts.tolist(), strict=True)
        )

    def sizes(self) -> npt.NDArray[np.int64]:
        return self.facts[:, 0]


def checksums(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """128 bits for each text, (N, 2)."""
    found = b"".join(hashlib.blake2b(os.fsencode(text), digest_size=16).digest() for text in texts)
    return np.frombuffer(found, dtype=np.uint64).reshape(-1, 2)


def _facts(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def list_files(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64], int]:
    """List the files with these suffixes under a folder, at any depth, except hidden ones.

    Each folder is visited once, even if links repeat it; links to a parent folder are not followed.

    Returns:
        Their sorted names relative to ``folder``, their sizes in bytes and times in ns (N, 2), and how many others there
        are.

    Raises:
        InputError: a folder cannot be listed.
    """
    seen = {_identity(parent) for parent in folder.resolve().parents}
    found, others, waiting, endings = list[tuple[str, int, int]](), 0, [""], tuple(suffixes)
    while waiting:
        where = waiting.pop()
        path = folder / where
        try:
            identity = _identity(path)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{where}{entry.name}"
                    if _is_folder(entry):
                        waiting.append(f"{name}/")
                    elif name.lower().endswith(endings):
                        found.append((name, *_entry_facts(entry)))
                    else:
                        others += 1
        except OSError as error:
            raise InputError(f"folder {str(path)!r} cannot be listed ({error.strerror}): check its permissions") from error
    nested = any("/" in one[0] for one in found)
    found.sort(key=(lambda one: one[0].split("/")) if nested else None)
    facts = np.array([one[1:] for one in found], dtype=np.int64).reshape(-1, 2)
    return [one[0] for one in found], facts, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _entry_facts(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        about = entry.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino
