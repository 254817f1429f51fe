"""Losses that heptane does not compute itself: custom functions and modules, and the loss that a model computes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, select_rows, tree_copy, tree_map
from heptane.core.cross_entropy import IGNORE_INDEX
from heptane.core.losses import Criterion, CrossEntropy, Loss, same_up_to_ones
from heptane.core.targets import MixedTargets, blend
from heptane.model.forward import main_output
from heptane.model.outputs import find_tensors

FEW_COMPARED = 4  # samples whose single losses are compared with that of all of them
PROBED = 5  # samples on which a custom loss is tried: a mean over 5 x 5 differs from one over 5


class _NotOurs:
    """What the losses here have in common: they are means, and accuracy is computed where there are scores of classes."""

    _scores: Callable[..., torch.Tensor | None]

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        scores = self._scores(output, targets)
        return None if scores is None else CrossEntropy().correct(scores, targets)

    def by_class(self, output: Any, targets: Any) -> torch.Tensor | None:
        scores = self._scores(output, targets)
        return None if scores is None else CrossEntropy().by_class(scores, targets)


@dataclass(frozen=True)
class CustomLoss(_NotOurs):
    """A custom loss: ``function(output, targets)`` -> the mean over the samples, or one loss per sample."""

    function: Loss
    name: str = "own"
    first: bool = False  # of an output of several parts it receives the main one, such as the first of a tuple
    aligned: bool = False  # outputs are reshaped to the targets' shape, as (N, 1) to (N,)
    shape: tuple[int, ...] | None = None  # of a sample's target; targets that differ by dimensions of 1 are reshaped to it

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        if not isinstance(targets, MixedTargets):
            return self._mean(output, targets)
        if targets.first.is_floating_point():
            return self._mean(output, blend(targets.first, targets.second, targets.lam))
        if bool((targets.lam != targets.lam[:1]).any()):
            raise InputError("Mixup.per_sample=True does not support a custom loss with integer targets: set it to False")
        return blend(self._mean(output, targets.first), self._mean(output, targets.second), targets.lam[0])

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        return self.mean(output, targets) * self.count(targets)

    plain = total

    def count(self, targets: Any) -> float:
        first = targets.first if isinstance(targets, MixedTargets) else targets
        while not isinstance(first, torch.Tensor):
            first = next(iter(first.values())) if isinstance(first, dict) else first[0]
        return float(len(first))

    def _scores(self, output: Any, targets: Any) -> torch.Tensor | None:
        first, output = targets.first if isinstance(targets, MixedTargets) else targets, main_output(output)[0]
        if not isinstance(first, torch.Tensor) or first.is_floating_point() or not isinstance(output, torch.Tensor):
            return None
        return output if output.shape[:1] == first.shape == output.shape[:-1] and output.shape[-1] > 1 else None

    def _mean(self, output: Any, targets: Any) -> torch.Tensor:
        if self.shape is not None and isinstance(targets, torch.Tensor) and same_up_to_ones(targets.shape[1:], self.shape):
            targets = targets.reshape(len(targets), *self.shape)
        targets = tree_map(torch.clone, targets)  # a loss may modify them in place, and metrics are computed afterwards
        output = output.reshape(targets.shape) if self.aligned else output
        loss: torch.Tensor = self.function(output, targets)
        return loss.mean() if loss.ndim else loss


@dataclass(frozen=True)
class ModelLoss(_NotOurs):
    """The loss that a model returns when it receives labels, as transformers models do: a mean over labels that are not
    ignored.

    It is the output itself, or its entry ``loss``.
    """

    name: str = "model"
    counts: str = "labels"
    """What the mean is over: "labels", all that are not ignored; "shifted", these without the first of each row, as in a
    causal language model; or "unknown"."""

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, torch.Tensor) or loss.ndim > 1:
            kind = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(output).__name__}"
            raise InputError(f"loss='model': the model returned an output of {kind} without a loss; pass a loss instead")
        return loss.mean()

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        mean, count = self.mean(output, targets), self.count(targets)
        if isinstance(count, torch.Tensor):  # a part without labels has a mean of NaN and weight 0
            mean = torch.where(count > 0, mean, mean.nan_to_num())
        return mean * count

    plain = total

    def count(self, targets: Any) -> float | torch.Tensor:
        if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or self.counts == "unknown":
            return float(len(targets))
        return ((targets[..., 1:] if self.counts == "shifted" else targets) != IGNORE_INDEX).sum()

    def _scores(self, output: Any, targets: Any) -> torch.Tensor | None:
        logits = output.get("logits") if isinstance(output, Mapping) else None
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or targets.shape != logits.shape[:1]:
            return None
        return None if targets.is_floating_point() else logits


def infer_loss_count(criterion: Criterion, output: Any, labels: Any) -> Criterion:
    """Infer what the model's own loss is a mean over; other criteria are returned unchanged.

    The loss of a few samples is compared with the cross-entropy of their logits, with and without a shift by one position.
    """
    if not isinstance(criterion, ModelLoss) or not isinstance(labels, torch.Tensor) or labels.ndim < 2:
        return criterion
    logits = output.get("logits") if isinstance(output, Mapping) else None
    found = "unknown"
    if isinstance(logits, torch.Tensor) and not labels.is_floating_point() and logits.shape[:-1] == labels.shape:
        loss = criterion.mean(output, labels).float()
        for kind, (scores, truth) in {
            "labels": (logits, labels),
            "shifted": (logits[..., :-1, :], labels[..., 1:]),
        }.items():
            expected = torch.nn.functional.cross_entropy(
                scores.float().flatten(0, -2), truth.flatten(), ignore_index=IGNORE_INDEX
            )
            if torch.allclose(loss, expected, rtol=1e-3, atol=1e-5):
                found = kind
    return replace(criterion, counts=found)


def choose_loss_input(criterion: CustomLoss, training: Any, evaluation: Any, targets: Any) -> CustomLoss:
    """Let ``criterion`` receive the model's whole output if it takes it, else only the main output if it takes that.

    Args:
        training, evaluation: the model's output for a few samples in train and in eval mode.
        targets: theirs, or those of more samples.

    Raises:
        InputError: the loss takes the output of one mode but not of the other.
    """
    size = len(first_tensor(main_output(evaluation)[0]))
    few = tree_map(lambda t: t[:size] if t.ndim else t, targets)
    tried = _for_trial(CustomLoss(criterion.function))
    wrong = [_tried(tried, answer, few) for answer in (training, evaluation)]
    if not any(isinstance(value, Exception) for value in wrong):
        return criterion
    parts = [_tried(tried, main_output(answer)[0], few) for answer in (training, evaluation)]
    if not any(isinstance(value, Exception) for value in parts):
        return replace(criterion, first=True)
    mode, error = next((n, v) for n, v in zip(("training", "evaluation"), wrong, strict=True) if isinstance(v, Exception))
    if all(isinstance(value, Exception) for value in wrong):
        return criterion  # the function's own error is the best message
    raise InputError(
        f"the model returns {type(training).__name__} in training and {type(evaluation).__name__} in evaluation, and the "
        f"loss fails on that of {mode} ({one_line(error)}): let it accept both, or leave loss out to use the first part"
    )


def align_outputs(criterion: CustomLoss, output: torch.Tensor, targets: torch.Tensor) -> tuple[CustomLoss, str]:
    """Reshape outputs to the targets' shape if they differ by dimensions of 1 and the loss depends on it, as (N, 1) and
    (N,).

    A function that subtracts such shapes would broadcast to (N, N). It is tried on random numbers of both shapes.

    Raises:
        InputError: the loss accepts neither shape.
    """
    shape = (PROBED, *targets.shape[1:])
    if targets.shape[1:] == output.shape[1:] or not same_up_to_ones(output.shape[1:], targets.shape[1:]):
        return criterion, ""
    random = torch.Generator().manual_seed(0)
    outputs = torch.rand((PROBED, *output.shape[1:]), generator=random).to(output)
    wanted = torch.rand(shape, generator=random) * (1 if targets.is_floating_point() else 2)
    wanted = wanted.to(targets)
    tried = _for_trial(criterion)
    as_given, alike = (_tried(tried, one, wanted) for one in (outputs, outputs.reshape(shape)))
    if isinstance(alike, Exception):
        if not isinstance(as_given, Exception):
            return criterion, ""
        raise InputError(
            f"outputs of shape {tuple(output.shape[1:])} and targets of shape {tuple(targets.shape[1:])} per sample: "
            f"the loss fails on them ({one_line(alike)}); give both the same shape"
        )
    if as_given == alike or (isinstance(as_given, float) and math.isclose(as_given, alike, rel_tol=1e-5)):
        return criterion, ""
    note = f"; outputs {_per_sample(output)} are reshaped to the targets' {_per_sample(targets)}"
    return replace(criterion, aligned=True), note


def _per_sample(tensor: torch.Tensor) -> str:
    return str(("N", *tensor.shape[1:])).replace("'", "")


def align_targets(criterion: CustomLoss, output: Any, targets: torch.Tensor) -> tuple[CustomLoss, str]:
    """Reshape targets between (N,) and (N, 1) if the loss would otherwise compare each sample with all targets.

    Part of the output may be (N, 1), so that subtracting targets of shape (N,) broadcasts to (N, N).
    """
    if criterion.aligned or not targets.is_floating_point() or targets.shape[1:].numel() != 1:
        return criterion, ""
    other = replace(criterion, shape=() if criterion.shape else (1,))
    tried = _for_trial(criterion)
    apart, alike = (_mixes_samples(replace(tried, shape=one.shape), output, targets) for one in (criterion, other))
    if not apart or alike is not False:
        return criterion, ""
    return (
        other,
        f"; targets are reshaped to {'(N, 1)' if other.shape else '(N,)'}, so that samples are not mixed",
    )


def _mixes_samples(criterion: CustomLoss, output: Any, targets: torch.Tensor) -> bool | None:
    """Whether the loss of a few samples differs from the mean of their single losses; None if that cannot be computed."""
    tensors = [tensor for tensor in find_tensors(output) if tensor.ndim]
    size = min(len(tensors[0]), FEW_COMPARED) if tensors else 0
    if size < 2:
        return None
    parts = [slice(size), *(slice(at, at + 1) for at in range(size))]
    values = [_tried(criterion, select_rows(tree_copy(output), part), targets[part]) for part in parts]
    whole, *single = (value for value in values if not isinstance(value, Exception))
    mean = sum(single) / size
    if len(single) < size or mean != mean:  # such as a loss that needs several samples
        return None
    return abs(whole - mean) > 1e-4 * max(abs(whole), abs(mean), 1e-12)


def _for_trial(criterion: CustomLoss) -> CustomLoss:
    """``criterion`` with a copy of a loss that is a module, so that trying it leaves the user's buffers unchanged."""
    given = criterion.function
    return replace(criterion, function=copy.deepcopy(given)) if isinstance(given, torch.nn.Module) else criterion


def _tried(criterion: CustomLoss, output: Any, targets: Any) -> float | Exception:
    """The loss of some samples, or the error that it raises; without warnings, and random states are restored."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(criterion.mean(output, targets))
    except Exception as error:
        return error
