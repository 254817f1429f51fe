"""What the augmentations share: checks of their inputs, pixel values and boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import np, torch

TRIES = 10  # boxes drawn per image; the first one that fits is taken, as in torchvision


def check_images(name: str, inputs: torch.Tensor) -> None:
    """Raise :class:`InputError` unless ``inputs`` are images (N, C, H, W)."""
    if inputs.ndim != 4:
        raise InputError(f"{name} needs images (N, C, H, W), but the inputs are {tuple(inputs.shape)}: remove it")


def check_pixels(name: str, inputs: torch.Tensor) -> None:
    """Raise :class:`InputError` unless ``inputs`` are images of 1 or 3 channels with pixel values in [0, 255]."""
    check_images(name, inputs)
    if inputs.shape[1] not in (1, 3):
        raise InputError(f"{name} needs images with 1 or 3 channels, but these have {inputs.shape[1]}: remove it")
    if inputs.dtype == torch.uint8 or not inputs.numel():
        return
    low, high = (float(value) for value in torch.aminmax(inputs))
    if low < 0 or high > 255 or 0 < high <= 1:
        raise InputError(
            f"{name} needs pixel values in [0, 255], but these inputs reach from {low:.3g} to {high:.3g}: train on uint8 "
            "images, or use an augmentation that only moves pixels, such as hp.RandomResizedCrop() (--augment crop)"
        )


def check_interval(name: str, value: object, low: float, high: float) -> None:
    """Raise :class:`InputError` unless ``value`` is a pair of rising numbers in (low, high]."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name}={value!r}: expected two numbers, such as ({low + (high - low) / 4:g}, {high:g})")
    for number in value:
        check_range(name, number, low, high, low_open=True)
    if value[0] > value[1]:
        raise InputError(f"{name}={value!r}: expected the smaller number first")


def uniform(rng: np.random.Generator, batch_size: int, columns: int) -> torch.Tensor:
    """(N, columns) float64 numbers in [0, 1)."""
    return torch.from_numpy(rng.random((batch_size, columns)))


def between(draws: torch.Tensor, interval: Sequence[float]) -> torch.Tensor:
    """Numbers in [0, 1) as numbers in an interval."""
    return draws * (interval[1] - interval[0]) + interval[0]


def like(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``values`` in the dtype of ``inputs``: rounded and clipped to [0, 255] for uint8."""
    return values.round().clamp_(0, 255).to(torch.uint8) if inputs.dtype == torch.uint8 else values.to(inputs.dtype)


def column(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """A number per image, (N,), as (N, 1, 1, 1) float32 on the device of ``inputs``."""
    return values.to(inputs.device, torch.float32).view(-1, 1, 1, 1)


def by_image(function: Callable[..., torch.Tensor], inputs: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
    """``function(inputs, *numbers)``, on a CPU one image at a time: its cache holds an image, but no batch."""
    if inputs.device.type != "cpu" or len(inputs) < 2:
        return function(inputs, *numbers)
    rows = zip(*(torch.split(part, 1) for part in (inputs, *numbers)), strict=True)
    return torch.cat([function(*row) for row in rows])


def draw_boxes(
    draws: torch.Tensor, size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes inside images, as torchvision's ``RandomResizedCrop`` draws them.

    Args:
        draws: (N, 2 * TRIES + 2) uniform numbers: areas, aspect ratios, and where the box lies, down and across.
        size: height and width of the images.
        scale: share of the image's area.
        ratio: width over height, uniform in its logarithm.

    Returns:
        (N, 4) int64: top, left, height, width; and (N,) whether a box fitted. Where none did, the box is the whole image.
    """
    height, width = size
    area = between(draws[:, :TRIES], scale) * (height * width)
    aspect = between(draws[:, TRIES : 2 * TRIES], [float(np.log(edge)) for edge in ratio]).exp()
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], 2).round().long()  # (N, TRIES, 2)
    limits = torch.tensor([height, width])
    fits = ((sides > 0) & (sides <= limits)).all(2)
    first = fits.to(torch.uint8).argmax(1)
    chosen = torch.where(fits.any(1)[:, None], sides[torch.arange(len(draws)), first], limits)
    corners = (draws[:, 2 * TRIES :] * (limits - chosen + 1)).long()
    return torch.cat([corners, chosen], 1), fits.any(1)
