"""Random augmentation of batches; the random numbers belong to the global batch, whatever the number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch
from heptane.base.randomness import generator, seeded


class Augment(Protocol):
    """An augmentation: ``draw`` random numbers once per global batch, ``apply`` them to any part of it.

    A class may have four more attributes. ``on_pixels``: True if ``apply`` gets pixel values in [0, 255], uint8 or float32
    (N, C, H, W), before they are standardized, and returns such values. ``by_image``: True if ``apply`` treats each image on
    its own, to the bit, so that threads can share a batch. ``room``: side of the stored images, as a multiple
    of the training size. ``for_size(height, width)``: a copy for a run that trains at this size.
    """

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


@dataclass(frozen=True)
class AugmentSequence:
    """Several augmentations, one after the other; ``augment=[...]`` makes one.

    If one of them works on pixel values, all do; the border that :class:`CropFlip` adds is then black.

    Args:
        augments: in the order in which they are applied.

    Example:
        >>> both = AugmentSequence([hp.RandomResizedCrop(size=8), hp.RandomErasing()])
        >>> draws = both.draw(np.random.default_rng(0), 2)
        >>> both.apply(torch.zeros(2, 3, 10, 10, dtype=torch.uint8), draws).shape
        torch.Size([2, 3, 8, 8])
    """

    augments: Sequence[Augment]

    def __post_init__(self) -> None:
        if not isinstance(self.augments, (list, tuple)):
            raise InputError(f"AugmentSequence({self.augments!r}): expected a list of augmentations")
        found = tuple(as_augment(augment) for augment in self.augments)
        for augment in found:
            if augment is None or isinstance(augment, CallableAugment):
                what = "None" if augment is None else f"the function {augment.function!r}"
                raise InputError(
                    f"augment: {what} in a list of augmentations: a list holds heptane's own, such as hp.CropFlip(); pass "
                    "functions as one function, such as torchvision's Compose"
                )
        object.__setattr__(self, "augments", found)

    @property
    def on_pixels(self) -> bool:
        """Whether one of them works on pixel values."""
        return any(getattr(augment, "on_pixels", False) for augment in self.augments)

    @property
    def room(self) -> float:
        """The largest ``room`` of them."""
        return max((getattr(augment, "room", 1.0) for augment in self.augments), default=1.0)

    def for_size(self, height: int, width: int) -> AugmentSequence:
        """A copy for a run that trains at this size."""
        sized = (a.for_size(height, width) if hasattr(a, "for_size") else a for a in self.augments)
        return AugmentSequence(tuple(sized))

    @cached_property
    def _layout(self) -> list[tuple[list[int], torch.dtype]]:
        """Shape and dtype of a sample's draws, of each augmentation."""
        drawn = [augment.draw(np.random.default_rng(0), 1) for augment in self.augments]
        return [(list(draws.shape[1:]), draws.dtype) for draws in drawn]

    def draw(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        """(N, ...) float64: the draws of each, side by side."""
        drawn = [torch.empty(batch_size, 0, dtype=torch.float64)]
        for augment, (shape, _) in zip(self.augments, self._layout, strict=True):
            drawn.append(augment.draw(rng, batch_size).double().reshape(batch_size, math.prod(shape)))
        return torch.cat(drawn, 1)

    def apply(self, inputs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Apply each in turn."""
        start = 0
        for augment, (shape, dtype) in zip(self.augments, self._layout, strict=True):
            stop = start + math.prod(shape)
            inputs = augment.apply(inputs, draws[:, start:stop].to(dtype).reshape(len(draws), *shape))
            start = stop
        return inputs


def as_augment(augment: Any) -> Augment | CallableAugment | None:
    """Convert the argument ``augment=`` to an augmentation or None; a list becomes an :class:`AugmentSequence`.

    Raises:
        InputError: it is neither an augmentation, nor a list of them, nor a function.
    """
    if isinstance(augment, (list, tuple)):
        return AugmentSequence(augment)
    if isinstance(augment, type):
        raise InputError(f"augment={augment!r} is a class: pass an object, such as hp.CropFlip()")
    if augment is None or (hasattr(augment, "draw") and hasattr(augment, "apply")):
        return augment  # type: ignore[no-any-return]
    if not callable(augment):
        raise InputError(
            f"augment={augment!r}: expected hp.CropFlip() or a function from a batch of inputs to a batch, or a list of "
            "augmentations"
        )
    return augment if isinstance(augment, CallableAugment) else CallableAugment(augment)
