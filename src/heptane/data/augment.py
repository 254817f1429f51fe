"""Random augmentation of batches; the random numbers belong to the global batch, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import np, torch
from heptane.base.randomness import generator, seeded


class Augment(Protocol):
    """An augmentation: ``draw`` random numbers once per global batch, ``apply`` them to any part of it."""

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """Draw random numbers (N, ...) for a global batch."""

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augment inputs; ``draws`` are the rows of their samples."""


@dataclass(frozen=True)
class CallableAugment:
    """A user's function, from a batch of inputs to a batch of inputs, applied to each global batch.

    What it draws from the global generators of PyTorch, NumPy and Python is a function of (seed, step), so a resumed run,
    several workers and micro-batches see the same. Each worker computes the whole batch.
    """

    function: Callable[[Any], Any]

    def __call__(self, inputs: Any, seed: int, step: int) -> Any:
        """Augment the inputs of one step."""
        with seeded(int(generator(seed, "augment", step).integers(1 << 63))):
            found = self.function(inputs.clone() if isinstance(inputs, torch.Tensor) else inputs)
        size_before, size_after = (len(x) if isinstance(x, torch.Tensor) and x.ndim else None for x in (inputs, found))
        if isinstance(inputs, torch.Tensor) and size_before != size_after:
            kind = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"type {type(found).__name__}"
            raise InputError(
                f"augment returned {kind} for inputs of shape {tuple(inputs.shape)}: expected a function from a batch of "
                "inputs to a batch of the same size, such as torchvision's transforms"
            )
        return found


def as_augment(augment: Any) -> Augment | CallableAugment | None:
    """Convert the argument ``augment=`` to an augmentation or None.

    Raises:
        InputError: it is neither an augmentation nor a function.
    """
    if augment is None or (hasattr(augment, "draw") and hasattr(augment, "apply")):
        return augment  # type: ignore[no-any-return]
    if not callable(augment) or isinstance(augment, type):
        raise InputError(f"augment={augment!r}: expected hp.CropFlip() or a function from a batch of inputs to a batch")
    return augment if isinstance(augment, CallableAugment) else CallableAugment(augment)


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """Shift each image by up to ``padding`` pixels (filled with zeros) and mirror half of them.

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
            raise InputError(f"CropFlip needs images (N, C, H, W), but the inputs are {tuple(inputs.shape)}: remove it")
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
        if inputs.ndim != 4:
            raise InputError(f"Warp needs images (N, C, H, W), but the inputs are {tuple(inputs.shape)}: remove it")
        draws = draws.to(inputs.device, inputs.dtype)
        grid = torch.nn.functional.affine_grid(draws, list(inputs.shape), align_corners=False)
        return torch.nn.functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)
