"""Losses that heptane computes itself, each in several forms.

``mean`` is what a hand-written loop calls on a whole batch. ``total`` is the sum over part of the batch (a worker's share, a
micro-batch), to be divided by ``count`` of the *global* batch, so that unequal parts are weighted correctly. ``plain`` is
the total without label smoothing, for reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.core.cross_entropy import (
    IGNORE_INDEX,
    check_weight,
    find_class_dim,
    smooth_binary,
    smooth_ctc_loss,
    smooth_distribution,
    soft_cross_entropy,
    valid_soft_targets,
    zero_if_empty,
)
from heptane.core.targets import MixedTargets, blend

Loss = Callable[..., Any]


MAX_CLASSES = 1000  # accuracy per class is not computed beyond this, as for a vocabulary


class Criterion(Protocol):
    """What the loop needs of a loss. Targets are those of the data, or :class:`MixedTargets`."""

    @property
    def name(self) -> str: ...

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        """The loss of a whole batch, a scalar."""

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        """The sum over the batch: ``mean`` times ``count``."""

    def count(self, targets: Any) -> float | torch.Tensor:
        """The divisor of the mean: the number of valid targets, or the sum of their class weights."""

    def plain(self, output: Any, targets: Any) -> torch.Tensor:
        """``total`` without label smoothing."""

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, float | torch.Tensor] | None:
        """Number of correct predictions and of predictions; None if undefined. Non-finite outputs count as wrong."""

    def by_class(self, output: Any, targets: Any) -> torch.Tensor | None:
        """Correct predictions and samples of each class, (2, K); None if there are no classes."""


def count_by_class(right: torch.Tensor, valid: torch.Tensor, truth: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Correct predictions and samples of each class, (2, K) in float64; invalid positions are not counted."""
    truth = truth.long().where(valid, 0).flatten()
    parts = [part.flatten().double() for part in (right & valid, valid)]
    return torch.stack([torch.bincount(truth, part, num_classes)[:num_classes] for part in parts])


