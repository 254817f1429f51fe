"""Standardise the pixels of images per channel."""

from __future__ import annotations

from collections.abc import Sequence

from heptane.base.lazy import torch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # used to train most pretrained weights


def standardise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float], white: float = 255.0) -> torch.Tensor:
    """Standardise pixels (N, C, H, W) per channel to float32; ``mean`` and ``std`` are in multiples of ``white``."""
    offset, scale = _offset_and_scale(mean, std, white)
    copied = pixels.to(torch.float32, copy=True)
    return copied.sub_(offset).div_(scale)


def standardise_into(found: torch.Tensor, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """:func:`standardise` uint8 pixels into ``found``, float32 in any memory format, one image at a time: it then stays in
    the processor's cache."""
    offset, scale = (value[0] for value in _offset_and_scale(mean, std, 255.0))
    if not found.is_contiguous() and found.is_contiguous(memory_format=torch.channels_last):  # whole lines are faster
        offset, scale = (value.flatten().repeat(found.shape[3]) for value in (offset, scale))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        found, pixels = (images.permute(0, 2, 3, 1).flatten(2) for images in (found, pixels))
    for image, values in zip(found, pixels, strict=True):
        image.copy_(values).sub_(offset).div_(scale)


def _offset_and_scale(mean: Sequence[float], std: Sequence[float], white: float) -> tuple[torch.Tensor, torch.Tensor]:
    values = (torch.tensor([x * white for x in each], dtype=torch.float64) for each in (mean, std))
    offset, scale = (value.float().view(1, -1, 1, 1) for value in values)
    return offset, scale


def normalise(
    parts: Sequence[torch.Tensor], white: int = 255, scale: str = "data"
) -> tuple[list[torch.Tensor], tuple[float, ...], tuple[float, ...]]:
    """Normalise uint8 images (N, C, H, W) per channel with the first part's mean and std, or with ImageNet's.

    Returns:
        The parts as float32, and the mean and std of pixels scaled so that ``white`` is 1. A constant channel has std 1.
    """
    if scale == "imagenet":
        return [standardise(part, IMAGENET_MEAN, IMAGENET_STD, white) for part in parts], IMAGENET_MEAN, IMAGENET_STD
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in parts[0].unbind(1)])
    scaled_mean, scaled_std = channel_moments(counts, white)
    inputs = [standardise(part, scaled_mean, scaled_std, white) for part in parts]
    return inputs, scaled_mean, scaled_std


def channel_moments(counts: torch.Tensor, white: int = 255) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels scaled so that ``white`` is 1; a constant channel has std 1.

    Args:
        counts: of each level from 0 to 255, in each channel (C, 256).
    """
    counts = counts.double()
    shares, levels = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]).square()).sum(1).sqrt()
    std[std < 1e-6] = white
    return tuple((mean / white).tolist()), tuple((std / white).tolist())
