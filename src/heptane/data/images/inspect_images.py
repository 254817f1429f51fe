"""Inspect the images of a data set: read each, and find unreadable ones and those that are the same picture.

Two images are the same picture if they have the same size and the same pixels, whatever the file format. Candidates are
found by the pixels of a thumbnail, then compared by the files' content, then by all pixels.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from heptane.base.errors import one_line
from heptane.base.lazy import np
from heptane.base.progress import working
from heptane.data.duplicates import count_classes, describe_duplicates, describe_numbers, equal_groups
from heptane.data.images.contact_sheet import MAX_CLASSES, TILE, draw_sheet, tiles_per_class
from heptane.data.images.read_image import decode, ignore_warnings, probe, read_image_unguarded, thinned, upright
from heptane.data.images.survey import evenly_spaced
from heptane.data.reading import Reading

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from heptane.data.images.image_files import ImageList
    from heptane.data.images.listing import Listing

LARGE, SAMPLE = 20_001, 10_000  # from this many images on, a sample of this size is read
THUMBNAIL, QUICK = 32, 1024  # pixels: of the thumbnail; of a large JPEG, which is decoded at 1/2, 1/4 or 1/8
AT_ONCE = 256  # images in each round of reading
T = TypeVar("T")


class Look(NamedTuple):
    """What is kept of an image that was read."""

    width: int
    height: int
    form: str
    """the file format"""
    colours: str
    """colour, grey or transparent"""
    key: bytes
    """checksum of the size and the thumbnail, 16 bytes"""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in the images of a listing.

    Attributes:
        tried: numbers of the images that were read, or should have been.
        looks: of each readable one, by number.
        unreadable: the reason for each of the others.
        groups: numbers of images that are the same picture.
    """

    tried: Sequence[int]
    looks: dict[int, Look]
    unreadable: dict[int, str]
    groups: list[list[int]]


def inspect_images(images: ImageList, *, everything: bool = False) -> Findings:
    """Read the images, or a sample of very many.

    Args:
        images: to be read.
        everything: read all, however many there are.
    """
    count = len(images)
    tried = range(count) if everything or count < LARGE else evenly_spaced(range(count), SAMPLE)
    looks, unreadable = dict[int, Look](), dict[int, str]()
    for number, found in _in_threads(lambda n: _attempt(images, n, _look), tried, f"reading {len(tried):,} images"):
        if isinstance(found, Look):
            looks[number] = found
        else:
            unreadable[number] = found
    return Findings(tried=tried, looks=looks, unreadable=unreadable, groups=_same_pictures(images, looks))


def describe_images(listing: Listing, parts: dict[str, npt.NDArray[np.int64]], findings: Findings) -> dict[str, Any]:
    """The findings as a record.

    Args:
        listing: the images.
        parts: numbers of the images of each part.
        findings: on them.
    """
    name, labels = listing.images.name, _label_names(listing)
    home = {int(number): part for part, numbers in parts.items() for number in numbers}
    looks = findings.looks
    by_size = sorted(looks, key=lambda number: (looks[number].width * looks[number].height, number))
    return {
        "kind": "images",
        "samples": len(listing.images),
        "tried": len(findings.tried),
        "bytes": listing.encoded_bytes,
        "parts": {part: len(numbers) for part, numbers in parts.items()},
        "classes": count_classes(parts, listing.labels, listing.classes) if listing.classes else None,
        "target": None if listing.classes else describe_numbers(listing.labels),
        "sizes": None
        if not looks
        else {
            "distinct": len({(look.width, look.height) for look in looks.values()}),
            "width": _spread(look.width for look in looks.values()),
            "height": _spread(look.height for look in looks.values()),
            "smallest": _sized(looks[by_size[0]], name(by_size[0])),
            "largest": _sized(looks[by_size[-1]], name(by_size[-1])),
        },
        "formats": dict(Counter(look.form for look in looks.values()).most_common()),
        "colours": dict(Counter(look.colours for look in looks.values()).most_common()),
        "unreadable": [
            {"name": name(number), "part": home[number], "label": labels[number], "reason": reason}
            for number, reason in sorted(findings.unreadable.items())
        ],
        "duplicates": describe_duplicates(findings.groups, parts, labels, name),
    }


