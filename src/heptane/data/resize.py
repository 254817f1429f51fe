"""Progressive resizing: smaller images early in training, since a convolution's cost is proportional to the pixels.

Source: Howard 2018, "Training Imagenet in 3 hours for $25", fast.ai; Tan and Le 2021, arXiv:2104.00298, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch


@dataclass(frozen=True, kw_only=True)
class ProgressiveResize:
    """Train on images of ``size`` by ``size`` pixels for the first part of the steps, then on full-size images.

    It suits networks that accept any image size, such as those with global average pooling. Evaluation always uses
    full-size images, so accuracy before ``until`` is lower than on small images.

    Args:
        size: height and width of the small images, in pixels, at least 1 and below the full size.
        until: fraction of the steps on small images, in (0, 1). If less than about a third of the steps remain, BatchNorm's
            statistics do not adapt to the full size.

    Example:
        >>> sizes = ProgressiveResize(size=20, until=0.6).sizes(total_steps=10)
        >>> [sizes(step) for step in (0, 5, 6)]
        [20, 20, None]
    """

    size: int
    until: float = 0.6

    def __post_init__(self) -> None:
        check_range("ProgressiveResize.size", self.size, 1, whole=True)
        check_range("ProgressiveResize.until", self.until, 0, 1, low_open=True, high_open=True)

    def sizes(self, total_steps: int) -> Callable[[int], int | None]:
        """Return a function from a step to its image size, None for full size."""
        stop = round(self.until * total_steps)
        return lambda step: self.size if step < stop else None

    def check(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return two samples at the small size, to probe the model with.

        Raises:
            InputError: the inputs are not images, or not larger than ``size``.
        """
        if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4:
            found = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
            raise InputError(f"ProgressiveResize needs images (N, C, H, W), but the inputs are {found}: remove it")
        if self.size >= min(inputs.shape[-2:]):
            whole = "x".join(str(n) for n in inputs.shape[-2:])
            raise InputError(f"ProgressiveResize.size={self.size}: expected less than the image size, {whole}")
        return resized(inputs[:2], self.size)


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images (N, C, H, W) to (N, C, size, size), bilinear with antialiasing."""
    return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
