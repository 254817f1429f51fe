"""Survey the images of a data set before loading it: how many, how large, and of which kind.

It reads the headers of at most 400 images and the pixels of at most 48, which takes about a second.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from heptane.base.lazy import np

if TYPE_CHECKING:
    from PIL import Image

    from heptane.data.images.image_files import ImageList
    from heptane.data.images.listing import Listing

HEADERS, PIXELS = 400, 48  # numbers of images whose headers, and whose pixels, are read
THUMBNAIL = 64  # pixels
T = TypeVar("T")
FLAT = 0.88  # fraction of pixels in the two main colours, above which images are writing: letters 0.92, road signs 0.83
_SIDED = re.compile(r"(^|[^a-z])(left|right|clockwise|counterclockwise)([^a-z]|$)")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Facts about a folder of images.

    Attributes:
        counts: images per class, in the order of ``classes``, over all parts; () if numbers are to be predicted.
        classes: names of the classes; () if they have none.
        num_train: number of training images after the split.
        height, width: median size of the stored images, in pixels.
        is_writing: whether the images look like letters, digits or other writing, which must not be mirrored.
        sided: names of classes that mention left or right.
        num_images: over all parts; 0: the sum of ``counts``.
    """

    counts: tuple[int, ...]
    classes: tuple[str, ...]
    num_train: int
    height: int
    width: int
    is_writing: bool
    sided: tuple[str, ...] = ()
    num_images: int = 0

    @property
    def total(self) -> int:
        """Number of images, over all parts."""
        return self.num_images or sum(self.counts)

    @property
    def size(self) -> int:
        """The shorter median side, in pixels."""
        return min(self.height, self.width)


def survey(listing: Listing, valid_fraction: float | None = None) -> Survey | None:
    """Survey images; None if none is readable, which loading will report.

    Args:
        listing: the images.
        valid_fraction: as for :func:`heptane.load_data`.
    """
    parts, classes = listing.parts, listing.classes if listing.named else ()
    training = parts["all" if "all" in parts else "train"].tolist()
    sizes = [size for index in evenly_spaced(training, HEADERS) if (size := _size(listing.images, index))]
    looks = [flat for index in evenly_spaced(training, PIXELS) if (flat := _flatness(listing.images, index))]
    if not sizes or not looks:
        return None
    valid = 0.1 if valid_fraction is None else valid_fraction
    away = valid + 0.1 if "all" in parts else valid if "valid" not in parts else 0.0
    flat = statistics.median(looks)
    return Survey(
        counts=listing.counts,
        num_images=sum(map(len, parts.values())),
        classes=classes,
        num_train=max(1, round(len(training) * (1 - away))),
        height=round(statistics.median(height for _, height in sizes)),
        width=round(statistics.median(width for width, _ in sizes)),
        is_writing=flat >= FLAT or are_characters(classes),
        sided=tuple(name for name in classes if _SIDED.search(name.lower())),
    )


def are_characters(classes: Sequence[str]) -> bool:
    """Whether most class names are a character or a number, such as ``A`` or ``7``.

    Example:
        >>> are_characters(["A", "B", "10"]), are_characters(["cat", "dog", "x"])
        (True, False)
    """
    return sum(len(name) == 1 or name.isdecimal() for name in classes) > len(classes) / 2


def evenly_spaced(values: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` of the values, evenly spaced.

    Example:
        >>> evenly_spaced(list(range(10)), 3)
        [1, 5, 8]
    """
    if len(values) <= count:
        return list(values)
    return [values[int((i + 0.5) * len(values) / count)] for i in range(count)]


def _size(images: ImageList, index: int) -> tuple[int, int] | None:
    from heptane.data.images.read_image import probe, read_image

    try:
        return read_image(images.read(index), probe)[0]
    except Exception:  # loading will report it
        return None


def _flatness(images: ImageList, index: int) -> float | None:
    """The fraction of an image's pixels in its two most common colours."""
    from heptane.data.images.read_image import read_image

    try:
        pixels = read_image(images.read(index), _thumbnail)
    except Exception:
        return None
    colours = (pixels >> 5) @ np.array([64, 8, 1])
    shares = np.sort(np.bincount(colours.ravel(), minlength=512))[::-1] / colours.size
    return float(shares[:2].sum())


def _thumbnail(image: Image.Image) -> np.ndarray:
    from heptane.data.images.read_image import decode

    width, height = image.size
    if width * height > 4_000_000 and image.format != "JPEG":
        raise ValueError("too large for a quick look")
    scale = THUMBNAIL / max(width, height, THUMBNAIL)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return decode(image, size, False).transpose(1, 2, 0).astype(np.int64)
