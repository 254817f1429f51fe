"""Random augmentation of batches: the random numbers are a function of (seed, step), whatever the number of workers."""

from heptane.data.augment.affine import CropFlip, Warp
from heptane.data.augment.color import ColorJitter
from heptane.data.augment.erasing import RandomErasing
from heptane.data.augment.named import AUGMENTS, NAMED, named_augment
from heptane.data.augment.protocol import Augment, AugmentSequence, CallableAugment, as_augment
from heptane.data.augment.resized_crop import RandomResizedCrop
from heptane.data.augment.trivial import TrivialAugment

__all__ = [
    "AUGMENTS",
    "NAMED",
    "Augment",
    "AugmentSequence",
    "CallableAugment",
    "ColorJitter",
    "CropFlip",
    "RandomErasing",
    "RandomResizedCrop",
    "TrivialAugment",
    "Warp",
    "as_augment",
    "named_augment",
]
