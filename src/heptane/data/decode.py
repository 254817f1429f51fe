"""Decode image files: which formats are read, how one is opened safely, and how its pixels are made.

Pixels are upright (EXIF rotation applied), grey or RGB, scaled until they cover the size wanted and cropped to the centre.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heptane._lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no others: an .eps called .png would run Ghostscript
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
T = TypeVar("T")


def opened(path: Path, read: Callable[[Image.Image], T]) -> T:
    """What ``read`` makes of the image in a file; raises what Pillow raises, of many kinds, for a bad one."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; a picture that claims a huge size is an error
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not path.resolve(strict=True).is_file():
            raise OSError("it is not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            return read(image)


def probe(image: Image.Image) -> tuple[tuple[int, int], bool]:
    """The upright (width, height), from the header where that tells, and whether the image is grey."""
    if image.mode == "F":
        raise ValueError("its pixels are floats: convert them to 8 or 16 bits")
    size, is_grey = image.size, image.mode in ("1", "L", "LA", "La") or image.mode[0] == "I"
    if image.format != "PNG" or "exif" in image.info:  # asked for what it has not met yet, a PNG would read all its pixels
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        if turned and image.format == "TIFF":
            image.load()  # turns it, and some versions of Pillow have turned the size already
            size = image.size
        elif turned:
            size = size[::-1]
    return size, is_grey


def decode(image: Image.Image, size: tuple[int, int], is_grey: bool) -> npt.NDArray[Any]:
    """The pixels, upright, scaled and cropped to ``size`` (width, height): uint8 (1 or 3, H, W)."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] == "I":  # Pillow would clip 16 bits where their upper half is wanted
        upright = Image.fromarray((np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8))
    fitted = ImageOps.fit(upright.convert("L" if is_grey else "RGB"), size, method=Image.Resampling.BILINEAR)
    return np.array(fitted).reshape(size[1], size[0], -1).transpose(2, 0, 1)
