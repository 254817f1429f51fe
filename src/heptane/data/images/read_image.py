"""Open and decode image files safely.

Pixels are upright (EXIF rotation applied), grey (16-bit keeps its upper 8 bits) or RGB, scaled to cover the requested size,
and cropped to the centre. An image with transparent pixels is cropped to its visible part, fitted whole, and put on white,
or on black if it is nearly white itself. Of an animation, the first frame is used.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heptane.base.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # a file with the name .png but EPS would run Ghostscript
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FIT = (
    "scaled to cover, cropped to the centre, bilinear; transparent pixels on white, or on black if the rest is nearly white"
)
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow converts to grey
LARGE = 20_000_000  # pixels: images of this size are decoded one at a time, to limit memory
DEFLATE = 1032  # the largest compression factor of PNG
FAINT = 16  # of 255: an opacity up to this is invisible
BRIGHT = 215.0  # of 255: an image with a brighter mean would vanish on white
T = TypeVar("T")
_ONE_LARGE = threading.Lock()


@contextmanager
def ignore_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings about metadata and large images; not thread-safe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_image(source: Path | bytes, read: Callable[[Image.Image], T]) -> T:
    """Return ``read(image)`` for the image in a file, or in a file's content; an unreadable one raises Pillow's exceptions,
    of many types."""
    with ignore_warnings():
        return read_image_unguarded(source, read)


def read_image_unguarded(source: Path | bytes, read: Callable[[Image.Image], T]) -> T:
    """Thread-safe :func:`read_image` of a file or its content, for use inside :func:`ignore_warnings`."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise OSError("not a regular file")
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("it is empty" if not size else "cannot identify image file") from None
    with opened as image:
        _check_size(image, size)
        if image.width * image.height < LARGE:
            return read(image)
        with _ONE_LARGE:
            return read(image)


def _check_size(image: Image.Image, num_bytes: int) -> None:
    """Reject a file that claims more pixels than it can hold, before memory is allocated."""
    from PIL import Image

    pixels = image.width * image.height
    if pixels > (Image.MAX_IMAGE_PIXELS or pixels) and (
        image.format != "PNG" or num_bytes * DEFLATE < pixels * len(image.getbands()) / 8
    ):
        raise ValueError(f"it claims {image.width:,}x{image.height:,} pixels, too many for its size: shrink or remove it")


def probe(image: Image.Image) -> tuple[tuple[int, int], bool]:
    """Return the upright (width, height), from the header if possible, and whether the image is grey."""
    _check_mode(image)
    size, is_grey = image.size, image.mode in ("1", "L", "LA", "La") or image.mode[0] == "I"
    if image.format != "PNG" or "exif" in image.info:  # getexif() of a PNG without it would read all pixels
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        if turned and image.format == "TIFF":
            image.load()  # rotates it; some versions of Pillow have swapped the size already
            size = image.size
        elif turned:
            size = size[::-1]
    return size, is_grey


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("its pixels are floats: convert them to 8 or 16 bits")


def decode(
    image: Image.Image, size: tuple[int, int], is_grey: bool, background: tuple[int, int, int] | None = None
) -> npt.NDArray[Any]:
    """Return the upright pixels of ``size`` (width, height), fitted as the module says: uint8 (1 or 3, H, W)."""
    _check_mode(image)
    if image.format == "JPEG":
        image.draft(None, (2 * size[0], 2 * size[1]))  # decodes a large photo at 1/2, 1/4 or 1/8, which is much faster
    turned = upright(thinned(image, size))
    if turned.has_transparency_data:
        clear = turned.convert("LA" if is_grey else "RGBA")
        opacity = clear.getchannel("A")
        if int(np.asarray(opacity).min()) < 255:
            return filled(np.array(_contained(clear, opacity, size)).transpose(2, 0, 1), background)
    mode = "L" if is_grey else "RGB"
    fitted = _fitted(turned if turned.mode == mode else turned.convert(mode), size)  # convert() always copies
    return np.array(fitted).reshape(size[1], size[0], -1).transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF tag says, in place, with 8 bits per channel."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] == "I":  # keep the upper 8 bits of 16; Pillow would clip
        levels = np.asarray(image)
        if int(levels.min()) < 0 or int(levels.max()) > 65535:
            raise ValueError("its pixels have more than 16 bits: convert them to 8 or 16 bits")
        return Image.fromarray((levels >> 8).astype(np.uint8))
    return image


def thinned(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Subsample a huge image to about eight times ``size``, to be averaged later."""
    from PIL import Image

    step = min(image.size) // (8 * max(size))
    return image if step < 2 else image.resize((image.width // step, image.height // step), Image.Resampling.NEAREST)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageOps

    factor = min(image.width // (2 * size[0]), image.height // (2 * size[1]))
    if factor > 1:
        image = image.reduce(factor)  # a plain mean: at this scale as good as the filter below, and much faster
    return ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)


def _contained(image: Image.Image, opacity: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The visible part of a transparent image, as large as fits into ``size``."""
    from PIL import Image, ImageOps

    seen = opacity.point(lambda value: 255 * (value > FAINT)).getbbox()
    if seen is not None:
        image = image.crop(seen)
    factor = min(image.width // (2 * size[0]), image.height // (2 * size[1]))
    if factor > 1:
        image = image.reduce(factor)
    fitted = ImageOps.contain(image, size, method=Image.Resampling.BILINEAR)
    whole = Image.new(image.mode, size)
    whole.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
    return whole


def filled(pixels: npt.NDArray[Any], background: tuple[int, int, int] | None = None) -> npt.NDArray[Any]:
    """Put pixels (2 or 4, H, W), whose last channel is opacity, on a background of this red, green and blue; None: on white,
    or on black if the visible part is nearly white.

    Returns:
        uint8 (1 or 3, H, W).

    Example:
        >>> filled(np.array([[[0, 0]], [[255, 0]]], dtype="uint8")).tolist()
        [[[0, 255]]]
    """
    colours, opacity = pixels[:-1].astype(np.float32), pixels[-1:].astype(np.float32) / 255
    seen = float((colours.mean(0, keepdims=True) * opacity).sum()) / max(float(opacity.sum()), 1e-6)
    ground: Any = 0.0 if seen > BRIGHT else 255.0
    if background is not None:
        chosen = np.array(background, dtype=np.float32)
        ground = (chosen if len(colours) == 3 else chosen @ LUMINANCE).reshape(-1, 1, 1)
    blended: npt.NDArray[Any] = (colours * opacity + ground * (1 - opacity)).round().clip(0, 255).astype(np.uint8)
    return blended
