"""Balance classes of unequal size: by drawing rare ones more often, or by weights in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch
from heptane.base.randomness import generator

SAMPLINGS = ("shuffle", "balanced")


def class_labels(option: str, targets: Any) -> torch.Tensor:
    """The class of each sample, int64 (N,).

    Args:
        option: that needs them, for the message.
        targets: of the training data.

    Raises:
        InputError: the targets are not one class per sample.
    """
    if isinstance(targets, torch.Tensor) and not targets.is_floating_point() and not targets.is_complex():
        targets = targets.flatten() if targets.shape[1:].numel() == 1 else targets
        if targets.ndim == 1:
            labels: torch.Tensor = targets.long()
            return labels
    found = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, torch.Tensor) else type(targets).__name__
    raise InputError(
        f"{option} needs one class per sample, integer targets of shape (N,), but the targets are {found}: leave it out"
    )


def balanced_order(labels: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw as many samples as there are, with replacement, each class with the same probability.

    Args:
        labels: the class of each sample, int64 (N,); samples with a negative one are never drawn.
        seed, epoch: the draws are a function of both.

    Example:
        >>> labels = torch.tensor([0] * 98 + [1] * 2)
        >>> labels[balanced_order(labels, seed=0, epoch=0)].bincount()
        tensor([59, 41])
    """
    rows = (labels >= 0).nonzero()[:, 0]
    rows = rows[torch.argsort(labels[rows], stable=True)].cpu()  # class by class
    counts = torch.unique(labels[labels >= 0], return_counts=True)[1].cpu()
    rng = generator(seed, "balanced", epoch)
    drawn = torch.from_numpy(rng.integers(0, len(counts), len(labels)))
    within = (torch.from_numpy(rng.random(len(labels))) * counts[drawn]).long()
    return rows[(counts.cumsum(0) - counts)[drawn] + within]


def check_class_weights(name: str, value: Any) -> None:
    """Raise :class:`InputError` unless ``value`` is "balanced", or a number of at least 0 for each class."""
    if isinstance(value, str) and "," not in value:
        check_choice(name, value, ["balanced", "numbers joined by commas"])
    elif value != "balanced":
        weights = _numbers(name, value)
        if not any(weights):
            raise InputError(f"{name}={value!r}: expected a weight above 0")


def class_weights(value: Any, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Weights of the classes, float32 (K,), whose mean over the training samples is 1.

    Args:
        value: "balanced": each class weighs the same in all; or a weight per class.
        labels: the class of each training sample.
        num_classes: K; a class without samples has weight 1 if ``value`` is "balanced".

    Example:
        >>> class_weights("balanced", torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels[labels >= 0].cpu(), minlength=num_classes).double()
    if value == "balanced":
        there = counts > 0
        return torch.where(there, counts.sum() / (there.sum() * counts.clamp(min=1)), 1.0).float()
    weights = torch.tensor(_numbers("class_weights", value), dtype=torch.float64)
    if len(weights) != num_classes:
        raise InputError(f"class_weights has {len(weights)} numbers: expected one for each of the {num_classes} classes")
    mean = float((weights * counts).sum() / counts.sum())
    if mean == 0:
        raise InputError(f"class_weights={value!r}: no class with a weight above 0 has training samples")
    return (weights / mean).float()


def _numbers(name: str, value: str | Sequence[float]) -> list[float]:
    try:
        found = [float(number) for number in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        raise InputError(f"{name}={value!r}: expected 'balanced' or a number for each class") from None
    for number in found:
        check_range(name, number, 0)
    return found