def contact_sheet(listing: Listing, findings: Findings, background: tuple[int, int, int] | None = None) -> bytes:
    """A picture of some readable images of each class, as training sees them: a PNG file's content."""
    classes = listing.classes or ("images",)
    readable = np.array(sorted(findings.looks), dtype=np.int64)
    labels, counts = listing.labels[readable], listing.counts or (len(listing.images),)
    shown = evenly_spaced(range(len(classes)), MAX_CLASSES)
    each = tiles_per_class(len(shown))
    chosen = list[tuple[int, int]]()
    for label in shown:
        members = labels == label if listing.one_class else labels[:, label] > 0 if listing.classes else labels == labels
        chosen += [(label, number) for number in evenly_spaced(readable[members].tolist(), each)]

    def tile(image: Image.Image) -> Any:
        return decode(image, (TILE, TILE), False, background)

    tiles = {label: list[Any]() for label in shown}
    made = _in_threads(lambda one: _attempt(listing.images, one[1], tile), chosen, "drawing the contact sheet")
    for (label, _), pixels in made:
        if not isinstance(pixels, str):
            tiles[label].append(pixels)
    which = f", {len(classes):,} classes" if listing.classes else ""
    if len(shown) < len(classes):
        which = f", {len(shown)} of {len(classes):,} classes"
    title = f"{listing.name}: {len(listing.images):,} images{which}"
    return draw_sheet(title, [(f"{classes[label]} ({counts[label]:,})", tiles[label]) for label in shown])


def _label_names(listing: Listing) -> list[Any]:
    """The label of each image: a class, several joined by commas, or a number."""
    if listing.one_class:
        return [listing.classes[label] for label in listing.labels.tolist()]
    if not listing.classes:
        return list(listing.labels.tolist())
    return [", ".join(listing.classes[at] for at in np.flatnonzero(row)) for row in listing.labels]


def _attempt(images: ImageList, number: int, read: Callable[[Image.Image], T]) -> T | str:
    """What ``read`` makes of an image, or why it cannot be read."""
    try:
        return read_image_unguarded(images.read(number), read)
    except Exception as error:  # Pillow's readers raise many types for damaged files
        return one_line(error)


def _look(image: Image.Image) -> Look:
    from PIL import Image as Pillow

    (width, height), is_grey = probe(image)
    form = image.format or ""
    if form == "JPEG":
        image.draft(None, (QUICK, QUICK))
    small = upright(thinned(image, (THUMBNAIL, THUMBNAIL))).convert("RGBA")
    small = small.resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BOX)
    clear = small.getchannel("A").getextrema()[0] != 255
    key = hashlib.blake2b(small.convert("RGBa").tobytes(), digest_size=16, person=f"{width}x{height}".encode()[:16])
    return Look(width, height, form, "transparent" if clear else "grey" if is_grey else "colour", key.digest())


def _same_pictures(images: ImageList, looks: dict[int, Look]) -> list[list[int]]:
    """The numbers of images that are the same picture."""
    numbers = sorted(looks)
    if not numbers:
        return []
    keys = np.frombuffer(b"".join(looks[number].key for number in numbers), dtype=np.uint64).reshape(-1, 2)
    groups = [[numbers[at] for at in group] for group in equal_groups(keys)]
    alike = [number for group in groups for number in group]
    contents = dict(_in_threads(images.digest, alike, f"comparing {len(alike):,} images"))
    unclear = list[int]()  # one image for each content of a group with several
    for group in groups:
        first = {contents[number]: number for number in reversed(group)}
        unclear += first.values() if len(first) > 1 else ()
    pixels = {
        contents[number]: found
        for number, found in _in_threads(
            lambda n: _attempt(images, n, _all_pixels), unclear, f"comparing {len(unclear):,} images by their pixels"
        )
        if isinstance(found, bytes)
    }
    made = list[list[int]]()
    for group in groups:
        same = dict[Any, list[int]]()
        for number in group:
            same.setdefault(pixels.get(contents[number], contents[number]), []).append(number)
        made += [found for found in same.values() if len(found) > 1]
    return sorted(made)


def _all_pixels(image: Image.Image) -> bytes:
    """A checksum of an image's pixels; those that are fully transparent have no colour."""
    return hashlib.sha256(upright(image).convert("RGBA").convert("RGBa").tobytes()).digest()


def _in_threads(work: Callable[[Any], T], items: Sequence[Any], what: str) -> Iterator[tuple[Any, T]]:
    """Each item with what ``work`` makes of it, by several threads, since Pillow decodes without Python's lock."""
    with (
        working(what, len(items)) as advance,
        ignore_warnings(),
        ThreadPoolExecutor(max(1, Reading().num_readers), thread_name_prefix="heptane-inspect") as pool,
    ):
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            for item, found in zip(some, pool.map(work, some), strict=True):
                advance()
                yield item, found


def _spread(values: Iterable[int]) -> list[int]:
    """The least, the median and the largest."""
    numbers = sorted(values)
    return [numbers[0], round(statistics.median(numbers)), numbers[-1]]


def _sized(look: Look, name: str) -> dict[str, Any]:
    return {"name": name, "width": look.width, "height": look.height}
