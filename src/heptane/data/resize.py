"""Progressive resizing: smaller images for the first part of training, since a convolution's cost goes with the pixels.

Source: Howard 2018, "Training Imagenet in 3 hours for $25", fast.ai; Tan and Le 2021, arXiv:2104.00298, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch


@dataclass(frozen=True, kw_only=True)
class ProgressiveResize:
    """Train on images of ``size`` by ``size`` pixels for the first part of the steps, then on whole ones.

    It suits networks that take images of any size, such as those that end in a mean over the image. Evaluation is always on
    whole images, so an accuracy from before ``until`` is lower than the network's own.

    Args:
        size: height and width of the small images, in pixels, at least 1 and less than the whole ones'.
        until: share of the steps on small images, in (0, 1). With less than about a third of them left, BatchNorm's
            statistics do not catch up.

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
        """From a step to the size of its images; None for whole ones."""
        stop = round(self.until * total_steps)
        return lambda step: self.size if step < stop else None

    def check(self, inputs: torch.Tensor) -> torch.Tensor:
        """Two samples at the small size, to try the model on.

        Raises:
            InputError: the inputs are not images, or not larger.
        """
        if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4:
            found = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
            raise InputError(f"ProgressiveResize needs images (N, C, H, W), and these inputs are {found}: leave it out")
        if self.size >= min(inputs.shape[-2:]):
            whole = "x".join(str(n) for n in inputs.shape[-2:])
            raise InputError(f"ProgressiveResize.size={self.size}: expected less than the images' own {whole}")
        return resized(inputs[:2], self.size)


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images of shape (N, C, H, W) as (N, C, size, size), bilinear, with the filter that avoids aliasing."""
    return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
