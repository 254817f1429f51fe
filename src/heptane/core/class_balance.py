"""Balanced sampling and class weights of a run, where its data and loss allow them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from heptane.base.errors import InputError
from heptane.core.losses import Criterion, CrossEntropy
from heptane.data.balance import class_labels, class_weights
from heptane.data.batches import Source, TensorSource


def balance(source: Source, sampling: str, weights: Any) -> None:
    """Check that the training data allow these options, and set the sampling.

    Raises:
        InputError: they are not in memory, or have no class per sample.
    """
    if sampling == "shuffle" and weights is None:
        return
    option = "class_weights" if sampling == "shuffle" else f"sampling={sampling!r}"
    if not isinstance(source, TensorSource):
        raise InputError(
            f"{option} needs the training data in memory, but they come from a Dataset or DataLoader: give that a "
            "torch.utils.data.WeightedRandomSampler, or pass loss=torch.nn.CrossEntropyLoss(weight=...)"
        )
    class_labels(option, source.targets)
    source.sampling = sampling


def weight_classes(criterion: Criterion, weights: Any, source: Source, num_classes: int | None) -> tuple[Criterion, str]:
    """The cross-entropy with class weights, and a note.

    Args:
        criterion: without weights.
        weights: "balanced", or numbers.
        source: that :func:`balance` has checked.
        num_classes: that the model tells apart; None if it does not.

    Raises:
        InputError: the loss is another, or has weights.
    """
    if not isinstance(criterion, CrossEntropy) or num_classes is None:
        raise InputError(f"class_weights with loss {criterion.name}: expected cross_entropy; leave class_weights out")
    if criterion.weight is not None:
        raise InputError("class_weights, and the loss has weights of its own: leave one of the two out")
    assert isinstance(source, TensorSource)
    found = class_weights(weights, class_labels("class_weights", source.targets), num_classes)
    low, high = float(found.min()), float(found.max())
    note = f"classes weigh {low:.3g} to {high:.3g} in the loss, 1 in the mean over the training samples"
    return replace(criterion, weight=found, all_count=False), note
