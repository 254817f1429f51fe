"""Encode model inputs as small images inside the page: data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heptane.base.lazy import np, torch

LARGEST = 112  # pixels of the longer side; larger images are scaled down
SHARP = 48  # pixels; images up to this size are encoded losslessly


@dataclass(frozen=True)
class Scale:
    """Maps a model's inputs to pixels in [0, 1], per channel: ``scale * input + offset``."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, images: torch.Tensor, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Scale:
        """From the mean and std of the normalisation, or else from the range of the values.

        Example:
            >>> Scale.of(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2))
            Scale(offset=(0.0,), scale=(0.00392156862745098,))
        """
        if mean and len(mean) == len(std) == images.shape[1]:
            return cls(tuple(map(float, mean)), tuple(map(float, std)))
        values = images.float().flatten()
        values = values[values.isfinite()]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        if low >= 0 and high <= 1:
            return cls((0.0,), (1.0,))
        if low >= 0 and 1 < high <= 255:
            return cls((0.0,), (1 / 255,))
        low, high = np.quantile(values.numpy(), (0.005, 0.995)).tolist()
        width = max(high - low, 1e-12)
        return cls((-low / width,), (1 / width,))

    def pixels(self, images: torch.Tensor) -> Any:
        """Images (N, C, H, W) as uint8 (N, H, W, C)."""
        offset, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.offset, self.scale))
        back = (images.float() * scale + offset).nan_to_num(0.0).clamp(0, 1)
        return (back * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def is_picture(inputs: Any) -> bool:
    """Whether inputs can be shown as images: (N, C, H, W) with 1, 3 or 4 channels."""
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4 or inputs.is_complex():
        return False
    return inputs.shape[1] in (1, 3, 4) and min(inputs.shape[2:]) >= 4


def data_uris(images: torch.Tensor, scale: Scale) -> list[str]:
    """A ``data:`` URI per image of (N, C, H, W)."""
    from PIL import Image, features

    found = []
    for pixels in scale.pixels(images.detach().cpu()):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        if max(image.size) > LARGEST:
            image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small = max(image.size) <= SHARP
        kind = "png" if small or not features.check("webp") else "webp"
        image.save(stream, kind.upper(), **({"optimize": True} if kind == "png" else {"quality": 82}))
        found.append(f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}")
    return found
