"""The augmentations that ``--augment`` knows by name."""

from __future__ import annotations

from heptane.base.errors import check_choice
from heptane.data.augment.affine import CropFlip, Warp
from heptane.data.augment.color import ColorJitter
from heptane.data.augment.protocol import Augment, AugmentSequence
from heptane.data.augment.resized_crop import RandomResizedCrop
from heptane.data.augment.trivial import TrivialAugment

NAMED: dict[str, Augment | None] = {
    "none": None,
    "flip": CropFlip(padding=0),
    "crop-flip": CropFlip(),
    "warp": Warp(),
    "warp-flip": Warp(flip=True),
    "crop": RandomResizedCrop(),
    "crop-color": AugmentSequence((RandomResizedCrop(), ColorJitter())),
    "trivial": AugmentSequence((RandomResizedCrop(), TrivialAugment())),
}
AUGMENTS = tuple(NAMED)


def named_augment(name: str) -> Augment | None:
    """The augmentation of this name, such as ``crop``; None for ``none``.

    Example:
        >>> named_augment("warp").flip
        False
    """
    check_choice("augment", name, AUGMENTS)
    return NAMED[name]
