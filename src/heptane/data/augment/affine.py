"""Small shifts, turns and changes of size, which keep the size of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heptane.base.errors import check_range
from heptane.base.lazy import np, torch
from heptane.data.augment.pixels import check_images, like


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """Shift each image by up to ``padding`` pixels (filled with zeros) and mirror half of them.

    Args:
        padding: largest shift, in pixels, at least 0.
        flip: mirror left and right with probability 1/2.
    """

    padding: int = 2
    flip: bool = True

    on_pixels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("CropFlip.padding", self.padding, 0, whole=True)

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 3) integers: vertical shift, horizontal shift, flip."""
        high = (2 * self.padding + 1, 2 * self.padding + 1, 2 if self.flip else 1)
        return torch.from_numpy(rng.integers(0, high, (batch_size, 3)))

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Crop and flip images of shape (N, C, H, W)."""
        check_images("CropFlip", inputs)
        height, width = inputs.shape[-2:]
        draws = draws.to(inputs.device)
        padded = torch.nn.functional.pad(inputs, [self.padding] * 4) if self.padding else inputs
        columns = torch.arange(width, device=inputs.device)
        columns = torch.where(draws[:, 2:] == 1, width - 1 - columns, columns) + draws[:, 1:2]
        rows = torch.arange(height, device=inputs.device) + draws[:, :1]
        samples = torch.arange(len(inputs), device=inputs.device)
        # Indexing on both sides of the channels gives (N, H, W, C), which is permuted to (N, C, H, W).
        return padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Shift, scale and rotate each image slightly, and optionally mirror half of them; the border repeats the edge pixels.

    Args:
        shift: largest shift in each direction, as a fraction of the side, in [0, 0.5].
        scale: largest change of size, in [0, 1]: each image is scaled by 1/(1 + scale) to 1 + scale.
        degrees: largest rotation in either direction, in [0, 180].
        flip: mirror left and right with probability 1/2.

    Example:
        >>> warp = Warp(shift=0.1, degrees=5, flip=False)
        >>> draws = warp.draw(np.random.default_rng(0), 2)
        >>> warp.apply(torch.ones(2, 3, 8, 8), draws).shape
        torch.Size([2, 3, 8, 8])
    """

    shift: float = 0.08
    scale: float = 0.15
    degrees: float = 8.0
    flip: bool = False

    on_pixels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("Warp.shift", self.shift, 0, 0.5)
        check_range("Warp.scale", self.scale, 0, 1)
        check_range("Warp.degrees", self.degrees, 0, 180)

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 2, 3) float32: each image's affine map from output to input coordinates, in [-1, 1]."""
        across, down, log_size, turn = rng.uniform(-1, 1, (4, batch_size))
        mirrored = np.where(rng.integers(0, 2, batch_size) == 1, -1.0, 1.0) if self.flip else np.ones(batch_size)
        size, angle = np.exp(log_size * np.log1p(self.scale)), np.deg2rad(self.degrees) * turn
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        rows = [[mirrored * cos, -sin, 2 * self.shift * across], [mirrored * sin, cos, 2 * self.shift * down]]
        return torch.from_numpy(np.array(rows).transpose(2, 0, 1).astype(np.float32))

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Warp images of shape (N, C, H, W), keeping their dtype."""
        check_images("Warp", inputs)
        values = inputs if inputs.is_floating_point() else inputs.float()
        draws = draws.to(values.device, values.dtype)
        grid = torch.nn.functional.affine_grid(draws, list(inputs.shape), align_corners=False)
        return like(torch.nn.functional.grid_sample(values, grid, padding_mode="border", align_corners=False), inputs)
