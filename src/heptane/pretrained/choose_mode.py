"""Choose how much of a pretrained model to train, by the labels per class and by how well its features separate the classes.

The features are the head's inputs for some 512 training samples. A ridge classifier is fitted to one half of them and
evaluated on the other; its gain is (accuracy - chance) / (1 - chance), with chance the share of the most frequent class.
"""

from __future__ import annotations

from typing import Any

import torch

from heptane.base.tree import first_tensor
from heptane.data.batches import BatchTransform, Source, TensorSource, epoch_order
from heptane.model.probe import probe_output
from heptane.pretrained.anatomy import Anatomy

SAMPLES, RIDGE = 512, 0.1
USELESS, ENOUGH = 0.1, 0.95  # gain below which all features need training, and from which none do
FEW, MANY = 10, 1000  # labels per class below which only the head trains, and from which everything trains at once


def choose_mode(model: torch.nn.Module, groups: Anatomy, source: Source, place: BatchTransform) -> tuple[str, str]:
    """The mode ("head", "gradual" or "full") and the reason, with the measurements.

    Args:
        model: with its pretrained weights, on the device; it is left unchanged.
        groups: its layer groups.
        source: the training data.
        place: moves samples to the device.
    """
    drawn = source.sample_batches(SAMPLES)
    if not all(isinstance(y, torch.Tensor) and y.dtype == torch.long and y.ndim == 1 for _, y in drawn):
        return "full", "full: nothing was measured, since the training samples do not have one class each"
    targets = torch.cat([y.cpu() for _, y in drawn])
    num_classes = len(torch.unique(targets[targets >= 0]))
    if num_classes < 2:
        return "full", f"full: nothing was measured, since {len(targets)} training samples have fewer than two classes"
    if isinstance(source, TensorSource):
        per_class = len(source.targets[source.targets >= 0]) / len(torch.unique(source.targets[source.targets >= 0]))
        labels = f"{per_class:.4g} labels per class"
    else:
        per_class = source.num_samples * float((targets >= 0).double().mean()) / num_classes
        labels = f"about {per_class:.4g} labels per class"
    gain, measured = _gain(model, groups, [x for x, _ in drawn], targets, source.seed, place)
    if gain is not None and gain < USELESS:
        return "full", f"full: the features need training ({measured}, {labels})"
    if gain is not None and gain >= ENOUGH:
        return "head", f"head: the features suffice without training ({measured}, {labels})"
    if per_class < FEW:
        return "head", f"head: {labels}, below {FEW} ({measured})"
    if per_class >= MANY:
        return "full", f"full: {labels}, at least {MANY} ({measured})"
    return "gradual", f"gradual: {labels}, between {FEW} and {MANY} ({measured})"


def _gain(
    model: torch.nn.Module, groups: Anatomy, inputs: list[Any], targets: torch.Tensor, seed: int, place: BatchTransform
) -> tuple[float | None, str]:
    features = [found for part in inputs if (found := _features(model, groups.head, part, place)) is not None]
    chosen = epoch_order(len(targets), seed, 1)  # a loader may return them class by class
    chosen = chosen[targets[chosen] >= 0]
    half = len(chosen) // 2
    if half < 2 or len(features) < len(inputs):
        return None, "the features could not be measured"
    targets = targets[chosen]
    accuracy = ridge_accuracy(torch.cat(features)[chosen], targets, half)
    chance = float(targets[half:].bincount().max()) / (len(targets) - half)
    gain = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    return gain, f"a ridge classifier on features of {half} samples reaches {accuracy:.1%} on others, chance is {chance:.1%}"


def _features(model: torch.nn.Module, head: str | None, inputs: Any, place: BatchTransform) -> torch.Tensor | None:
    """The head's inputs, one row per sample; None if there is no head or it is not called exactly once with such rows."""
    if head is None:
        return None
    taken: list[torch.Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    try:
        probe_output(model, place.inputs(inputs))
    finally:
        hook.remove()
    once = len(taken) == 1 and len(taken[0]) == len(first_tensor(inputs))
    return taken[0].flatten(1).double().cpu() if once else None


def ridge_accuracy(features: torch.Tensor, targets: torch.Tensor, half: int) -> float:
    """Accuracy of a ridge classifier that is fitted to the first ``half`` samples, on the others.

    Equation
        scores = k(x, X) (K + r I)^-1 Y, with k(x, y) = x.y / d of standardized features, Y one-hot minus its mean, r = 0.1.
    """
    mean, spread = features[:half].mean(0), features[:half].std(0)
    scaled = (features - mean) / (spread + 1e-6 * spread.max() + 1e-12)
    fitted, others = scaled[:half], scaled[half:]
    classes = torch.nn.functional.one_hot(targets, int(targets.max()) + 1).double()[:half]
    kernel = fitted @ fitted.T / features.shape[1] + RIDGE * torch.eye(half, dtype=torch.float64)
    weights = torch.linalg.solve(kernel, classes - classes.mean(0))
    scores = others @ fitted.T / features.shape[1] @ weights + classes.mean(0)
    return float((scores.argmax(1) == targets[half:]).double().mean())
