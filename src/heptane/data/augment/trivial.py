"""TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158): one operation per image, at a random strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from heptane.base.lazy import np, torch
from heptane.data.augment.color import adjust_color
from heptane.data.augment.pixels import by_image, check_pixels, column, like, uniform

LEVELS = 31  # strengths 0, 1/30, ..., 1
SHEAR, SHIFT, DEGREES, FACTOR = 0.99, 32 / 224, 135.0, 0.99  # the paper's wide ranges; the shift as a share of the side


@dataclass(frozen=True, kw_only=True)
class TrivialAugment:
    """Change each image by one operation at one strength, both at random (Müller and Hutter 2021, arXiv:2103.10158).

    There is nothing to tune. The operations: none, shear and shift (across, down), rotation, brightness, saturation,
    contrast, sharpness, posterize, solarize, autocontrast and equalize, in the paper's wide ranges. What a shear, shift or
    rotation uncovers is black. Usually after a :class:`RandomResizedCrop`.

    Example:
        >>> trivial = TrivialAugment()
        >>> draws = trivial.draw(np.random.default_rng(0), 2)
        >>> trivial.apply(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), draws).shape
        torch.Size([2, 3, 8, 8])
    """

    on_pixels: ClassVar[bool] = True

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 3) uniform numbers: operation, strength, direction."""
        return uniform(rng, batch_size, 3)

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augment pixel values (N, C, H, W) in [0, 255], C 1 or 3, keeping their dtype; floats are rounded."""
        check_pixels("TrivialAugment", inputs)
        draws = draws.cpu()
        which = (draws[:, 0] * len(OPERATIONS)).long()
        strength = (draws[:, 1] * LEVELS).floor() / (LEVELS - 1)
        signed = torch.where(draws[:, 2] < 0.5, -strength, strength)
        images = like(inputs.contiguous(), inputs.new_empty(0, dtype=torch.uint8))
        return by_image(_operate, images, which, strength, signed).to(inputs.dtype)


def _operate(images: torch.Tensor, which: torch.Tensor, strength: torch.Tensor, signed: torch.Tensor) -> torch.Tensor:
    """Each image by its operation; those of one operation together."""
    if len(images) == 1:
        name = list(OPERATIONS)[int(which)]
        return OPERATIONS[name](images, column(strength if name in UNSIGNED else signed, images))
    found = images.clone()
    for index in sorted(set(which.tolist())):
        chosen = (which == index).nonzero()[:, 0]
        at = chosen.to(images.device)
        amount = (strength if list(OPERATIONS)[index] in UNSIGNED else signed)[chosen]
        found[at] = list(OPERATIONS.values())[index](images[at], column(amount, images))
    return found


def _affine(images: torch.Tensor, rows: list[list[Any]]) -> torch.Tensor:
    """Move pixels about the centre; ``rows`` map pixels of the result to pixels of the input, shifts in shares of a side."""
    height, width = images.shape[-2:]
    full = [[torch.as_tensor(value, device=images.device).expand(len(images)) for value in row] for row in rows]
    full[0][1], full[1][0] = full[0][1] * (height / width), full[1][0] * (width / height)
    full[0][2], full[1][2] = 2 * full[0][2], 2 * full[1][2]  # coordinates go from -1 to 1
    maps = torch.stack([torch.stack(row, 1) for row in full], 1).float()
    grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    return like(torch.nn.functional.grid_sample(images.float(), grid, align_corners=False), images)


def _rotate(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    angle = amount.flatten() * math.radians(DEGREES)
    return _affine(images, [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])


def _color(images: torch.Tensor, amount: torch.Tensor, which: int) -> torch.Tensor:
    factors = torch.ones(3, len(images), device=images.device)
    factors[which] += FACTOR * amount.flatten()
    return like(adjust_color(images, factors[0], factors[1], factors[2]), images)


def _sharpness(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Away from, or towards, the image smoothed by a 3x3 filter; the outermost pixels stay, as in Pillow."""
    channels, height, width = images.shape[1:]
    if height < 3 or width < 3:
        return images
    values = images.float()
    kernel = values.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    inner = values[:, :, 1:-1, 1:-1]
    smooth = (torch.nn.functional.conv2d(values, kernel, groups=channels) / 13).round()
    values[:, :, 1:-1, 1:-1] = smooth + (1 + FACTOR * amount) * (inner - smooth)
    return like(values, images)


def _posterize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Keep the 8 to 2 highest bits."""
    dropped = 2 ** (6 * amount).round()
    return images & (256 - dropped).to(torch.uint8)


def _solarize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Invert the pixels from a threshold on, which falls from 255 to 0."""
    return torch.where(images >= 255 * (1 - amount), 255 - images, images)


def _autocontrast(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to the whole range."""
    low = images.amin((2, 3), keepdim=True).float()
    high = images.amax((2, 3), keepdim=True).float()
    stretched = (images.float() - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, like(stretched, images), images)


def _equalize(images: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Flatten the histogram of each channel, by Pillow's integer arithmetic."""
    rows = images.flatten(2).flatten(0, 1).long()  # (N * C, H * W)
    counts = rows.new_zeros(len(rows), 256).scatter_add_(1, rows, torch.ones_like(rows))
    top = counts.gather(1, rows.amax(1, keepdim=True))
    step = (rows.shape[1] - top) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(1, rows), rows).to(torch.uint8).view(images.shape)


OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "none": lambda images, _: images,
    "shear_across": lambda images, a: _affine(images, [[1.0, SHEAR * a.flatten(), 0.0], [0.0, 1.0, 0.0]]),
    "shear_down": lambda images, a: _affine(images, [[1.0, 0.0, 0.0], [SHEAR * a.flatten(), 1.0, 0.0]]),
    "shift_across": lambda images, a: _affine(images, [[1.0, 0.0, SHIFT * a.flatten()], [0.0, 1.0, 0.0]]),
    "shift_down": lambda images, a: _affine(images, [[1.0, 0.0, 0.0], [0.0, 1.0, SHIFT * a.flatten()]]),
    "rotate": _rotate,
    "brightness": lambda images, a: _color(images, a, 0),
    "contrast": lambda images, a: _color(images, a, 1),
    "saturation": lambda images, a: _color(images, a, 2),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""From uint8 images and amounts (n, 1, 1, 1) to uint8 images"""
UNSIGNED = ("posterize", "solarize", "autocontrast", "equalize")  # amounts in [0, 1], those of the others in [-1, 1]
