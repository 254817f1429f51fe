"""A few hundred labelled pictures, as a folder of class folders: weights from ImageNet against a start from nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptane.base.lazy import np, torch
from heptane.base.randomness import generator
from heptane.data import Data

PARTS = {"train": 200, "valid": 100, "test": 500}
SCRATCH = "resnet"


@dataclass(frozen=True)
class Trained:
    """One of the two runs: the model's name, its test accuracy, its wall time, and its folder."""

    model: str
    test_accuracy: float
    seconds: float
    folder: Path


def write_pictures(data: Data, folder: Path, parts: dict[str, int] | None = None) -> dict[str, int]:
    """Write pictures of ``data`` as ``folder/PART/CLASS/NUMBER.png``, equally many of each class; how many of each part.

    Args:
        data: grey images with class names and a test part.
        folder: where to write; pictures that are there already stay.
        parts: how many pictures of each part to write, at most; None for ``PARTS``.
    """
    from PIL import Image

    written = {}
    for part, count in (parts or PARTS).items():
        images, labels = getattr(data, part)
        chosen = _balanced(labels, count)
        for index in chosen.tolist():
            name = re.sub(r"\W+", "-", data.class_names[int(labels[index])]).strip("-").lower()
            path = folder / part / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels(images[index], data)).save(path)
        written[part] = len(chosen)
    return written


def _balanced(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of equally many samples of each class, drawn by a fixed seed."""
    order = torch.from_numpy(generator(0, "demo", 0).permutation(len(labels)))
    num_classes = int(labels.max()) + 1
    each = count // num_classes
    return torch.cat([order[labels[order] == label][:each] for label in range(num_classes)])


def _pixels(image: torch.Tensor, data: Data) -> Any:
    """A normalised image (1, H, W) as the bytes it came from."""
    return np.rint((image[0].numpy() * data.std[0] + data.mean[0]) * 255).clip(0, 255).astype(np.uint8)


def read_trained(folder: Path) -> Trained | None:
    """What ``heptane train`` left in ``folder``; None where it did not finish."""
    try:
        record = json.loads((folder / "result.json").read_text())
        return Trained(str(record["model"]["name"]), record["metrics"]["test_accuracy"], record["seconds"]["wall"], folder)
    except (OSError, ValueError, KeyError):
        return None


def compared(pretrained: Trained, scratch: Trained, num_train: int) -> str:
    """The two runs in a sentence."""
    points = 100 * (pretrained.test_accuracy - scratch.test_accuracy)
    how = f"{points:.1f} points more than" if points >= 0 else f"{-points:.1f} points fewer than"
    return (
        f"With {num_train} labelled pictures, {pretrained.model} with ImageNet's weights reaches "
        f"{pretrained.test_accuracy:.1%} test accuracy in {pretrained.seconds:.0f} s: {how} the small ResNet from scratch "
        f"in about the same time ({scratch.test_accuracy:.1%} in {scratch.seconds:.0f} s). One run of each."
    )
