"""Random resized crop: a random part of each image at the training size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from heptane.base.errors import InputError, check_bool, check_range
from heptane.base.lazy import np, torch
from heptane.base.threads import by_parts
from heptane.data.augment.pixels import TRIES, check_images, check_interval, draw_boxes, like, uniform

MOST_SAMPLES = 8  # per side and pixel, in ``_sample``


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Cut a random part out of each image, scale it to one size, and mirror half of them, like torchvision's.

    It learns from larger and smaller views of the objects, which suits photographs. Not for images whose class depends on
    the whole, such as letters.

    Args:
        size: height and width of the result, or one number for both; None: the size at which the run trains.
        scale: smallest and largest part, as a share of the image's area, in (0, 1].
        ratio: smallest and largest width over height of the part, above 0.
        flip: mirror left and right with probability 1/2.

    Example:
        >>> crop = RandomResizedCrop(size=4, scale=(0.5, 1.0))
        >>> draws = crop.draw(np.random.default_rng(0), 2)
        >>> crop.apply(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), draws).shape
        torch.Size([2, 3, 4, 4])
    """

    size: int | tuple[int, int] | None = None
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    on_pixels: ClassVar[bool] = True
    by_image: ClassVar[bool] = True
    room: ClassVar[float] = 1.25
    """side of the stored images, as a multiple of the training size, so that small parts stay sharp"""

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, (tuple, list)) else [1 if self.size is None else self.size] * 2
        if len(sides) != 2:
            raise InputError(f"RandomResizedCrop.size={self.size!r}: expected a height and a width, or one number for both")
        for side in sides:
            check_range("RandomResizedCrop.size", side, 1, whole=True)
        check_interval("RandomResizedCrop.scale", self.scale, 0, 1)
        check_interval("RandomResizedCrop.ratio", self.ratio, 0, 100)
        check_bool("RandomResizedCrop.flip", self.flip)

    def for_size(self, height: int, width: int) -> RandomResizedCrop:
        """A copy for a run that trains at this size; unchanged if a size was given."""
        return replace(self, size=(height, width)) if self.size is None else self

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 2 * TRIES + 3) uniform numbers: areas, aspect ratios, where the part lies, mirrored."""
        return uniform(rng, batch_size, 2 * TRIES + 3)

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Crop and scale images of shape (N, C, H, W), keeping their dtype."""
        check_images("RandomResizedCrop", inputs)
        height, width = int(inputs.shape[-2]), int(inputs.shape[-1])
        boxes = self.boxes(height, width, draws)
        mirrored = draws[:, -1] < (0.5 if self.flip else 0.0)
        size = (height, width) if self.size is None else (self.size, self.size) if isinstance(self.size, int) else self.size
        if inputs.device.type == "cpu" and inputs.dtype in (torch.uint8, torch.float32, torch.float64):
            return _interpolate(inputs, boxes, mirrored, size)
        return _sample(inputs, boxes, mirrored, size)

    def boxes(self, height: int, width: int, draws: torch.Tensor) -> torch.Tensor:
        """(N, 4) int64: top, left, height and width of each image's part."""
        boxes, fits = draw_boxes(draws[:, : 2 * TRIES + 2].cpu(), (height, width), self.scale, self.ratio)
        low, high = self.ratio  # where nothing fits: the largest part in the middle with an aspect ratio in range
        tall = min(height, round(width / low)) if width / height < low else height
        wide = min(width, round(height * high)) if width / height > high else width
        middle = torch.tensor([(height - tall) // 2, (width - wide) // 2, tall, wide])
        return torch.where(fits[:, None], boxes, middle)


def _interpolate(inputs: torch.Tensor, boxes: torch.Tensor, mirrored: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """One image at a time, by PyTorch's antialiased kernel, which is fast for uint8 in channels-last memory."""
    last = torch.channels_last
    found = torch.empty((len(inputs), inputs.shape[1], *size), dtype=inputs.dtype, memory_format=last)
    interleaved = inputs.is_contiguous(memory_format=last)
    cuts = list(zip(boxes.tolist(), mirrored.tolist(), strict=True))

    def cut(rows: slice) -> None:
        for index in range(rows.start, rows.stop):
            (top, left, tall, wide), flip = cuts[index]
            part = inputs[index : index + 1, :, top : top + tall, left : left + wide]
            if not interleaved:
                part = part.contiguous(memory_format=last)
            part = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
            found[index] = part[0].flip(2) if flip else part[0]

    by_parts(cut, len(inputs))
    return found


def _sample(inputs: torch.Tensor, boxes: torch.Tensor, mirrored: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The whole batch at once: each pixel is the mean of k x k samples, at most one pixel of the input apart."""
    height, width = int(inputs.shape[-2]), int(inputs.shape[-1])
    k = min(MOST_SAMPLES, max(1, math.ceil(height / size[0]), math.ceil(width / size[1])))
    whole = torch.tensor([height, width, height, width])
    top, left, tall, wide = (boxes / whole).unbind(1)
    sign, none = torch.where(mirrored, -1.0, 1.0), torch.zeros(len(boxes))
    rows = [torch.stack(row, 1) for row in ([sign * wide, none, 2 * left + wide - 1], [none, tall, 2 * top + tall - 1])]
    values = inputs if inputs.dtype == torch.float64 else inputs.float()
    maps = torch.stack(rows, 1).to(inputs.device, values.dtype)
    wanted = [len(inputs), inputs.shape[1], size[0] * k, size[1] * k]
    grid = torch.nn.functional.affine_grid(maps, wanted, align_corners=False)
    found = torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=False)
    return like(torch.nn.functional.avg_pool2d(found, k) if k > 1 else found, inputs)
