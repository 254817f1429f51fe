"""WebDataset shards: tar files in which members of one key, such as ``0001.jpg`` and ``0001.cls``, are one sample.

Headers are read once (``shard_index.py``), then each image by its offset, in any order, so a worker reads only its share.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np
from heptane.base.progress import working
from heptane.data.images.fetch_shards import fetch_shards, is_url
from heptane.data.images.image_files import ImageList, Names, checksums
from heptane.data.images.image_labels import ImageLabels, from_cells, from_lists, split_texts
from heptane.data.images.listing import PARTS, Listing, part_named
from heptane.data.images.shard_index import LABELS, Index, shard_index
from heptane.data.tables.cells import Cells

if TYPE_CHECKING:
    import numpy.typing as npt

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarImages(ImageList):
    """Images inside of tar files.

    Args:
        root: folder of the shards.
        shards: their names, relative to it.
        facts: size in bytes and time of change in ns of each shard.
        names: of the images: shard and member.
        places: number of the shard, offset and size in bytes of each image, (N, 3) int64.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[str],
        facts: Sequence[tuple[int, int]],
        names: Sequence[str],
        places: npt.NDArray[np.int64],
    ) -> None:
        self.root, self.where, self.names = root, str(root), Names(names)
        self.shards, self.facts, self.places = tuple(shards), tuple(facts), places

    def read(self, index: int) -> bytes:
        shard, offset, size = self.places[index].tolist()
        with open(self.root / self.shards[shard], "rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_size, about.st_mtime_ns) != self.facts[shard]:
                raise OSError(f"shard {self.shards[shard]} changed after it was listed")
            file.seek(offset)
            return file.read(size)

    def fingerprint(self) -> str:
        known = json.dumps([self.where, self.shards, self.facts]).encode()
        return hashlib.sha256(known + Names(self.names).digest() + self.places.tobytes()).hexdigest()

    def keys(self) -> npt.NDArray[np.uint64]:
        known = [f"{shard}\0{size}\0{time}" for shard, (size, time) in zip(self.shards, self.facts, strict=True)]
        return checksums(f"{known[shard]}\0{offset}\0{size}" for shard, offset, size in self.places.tolist())

    def sizes(self) -> npt.NDArray[np.int64]:
        return self.places[:, 2]


def are_shards(name: str) -> bool:
    """Whether a path, a pattern such as ``train-{000..015}.tar`` or ``*.tar``, a folder or a URL stands for shards."""
    if is_url(name):
        return urlsplit(name).path.lower().endswith(".tar")
    path = Path(name)
    if path.is_dir():
        inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        return any(entry.suffix.lower() == ".tar" for entry in inside) and not any(entry.is_dir() for entry in inside)
    return path.suffix.lower() == ".tar" and (path.is_file() or bool(find_shards(name)))


def find_shards(name: str) -> list[Path]:
    """The files that a path, pattern or folder stands for, in order; those of ``{000..015}`` need not exist.

    Example:
        >>> [path.name for path in find_shards("train-{08..10}.tar")]
        ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    if os.path.isdir(name):
        return sorted(entry for entry in Path(name).iterdir() if entry.suffix.lower() == ".tar" and entry.name[0] != ".")
    if BRACES.search(name):
        return [path for one in expand(name) for path in find_shards(one)]
    if os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)]
    return sorted(map(Path, glob.glob(name)))


def expand(name: str) -> list[str]:
    """The names that a pattern with ``{000..015}`` stands for, in order."""
    found = BRACES.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [one for number in numbers for one in expand(name[: found.start()] + number + name[found.end() :])]


def list_shards(name: str, *, label: str | None, task: str | None) -> Listing:
    """List the images of shards.

    Args:
        name: a path, pattern, folder or URL.
        label: the field of ``.json`` members that holds the label; None: ``.cls`` members, else ``label`` of ``.json``, else
            ``.txt``.
        task: as for :func:`heptane.load_data`.

    Raises:
        InputError: a shard is damaged or missing, or labels are.
    """
    images, index = index_shards(name)
    known = _known_classes(images.root)
    labels = read_labels(index, label, task, known)
    notes = [f"{index.without_image} sample(s) of the shards without an image were ignored"] if index.without_image else []
    return Listing(
        name=images.root.name if len(images.shards) > 1 else Path(images.shards[0]).name.split(".")[0],
        where=str(images.root),
        images=images,
        labels=labels.values,
        parts=_parts(images.shards, images.places[:, 0]),
        classes=labels.classes,
        notes=(*notes, *labels.notes),
        encoded_bytes=int(images.places[:, 2].sum()),
        named=labels.named or bool(known),
    )


def index_shards(name: str) -> tuple[TarImages, Index]:
    """The images of shards, and what else the shards hold.

    Raises:
        InputError: a shard is damaged or missing.
    """
    files = fetch_shards(expand(name)) if is_url(name) else find_shards(name)
    root = Path(os.path.commonpath([file.resolve().parent for file in files]))
    names, facts, whole, of_shard = list[str](), list[tuple[int, int]](), Index(), list[int]()
    with working(f"indexing {len(files):,} shards", len(files)) as advance:
        for number, file in enumerate(files):
            names.append(os.path.relpath(file.resolve(), root))
            index, about = shard_index(file, names[-1])
            facts.append(about)
            whole.names += [f"{names[-1]}/{member}" for member in index.names]
            whole.places += index.places
            whole.without_image += index.without_image
            of_shard += [number] * len(index.names)
            for kind, contents in index.labels.items():
                whole.labels[kind] += contents
            advance()
    if not whole.names:
        raise InputError(f"{name!r} holds no image: expected members such as 0001.jpg and 0001.cls in each shard")
    places = np.column_stack([of_shard, np.array(whole.places, dtype=np.int64)])
    return TarImages(root, names, facts, whole.names, places), whole


def read_labels(index: Index, label: str | None, task: str | None, known: Sequence[str]) -> ImageLabels:
    """The labels of the samples.

    Args:
        index: the samples.
        label, task: as for :func:`list_shards`.
        known: names of the classes by number; () if there are none.
    """
    kind = "json" if label is not None else next((one for one in LABELS if any(index.labels[one])), "cls")
    values = [_value(content, kind, label or "label") for content in index.labels[kind]]
    what = f".{kind}" if kind != "json" else f".json {label or 'label'!r}"
    if (lacking := [at for at, value in enumerate(values) if value is None]) and any(isinstance(v, list) for v in values):
        values = [[] if value is None else value for value in values]
    elif lacking:
        raise InputError(
            f"{len(lacking):,} of {len(values):,} images have no label in {what}, the first is {index.names[lacking[0]]!r}: "
            "add a .cls, .txt or .json member of the same key, or choose a field of .json with --label"
        )
    if any(isinstance(value, list) for value in values):
        lists = [value if isinstance(value, list) else [value] for value in values]
        return from_lists(what, [[_named(one, known) for one in several] for several in lists], known)
    numbers = [_number(value) for value in values]
    if None in numbers:
        texts = [str(value) for value in values]
        several = split_texts(texts) if task is None else None
        if several is not None:
            return from_lists(what, several)
        return from_cells(what, Cells("category", np.array(texts, dtype=object)), task)
    whole = all(float(value).is_integer() for value in numbers if value is not None)
    if known and whole and task != "regression":
        texts = [_named(value, known) for value in values]
        return from_cells(what, Cells("category", np.array(texts, dtype=object)), "classification")
    chosen = task or ("classification" if whole else "regression")
    return from_cells(what, Cells("number", np.array(numbers, dtype=np.float64), whole), chosen)


def _value(content: bytes | None, kind: str, key: str) -> Any:
    """The label in a member: text, a number or a list; None if it is missing or empty."""
    if content is None:
        return None
    try:
        text = content.decode("utf-8").strip()
        value = json.loads(text).get(key) if kind == "json" else text
    except (ValueError, AttributeError):
        return None
    return None if value == "" else value


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _named(value: Any, known: Sequence[str]) -> str:
    """The class name of a label, which may be its number."""
    number = _number(value) if known else None
    if number is None or str(value) in known:
        return str(value)
    if not (number.is_integer() and 0 <= number < len(known)):
        raise InputError(f"label {value!r}, but the file of classes has {len(known)} names, from 0 to {len(known) - 1}")
    return known[int(number)]


def _known_classes(root: Path) -> tuple[str, ...]:
    """The names in ``classes.txt`` (a line each) or ``classes.json`` (a list) beside the shards; () without them."""
    try:
        if (root / "classes.txt").is_file():
            lines = (root / "classes.txt").read_text(encoding="utf-8-sig").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
        if (root / "classes.json").is_file():
            return tuple(map(str, json.loads((root / "classes.json").read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the classes beside {str(root)!r} cannot be read ({one_line(error)}): correct the file") from error
    return ()


def _parts(shards: Sequence[str], of_shard: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """The images of each part, by the beginning of the shards' names; ``all`` if one does not begin so."""
    found = [part_named(re.match(r"[^\W\d_]*", os.path.basename(name))[0]) for name in shards]  # type: ignore[index]
    if None in found or "train" not in found:
        return {"all": np.arange(len(of_shard))}
    each = np.array(found)[of_shard]
    return {part: np.flatnonzero(each == part) for part in PARTS if (each == part).any()}
