"""Load a folder of images: ``ROOT/CLASS/*``, split by a seed, or ``ROOT/train/CLASS/*`` with ``valid`` and ``test``.

Images in subfolders of a class folder, at any depth, belong to that class. They become RGB, or one channel if all are grey;
``read_image.py`` says how they are fitted to ``image_size``. Without it, images that share one size of at most 256
by 256 keep it, and others become 64 by 64.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.memory import check_memory
from heptane.base.progress import working
from heptane.data.dataset import Data, normalise
from heptane.data.images import ImagePreprocess, walk
from heptane.data.read_image import SUFFIXES, decode, ignore_warnings, probe, read_image_unguarded
from heptane.data.splits import out_of_balance, split

if TYPE_CHECKING:
    from PIL import Image

VALID_NAMES = ("valid", "val", "validation")
MAX_KEPT_SIZE, DEFAULT_SIZE = 256, 64  # pixels
MAX_NAMED = 50  # unreadable files listed in a note
MAX_THREADS, AT_ONCE = 8, 64  # decoding threads, and images in each round
LAYOUT = "expected ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE with valid/ and test/ beside train/"
T = TypeVar("T")


class Sample(NamedTuple):
    """An image file with its part (``train``, ``valid``, ``test``, or ``all`` before the split) and class."""

    part: str
    label: int
    path: Path


def load_folder(
    root: Path,
    *,
    seed: int,
    image_size: tuple[int, int] | None,
    valid_fraction: float | None,
    skip_bad: int,
    scale: str = "data",
) -> Data:
    """Load the images under ``root``; a folder without parts is split by ``seed``, 80/10/10.

    Args:
        root: the folder.
        seed: of the split.
        image_size: (height, width) in pixels, or None.
        valid_fraction, skip_bad, scale: as for :func:`heptane.load_data`.

    Raises:
        InputError: the layout is wrong, a class has no image, an image is unreadable, or memory is short.
    """
    root = root.resolve()
    folders = find_parts(root)
    if valid_fraction is not None and "valid" in folders:
        raise InputError(f"valid_fraction={valid_fraction}: {str(folders['valid'])!r} exists, so leave it out")
    classes = find_classes(folders)
    samples, notes = list_samples(folders, classes)
    unused = [entry.name for entry in list_entries(root) if entry.is_dir() and entry not in folders.values()]
    if "train" in folders and unused:
        notes.append(f"folders beside train/ that are not a part were ignored: {', '.join(unused)}")
    bad: list[str] = []
    samples, pixels = read_pixels(samples, root, image_size, bad, skip_bad, in_colour=scale == "imagenet")
    if bad:
        named = ", ".join([*bad[:MAX_NAMED], *(["..."] if len(bad) > MAX_NAMED else [])])
        notes.append(f"{len(bad)} unreadable file(s) were skipped: {named}")
    check_classes(samples, folders, classes)
    parts = {part: torch.tensor([i for i, s in enumerate(samples) if s.part == part]) for part in folders}
    if "valid" not in parts:
        names = ("train", "test", "valid") if "all" in parts else ("train", "valid")
        counts = Counter(sample.label for sample in samples if sample.part in ("all", "train"))
        shares = [*([0.1] if "all" in parts else []), 0.1 if valid_fraction is None else valid_fraction]
        made = split([counts[label] for label in range(len(classes))], shares, seed)  # these samples come first
        parts |= dict(zip(names, made, strict=True))
        sizes = ", ".join(f"{len(index)} {name}" for name, index in zip(names, made, strict=True))
        notes += out_of_balance([counts[label] for label in range(len(classes))], classes)
        notes.append(f"the images of {'the folder' if 'all' in parts else 'train/'} were split by seed {seed}: {sizes}")
    indices = [parts[part] for part in ("train", "valid", "test") if part in parts]
    inputs, mean, std = normalise([pixels[index] for index in indices], scale=scale)
    labels = torch.tensor([sample.label for sample in samples])
    train, valid, *test = zip(inputs, (labels[index] for index in indices), strict=True)
    test_part = test[0] if test else None
    channels, *size = pixels.shape[1:]
    preprocess = ImagePreprocess((size[0], size[1]), channels, mean, std)
    about = (len(classes), tuple(classes), tuple(notes), str(root), mean, std)
    files = {part: [str(samples[at].path.relative_to(root)) for at in index] for part, index in parts.items()}
    return Data(root.name, train, valid, test_part, *about, kind="images", preprocess=preprocess, files=files)


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


def list_samples(folders: dict[str, Path], classes: list[str]) -> tuple[list[Sample], list[str]]:
    """List the images of each part, class by class in order of name; return them and notes on ignored files."""
    samples, num_files, num_nested = [], 0, 0
    for part, folder in folders.items():
        num_files += sum(not entry.is_dir() for entry in list_entries(folder))
        for label, name in enumerate(classes):
            files = walk(folder / name)
            samples += [Sample(part, label, entry) for entry in files if entry.suffix.lower() in SUFFIXES]
            num_files += len(files)
            num_nested += sum(entry.parent != folder / name for entry in files if entry.suffix.lower() in SUFFIXES)
    check_classes(samples, folders, classes)
    others = num_files - len(samples)
    notes = [f"{others} file(s) were ignored: not images, or not in a class folder"] if others else []
    if num_nested:
        notes.append(f"{num_nested} image(s) in subfolders of a class folder belong to that class")
    return samples, notes


def check_classes(samples: list[Sample], folders: dict[str, Path], classes: list[str]) -> None:
    """Raise :class:`InputError` if a class of a part has no readable image."""
    present = {(sample.part, sample.label) for sample in samples}
    for part, folder in folders.items():
        for label, name in enumerate(classes):
            if (part, label) not in present:
                raise InputError(f"class folder {str(folder / name)!r} has no readable image: add some, or remove it")


def read_pixels(
    samples: list[Sample],
    root: Path,
    image_size: tuple[int, int] | None,
    bad: list[str],
    limit: int,
    *,
    in_colour: bool = False,
) -> tuple[list[Sample], torch.Tensor]:
    """Return the readable samples and their pixels: uint8 (N, C, H, W), with C = 3 if ``in_colour`` or any has colour."""
    with working(f"checking {len(samples):,} images", len(samples)) as advance:
        probed = list(read_each(samples, probe, root, bad, limit, advance))
    sizes = {size for _, (size, _) in probed}
    width, height = sizes.pop() if len(sizes) == 1 else (math.inf, math.inf)
    if image_size is not None or max(width, height) > MAX_KEPT_SIZE:
        height, width = image_size or (DEFAULT_SIZE, DEFAULT_SIZE)
    size, is_grey = (int(width), int(height)), all(grey for _, (_, grey) in probed) and not in_colour
    shape = (len(probed), 1 if is_grey else 3, size[1], size[0])
    check_memory(f"{str(root)!r} as float32 {shape}", 4 * math.prod(shape), "lower --image-size, or use a DataLoader")
    kept: list[Sample] = []
    pixels = torch.empty(shape, dtype=torch.uint8)
    with working(f"reading {len(probed):,} images", len(probed)) as advance:
        known = [sample for sample, _ in probed]
        for sample, image in read_each(known, lambda i: decode(i, size, is_grey), root, bad, limit, advance):
            pixels[len(kept)] = torch.from_numpy(image)
            kept.append(sample)
    return kept, pixels[: len(kept)]


def read_each(
    samples: list[Sample],
    read: Callable[[Image.Image], T],
    root: Path,
    bad: list[str],
    limit: int,
    advance: Callable[[], None],
) -> Iterator[tuple[Sample, T]]:
    """Yield each sample with ``read`` of its image; unreadable ones are added to ``bad``, and an error beyond ``limit``."""

    def attempt(sample: Sample) -> T | Exception:
        try:
            return read_image_unguarded(sample.path, read)
        except Exception as error:  # Pillow's readers raise many types for damaged files
            return error

    # Threads help, since Pillow releases the GIL while it decodes.
    with ignore_warnings(), ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(samples), AT_ONCE):
            some = samples[start : start + AT_ONCE]
            for sample, result in zip(some, pool.map(attempt, some), strict=True):
                advance()
                if not isinstance(result, Exception):
                    yield sample, result
                    continue
                if len(bad) >= limit:
                    remedy = "repair or remove it, or skip unreadable files with --skip-bad N"
                    if limit:
                        remedy = f"it is one more than --skip-bad {limit} allows, after {', '.join(bad[:5])}"
                    raise InputError(f"image {str(sample.path)!r} cannot be read ({one_line(result)}): {remedy}") from result
                bad.append(repr(str(sample.path.relative_to(root))))
