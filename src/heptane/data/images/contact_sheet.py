"""A contact sheet: one picture with a few images of each class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np

if TYPE_CHECKING:
    from PIL import ImageFont

TILE, GAP, MARGIN, CAPTION = 96, 4, 16, 24  # pixels
MAX_CLASSES = 100
INK, PAPER, FRAME = (20, 20, 20), (255, 255, 255), (200, 200, 200)


def tiles_per_class(num_classes: int) -> int:
    """How many images of each class a sheet shows."""
    return 24 if num_classes <= 4 else 12 if num_classes <= 12 else 6


def draw_sheet(title: str, classes: Sequence[tuple[str, Sequence[Any]]]) -> bytes:
    """Draw the sheet.

    Args:
        title: its first line.
        classes: the caption of each class, and its images: uint8 (1 or 3, H, W), each scaled to a tile.

    Returns:
        A PNG file's content.
    """
    from PIL import Image, ImageDraw

    per_class = tiles_per_class(len(classes))
    across = min(per_class, 12)
    columns = 2 if across <= 6 else 1
    width = across * (TILE + GAP) - GAP
    height = CAPTION + -(-per_class // across) * (TILE + GAP) + GAP
    rows = -(-len(classes) // columns)
    size = 2 * MARGIN + columns * width + (columns - 1) * 2 * MARGIN, 2 * MARGIN + CAPTION + rows * height
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(15)
    draw.text((MARGIN, MARGIN), _fitted(title, font, size[0] - 2 * MARGIN), INK, _font(17))
    for at, (caption, images) in enumerate(classes):
        left = MARGIN + at // rows * (width + 2 * MARGIN)
        top = MARGIN + CAPTION + at % rows * height
        draw.text((left, top + 4), _fitted(caption, font, width), INK, font)
        for place, pixels in enumerate(images):
            corner = left + place % across * (TILE + GAP), top + CAPTION + place // across * (TILE + GAP)
            sheet.paste(_tile(pixels), corner)
            draw.rectangle((*corner, corner[0] + TILE - 1, corner[1] + TILE - 1), outline=FRAME)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _tile(pixels: Any) -> Any:
    """Pixels (1, 2, 3 or more channels, H, W) as an image of a tile's size."""
    from PIL import Image

    shown = np.asarray(pixels)[[0, 1, 2] if len(pixels) > 2 else [0, 0, 0]]
    image = Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))
    small = max(image.size) <= TILE // 2
    return image.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's DejaVu Sans, which has more scripts than Pillow's own font."""
    from PIL import ImageFont

    spec = find_spec("matplotlib")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec is not None else None) or ()]
    for folder in folders:
        try:
            return ImageFont.truetype(str(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
        except (OSError, ImportError):
            continue
    return ImageFont.load_default(size)


def _fitted(text: str, font: Any, width: int) -> str:
    """Text cut to a width in pixels."""
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
