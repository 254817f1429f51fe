"""Random erasing (Zhong et al. 2020, arXiv:1708.04896): a rectangle of some images is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heptane.base.errors import check_range
from heptane.base.lazy import np, torch
from heptane.data.augment.pixels import TRIES, check_images, check_interval, draw_boxes, like, uniform


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """Fill a random rectangle of some images with the mean colour of the image (Zhong et al. 2020, arXiv:1708.04896).

    Pixels and standardised images give the same result, since the mean is the image's own.

    Args:
        probability: share of the images, in [0, 1].
        scale: smallest and largest rectangle, as a share of the image's area, in (0, 1].
        ratio: smallest and largest width over height of the rectangle, above 0.

    Example:
        >>> erasing = RandomErasing(probability=1.0)
        >>> draws = erasing.draw(np.random.default_rng(0), 2)
        >>> erasing.apply(torch.randn(2, 3, 8, 8), draws).shape
        torch.Size([2, 3, 8, 8])
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 0.2)
    ratio: tuple[float, float] = (0.3, 3.3)

    on_pixels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("RandomErasing.probability", self.probability, 0, 1)
        check_interval("RandomErasing.scale", self.scale, 0, 1)
        check_interval("RandomErasing.ratio", self.ratio, 0, 100)

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, 2 * TRIES + 3) uniform numbers: whether, areas, aspect ratios, where the rectangle lies."""
        return uniform(rng, batch_size, 2 * TRIES + 3)

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Erase rectangles of images of shape (N, C, H, W), keeping their dtype."""
        check_images("RandomErasing", inputs)
        draws = draws.cpu()
        boxes, fits = draw_boxes(draws[:, 1:], (int(inputs.shape[-2]), int(inputs.shape[-1])), self.scale, self.ratio)
        chosen = ((draws[:, 0] < self.probability) & fits).nonzero()[:, 0]
        means = like(inputs[chosen.to(inputs.device)].float().mean((2, 3), keepdim=True), inputs)
        found = inputs.clone()
        for index, (top, left, tall, wide), mean in zip(chosen.tolist(), boxes[chosen].tolist(), means, strict=True):
            found[index, :, top : top + tall, left : left + wide] = mean
        return found
