"""Random crops and flips of whole batches; the draws belong to the global batch, so workers do not change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from heptane._lazy import np, torch
from heptane.errors import InputError, check_range


class Augment(Protocol):
    """``draw`` once per global batch, ``apply`` to any part of it."""

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """Random numbers for a global batch, shape (N, ...)."""

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """The augmented inputs; ``draws`` are the rows that belong to them."""


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """Shift each image by up to ``padding`` pixels (zeros come in) and mirror half of them.

    Args:
        padding: largest shift, in pixels, at least 0.
        flip: mirror left and right with probability 1/2.
    """

    padding: int = 2
    flip: bool = True

    def __post_init__(self) -> None:
        check_range("CropFlip.padding", self.padding, 0, whole=True)

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 3) integers: vertical shift, horizontal shift, flip."""
        high = (2 * self.padding + 1, 2 * self.padding + 1, 2 if self.flip else 1)
        return torch.from_numpy(rng.integers(0, high, (batch_size, 3)))

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Crop and flip images of shape (N, C, H, W)."""
        if inputs.ndim != 4:
            raise InputError(f"CropFlip needs images (N, C, H, W), and these inputs are {tuple(inputs.shape)}: leave it out")
        height, width = inputs.shape[-2:]
        draws = draws.to(inputs.device)
        padded = torch.nn.functional.pad(inputs, [self.padding] * 4) if self.padding else inputs
        columns = torch.arange(width, device=inputs.device)
        columns = torch.where(draws[:, 2:] == 1, width - 1 - columns, columns) + draws[:, 1:2]
        rows = torch.arange(height, device=inputs.device) + draws[:, :1]
        samples = torch.arange(len(inputs), device=inputs.device)
        # Indices on both sides of the channels put them last in memory: (N, H, W, C), seen as (N, C, H, W).
        return padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
