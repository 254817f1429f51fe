"""Load a folder of images: ``ROOT/CLASS/*``, split by a seed, or ``ROOT/train/CLASS/*`` with ``valid`` and ``test``.

Images in subfolders of a class folder, at any depth, belong to that class. They become RGB, or one channel if all are grey;
``read_image.py`` says how they are fitted to ``image_size``. Without it, images that share one size of at most 256
by 256 keep it, and others become 64 by 64.
"""

from __future__ import annotations

import os
from pathlib import Path

from heptane.base.errors import InputError
from heptane.base.lazy import np
from heptane.data.images.image_files import ImageFiles, list_files
from heptane.data.images.listing import VALID_NAMES, Listing
from heptane.data.images.read_image import SUFFIXES

LAYOUT = "expected ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE with valid/ and test/ beside train/"


def list_folder(root: Path) -> Listing:
    """List the images under a folder.

    Raises:
        InputError: the layout is wrong, or a class has no image.
    """
    root = root.resolve()
    folders = find_parts(root)
    classes = find_classes(folders)
    names, facts, labels, parts = list[str](), [], list[int](), {}
    others = nested = 0
    for part, folder in folders.items():
        first = len(names)
        others += sum(not entry.is_dir() for entry in list_entries(folder))
        above = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        for label, name in enumerate(classes):
            found, about, rest = list_files(folder / name, SUFFIXES)
            others += rest
            nested += sum("/" in file for file in found)
            names += [f"{above}{name}/{file}" for file in found]
            labels += [label] * len(found)
            facts.append(about)
            if not found:
                raise InputError(f"class folder {str(folder / name)!r} has no readable image: add some, or remove it")
        parts[part] = np.arange(first, len(names))
    notes = [f"{others} file(s) were ignored: not images, or not in a class folder"] if others else []
    if nested:
        notes.append(f"{nested} image(s) in subfolders of a class folder belong to that class")
    unused = [entry.name for entry in list_entries(root) if entry.is_dir() and entry not in folders.values()]
    if "train" in folders and unused:
        notes.append(f"folders beside train/ that are not a part were ignored: {', '.join(unused)}")
    known = np.concatenate(facts)
    return Listing(
        name=root.name,
        where=str(root),
        images=ImageFiles(root, names, known),
        labels=np.array(labels, dtype=np.int64),
        parts=parts,
        classes=tuple(classes),
        notes=tuple(notes),
        encoded_bytes=int(known[:, 0].clip(0).sum()),
    )


def find_parts(root: Path) -> dict[str, Path]:
    """Return the folder of each part: ``train`` and, if present, ``valid`` and ``test``; or ``all`` if it is unsplit."""
    folders = {entry.name: entry for entry in list_entries(root) if entry.is_dir()}
    if not folders:
        raise InputError(f"{str(root)!r} has no subfolders: {LAYOUT}")
    valid_names = [name for name in VALID_NAMES if name in folders]
    if "train" in folders and any(entry.is_dir() for entry in list_entries(folders["train"])):
        if len(valid_names) > 1:
            raise InputError(f"{str(root)!r} has both {' and '.join(valid_names)}: keep one of them")
        names = {"train": "train", "valid": (*valid_names, "valid")[0], "test": "test"}
        return {part: folders[name] for part, name in names.items() if name in folders}
    if set(folders) <= {"train", "test", *VALID_NAMES}:
        raise InputError(f"{str(root)!r} has {', '.join(folders)} but no train/ with class folders: {LAYOUT}")
    return {"all": root}


def is_text_folder(root: Path) -> bool:
    """Whether the files of class folders are text, judged by the first file."""
    try:
        folders = [entry for folder in find_parts(root).values() for entry in list_entries(folder) if entry.is_dir()]
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file() and not entry.name.startswith("."):
                        return entry.name.lower().endswith(".txt")
    except (InputError, OSError):
        pass  # listing the images will report it
    return False


def list_entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"folder {str(folder)!r} cannot be listed ({error.strerror}): check its permissions") from error


def find_classes(folders: dict[str, Path]) -> list[str]:
    """Return the sorted names of the class folders, which must be the same in each part."""
    found = {part: {e.name for e in list_entries(folder) if e.is_dir()} for part, folder in folders.items()}
    classes = next(iter(found.values()))
    for part, names in found.items():
        if odd := sorted(classes ^ names):
            has, lacks = ("train", part) if odd[0] in classes else (part, "train")
            raise InputError(f"class {odd[0]!r} is in {has}/ but not in {lacks}/: each part must have the same classes")
    if len(classes) < 2:
        raise InputError(f"{str(next(iter(folders.values())))!r} has only the class {min(classes)!r}: {LAYOUT}")
    return sorted(classes)
