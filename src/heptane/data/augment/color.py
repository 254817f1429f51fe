"""Random changes of brightness, contrast, saturation and hue, each image by its own amount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heptane.base.errors import check_range
from heptane.base.lazy import np, torch
from heptane.data.augment.pixels import between, by_image, check_pixels, column, like, uniform

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as in Pillow


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue of each image at random, in this order.

    A brightness of 0.2 multiplies the pixels by 0.8 to 1.2; contrast and saturation work alike, around the image's mean
    grey and around each pixel's grey. The result is rounded and clipped once, at the end.

    Args:
        brightness, contrast, saturation: largest change, at least 0.
        hue: largest change, as a fraction of the colour circle, in [0, 0.5].

    Example:
        >>> jitter = ColorJitter(brightness=0.4)
        >>> draws = jitter.draw(np.random.default_rng(0), 2)
        >>> jitter.apply(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8), draws)[:, 0, 0, 0]
        tensor([111, 125], dtype=torch.uint8)
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0

    on_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_range(f"ColorJitter.{name}", getattr(self, name), 0)
        check_range("ColorJitter.hue", self.hue, 0, 0.5)

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 4) uniform numbers: brightness, contrast, saturation, hue."""
        return uniform(rng, batch_size, 4)

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Change the colours of pixel values (N, C, H, W) in [0, 255], C 1 or 3, keeping their dtype."""
        check_pixels("ColorJitter", inputs)
        return by_image(self._apply, inputs, draws)

    def _apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        brightness, contrast, saturation = (
            between(draws[:, at], (max(0.0, 1 - most), 1 + most))
            for at, most in enumerate((self.brightness, self.contrast, self.saturation))
        )
        found = adjust_color(inputs, brightness, contrast, saturation)
        if self.hue and inputs.shape[1] == 3:
            found = _turn_hue(found, column(between(draws[:, 3], (-self.hue, self.hue)), inputs))
        return like(found, inputs)


def adjust_color(
    inputs: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """Multiply brightness, contrast and saturation of each image by factors (N,); the result is float32 in [0, 255].

    The three together are one affine map of each pixel, so nothing is clipped in between.
    """
    values = inputs.contiguous().to(torch.float32).flatten(2)  # channels last is several times slower
    bright, plain, color = (column(factor, inputs)[..., 0] for factor in (brightness, contrast, saturation))
    luma = values.new_tensor(LUMA if inputs.shape[1] == 3 else (1.0,))
    grey = values.mean(2, keepdim=True).mul_(luma[:, None]).sum(1, keepdim=True)
    maps = color * torch.eye(len(luma), device=inputs.device) + (1 - color) * luma
    found = torch.baddbmm(bright * (1 - plain) * grey, bright * plain * maps, values)
    return found.clamp_(0, 255).view(inputs.shape)


def _turn_hue(values: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Move the hue of colours (N, 3, H, W) by ``turns`` of the colour circle, at the same HSV saturation and value."""
    low, high = torch.aminmax(values, dim=1, keepdim=True)
    chroma = high - low
    red, green, blue = torch.split(values, 1, 1)
    share = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixths = torch.where(high == green, (blue - red) / share + 2, (red - green) / share + 4)
    sixths = torch.where(high == red, (green - blue) / share, sixths) + 6 * turns
    steps = [(sixths + first) % 6 for first in (5, 3, 1)]  # of red, green and blue
    return torch.cat([high - chroma * torch.minimum(step, 4 - step).clamp(0, 1) for step in steps], 1)