def safe_divisor(count: float | torch.Tensor) -> float | torch.Tensor:
    """``count``, or the smallest positive number if it is 0: the mean over nothing is then 0, not NaN."""
    tiny = torch.finfo(torch.float32).tiny
    return count.clamp(min=tiny) if isinstance(count, torch.Tensor) else max(count, tiny)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with integer (N,), (N, T) or soft targets, class weights, ignored positions and label smoothing.

    Ignored positions have weight 0, also under mixup (:func:`heptane.soft_cross_entropy`); the mean over nothing is 0, not
    NaN.
    """

    eps: float = 0.0
    weight: torch.Tensor | None = None
    ignore_index: int = IGNORE_INDEX
    class_dim: int | None = None
    log_probs: bool = False  # the outputs are log-probabilities, as for torch.nn.NLLLoss
    all_count: bool = False  # logits, no weights, nothing ignored: PyTorch's own mean, without a guard against 0 / 0
    column: bool = False  # integer targets have shape (N, 1)
    name: str = "cross_entropy"

    def __post_init__(self) -> None:
        check_range("CrossEntropy.eps", self.eps, 0, 1)

    def seen(self, targets: Any) -> Any:
        """Targets in the form that PyTorch's functions take: integers as int64, a column (N, 1) as (N,)."""
        if isinstance(targets, MixedTargets):
            return MixedTargets(self.seen(targets.first), self.seen(targets.second), targets.lam)
        if targets.is_floating_point():
            return targets
        return (targets.squeeze(1) if self.column else targets).long()

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        if isinstance(targets, MixedTargets):
            return self.total(output, targets) / safe_divisor(self.count(targets))
        targets = self.seen(targets)
        if self.all_count and output.ndim == 2:
            return torch.nn.functional.cross_entropy(output, targets, label_smoothing=self.eps)
        return self._loss(output, targets, self.eps, "mean")

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._total(output, self.seen(targets), self.eps)

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._total(output, self.seen(targets), 0.0)

    def count(self, targets: Any) -> torch.Tensor:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets):
            return blend(self._masses(targets.first), self._masses(targets.second), targets.lam).sum()
        return self._masses(targets).sum()

    def correct(self, output: torch.Tensor, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets):
            pairs = zip(self._hits(output, targets.first), self._hits(output, targets.second), strict=True)
            right, valid = (blend(first.float(), second.float(), targets.lam) for first, second in pairs)
        else:
            right, valid = self._hits(output, targets)
        return right.sum(), valid.sum()

    def by_class(self, output: torch.Tensor, targets: Any) -> torch.Tensor | None:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets) or targets.is_floating_point():
            return None
        num_classes = output.shape[self._dim(output, targets)]
        return count_by_class(*self._hits(output, targets), targets, num_classes) if num_classes <= MAX_CLASSES else None

    def _loss(self, output: torch.Tensor, targets: torch.Tensor, eps: float, reduction: str) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.to(output)
        kind: dict[str, Any] = {"ignore_index": self.ignore_index, "reduction": reduction}
        if not self.log_probs or eps or targets.is_floating_point():
            return soft_cross_entropy(output, targets, eps=eps, weight=weight, class_dim=self.class_dim, **kind)
        loss = torch.nn.functional.nll_loss(output.movedim(self._dim(output, targets), 1), targets, weight, **kind)
        return zero_if_empty(loss, targets, weight, self.ignore_index) if reduction == "mean" else loss

    def _total(self, output: torch.Tensor, targets: Any, eps: float) -> torch.Tensor:
        if not isinstance(targets, MixedTargets):
            return self._loss(output, targets, eps, "sum")
        log_p = output.movedim(self._dim(output, targets.first), -1).log_softmax(-1)
        check_weight(self.weight, log_p.shape[-1])
        first, share_of_first = self._distributions(targets.first, log_p)
        second, share_of_second = self._distributions(targets.second, log_p)
        q = smooth_distribution(blend(first, second, targets.lam), blend(share_of_first, share_of_second, targets.lam), eps)
        return -(q * log_p if self.weight is None else q * log_p * self.weight.to(log_p)).sum()

    def _distributions(self, targets: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets as distributions like ``log_p`` (..., C), zero where ignored; and the weight of each position, 1 or 0."""
        valid = self._valid(targets)
        if targets.is_floating_point():
            rows = targets.movedim(self._dim(targets, targets), -1)
        else:
            rows = torch.nn.functional.one_hot(targets.long().where(valid, 0), log_p.shape[-1])
        return rows.where(valid[..., None], 0).to(log_p), valid.to(log_p)

    def _dim(self, output: torch.Tensor, targets: torch.Tensor) -> int:
        return find_class_dim(output.shape, targets.shape, targets.is_floating_point(), self.class_dim)

    def _valid(self, targets: torch.Tensor) -> torch.Tensor:
        if targets.is_floating_point():
            return valid_soft_targets(targets, self.ignore_index, self._dim(targets, targets))
        return targets != self.ignore_index

    def _masses(self, targets: torch.Tensor) -> torch.Tensor:
        valid = self._valid(targets)
        if self.weight is None or targets.is_floating_point():
            return valid.float()
        return self.weight.to(targets.device)[targets.long().where(valid, 0)] * valid

    def _hits(self, output: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dim, valid = self._dim(output, targets), self._valid(targets)
        truth = targets.argmax(dim) if targets.is_floating_point() else targets
        # A row counts as wrong if its maximum is NaN or infinite; a single -inf only rules out that class.
        return (output.argmax(dim) == truth) & valid & output.amax(dim).isfinite(), valid


def can_smooth(criterion: Criterion) -> bool:
    """Whether label smoothing applies: targets are classes or labels, and heptane computes the loss."""
    return isinstance(criterion, (CrossEntropy, Ctc)) or (isinstance(criterion, Elementwise) and criterion.multi_label)


class _Reduced:
    """The forms of a loss that is one function of (output, targets, eps, reduction)."""

    eps: float
    _loss: Callable[..., torch.Tensor]

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, self.eps, "mean")

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, self.eps, "sum")

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, 0.0, "sum")


@dataclass(frozen=True)
class Elementwise(_Reduced):
    """A mean over elements, for multi-label and regression losses; the function takes ``reduction=``. Outputs and targets
    have the same shape up to dimensions of 1."""

    name: str
    function: Loss
    eps: float = 0.0
    multi_label: bool = False
    pos_weight: torch.Tensor | None = None

    def count(self, targets: Any) -> float:
        return float((targets.first if isinstance(targets, MixedTargets) else targets).numel())

    def correct(self, output: torch.Tensor, targets: Any) -> tuple[torch.Tensor, float] | None:
        if not self.multi_label:
            return None
        if not isinstance(targets, MixedTargets):
            return self._hits(output, targets).sum(), self.count(targets)
        first, second = (self._hits(output, part).float() for part in (targets.first, targets.second))
        return blend(first, second, targets.lam).sum(), self.count(targets)

    def _loss(self, output: torch.Tensor, targets: Any, eps: float, reduction: str) -> torch.Tensor:
        kind = {} if self.pos_weight is None else {"pos_weight": self.pos_weight.to(output)}
        loss: torch.Tensor = self.function(*self._aligned(output, targets, eps), reduction=reduction, **kind)
        return loss

    def _hits(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        output, truth = self._aligned(output, targets, 0.0)
        return ((output > 0) == (truth > 0.5)) & output.isfinite()

    def by_class(self, output: torch.Tensor, targets: Any) -> torch.Tensor | None:
        """With one logit per sample: the negative and the positive class."""
        if not self.multi_label or isinstance(targets, MixedTargets) or targets.shape[1:].numel() != 1:
            return None
        right, truth = self._hits(output, targets), targets > 0.5
        return count_by_class(right, torch.ones_like(right), truth, 2)

    def _aligned(self, output: torch.Tensor, targets: Any, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(targets, MixedTargets):
            targets = blend(targets.first.to(output), targets.second.to(output), targets.lam)
        if output.shape != targets.shape:
            if not same_up_to_ones(output.shape, targets.shape):
                raise InputError(
                    f"outputs of shape {tuple(output.shape)} and targets of shape {tuple(targets.shape)}: "
                    f"{self.name} compares elements, so the model needs as many outputs as there are targets"
                )
            output = output.reshape(targets.shape)
        return output, smooth_binary(targets.to(output), eps) if eps else targets.to(output)


@dataclass(frozen=True)
class Ctc(_Reduced):
    """CTC: outputs are log-probabilities (T, N, C); targets are (labels (N, S), input lengths (N,), target lengths (N,))."""

    eps: float = 0.0
    blank: int = 0
    zero_infinity: bool = False
    name: str = "ctc"

    def count(self, targets: Any) -> float:
        return float(len(targets[1]))

    def correct(self, output: torch.Tensor, targets: Any) -> None:
        return None

    def by_class(self, output: Any, targets: Any) -> None:
        return None

    def _loss(self, output: torch.Tensor, targets: Any, eps: float, reduction: str) -> torch.Tensor:
        return smooth_ctc_loss(
            output, *targets, eps=eps, blank=self.blank, zero_infinity=self.zero_infinity, reduction=reduction
        )


def same_up_to_ones(first: Iterable[int], second: Iterable[int]) -> bool:
    """Whether two shapes differ by dimensions of 1 only."""
    return [size for size in first if size != 1] == [size for size in second if size != 1]
