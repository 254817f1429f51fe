"""Random crops and flips of whole batches; the draws belong to the global batch, so workers do not change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import np, torch
from heptane.base.randomness import generator, seeded


class Augment(Protocol):
    """``draw`` once per global batch, ``apply`` to any part of it."""

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """Random numbers for a global batch, shape (N, ...)."""

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """The augmented inputs; ``draws`` are the rows that belong to them."""


@dataclass(frozen=True)
class CallableAugment:
    """A function of the user's as augmentation: batch of inputs -> batch of inputs, given each global batch as a whole.

    What it draws from PyTorch's, NumPy's and Python's global generators is a function of (seed, step), and these are put
    back: so a resumed run, several workers and micro-batches see the same. Each worker computes it on the whole batch.
    """

    function: Callable[[Any], Any]

    def __call__(self, inputs: Any, seed: int, step: int) -> Any:
        """The augmented inputs of one step."""
        with seeded(int(generator(seed, "augment", step).integers(1 << 63))):
            found = self.function(inputs.clone() if isinstance(inputs, torch.Tensor) else inputs)
        before, after = (len(x) if isinstance(x, torch.Tensor) and x.ndim else None for x in (inputs, found))
        if isinstance(inputs, torch.Tensor) and before != after:
            kind = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"type {type(found).__name__}"
            raise InputError(
                f"augment gave {kind} for inputs of shape {tuple(inputs.shape)}: expected a function from a batch of inputs "
                "to a batch of as many, such as torchvision's transforms for batches"
            )
        return found


def as_augment(augment: Any) -> Augment | CallableAugment | None:
    """What ``augment=`` was given, as the loop takes it.

    Raises:
        InputError: it is no augmentation.
    """
    if augment is None or (hasattr(augment, "draw") and hasattr(augment, "apply")):
        return augment  # type: ignore[no-any-return]
    if not callable(augment) or isinstance(augment, type):
        raise InputError(f"augment={augment!r}: expected hp.CropFlip(), or a function from a batch of inputs to one")
    return augment if isinstance(augment, CallableAugment) else CallableAugment(augment)


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


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Shift, resize and turn each image a little, and mirror half of them if asked; the border repeats the edge pixels.

    Args:
        shift: largest shift in each direction, as a share of the side, in [0, 0.5].
        scale: largest change of size: each image is drawn 1/(1 + scale) to 1 + scale times as large, in [0, 1].
        degrees: largest turn to either side, in [0, 180].
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
        """(N, 2, 3) float32: for each image the affine map from the output's coordinates in [-1, 1] to the input's."""
        across, down, log_size, turn = rng.uniform(-1, 1, (4, batch_size))
        mirrored = np.where(rng.integers(0, 2, batch_size) == 1, -1.0, 1.0) if self.flip else np.ones(batch_size)
        size, angle = np.exp(log_size * np.log1p(self.scale)), np.deg2rad(self.degrees) * turn
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        rows = [[mirrored * cos, -sin, 2 * self.shift * across], [mirrored * sin, cos, 2 * self.shift * down]]
        return torch.from_numpy(np.array(rows).transpose(2, 0, 1).astype(np.float32))

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Warp images of shape (N, C, H, W), of the same dtype."""
        if inputs.ndim != 4:
            raise InputError(f"Warp needs images (N, C, H, W), and these inputs are {tuple(inputs.shape)}: leave it out")
        draws = draws.to(inputs.device, inputs.dtype)
        grid = torch.nn.functional.affine_grid(draws, list(inputs.shape), align_corners=False)
        return torch.nn.functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)
