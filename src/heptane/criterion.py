"""The one owner of targets: blending by mixup, smoothing, weights, ignored positions, and what the mean is over.

A criterion has two forms of one loss. ``mean`` is what a hand-written loop calls on a whole batch. ``total`` is the sum
over a part of the batch (a worker's share, a micro-batch), to be divided by ``count`` of the *global* batch, so that
unequal parts weigh what they hold. ``plain`` is the loss without smoothing, for reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from heptane._lazy import torch
from heptane.errors import InputError, check_choice
from heptane.tricks.label_smoothing import (
    IGNORE_INDEX,
    LabelSmoothing,
    find_class_dim,
    smooth,
    smooth_binary,
    smooth_ctc_loss,
    soft_cross_entropy,
)
from heptane.tricks.mixup import MixedTargets, blend

Loss = Callable[..., Any]
LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "l1", "smooth_l1")


class Criterion(Protocol):
    """What the loop needs of a loss. ``targets`` are as the data gave them, or :class:`MixedTargets`."""

    @property
    def name(self) -> str: ...

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        """The loss of a whole batch, a scalar."""

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        """The sum of which ``mean`` is the ``count``-th part."""

    def count(self, targets: Any) -> float | torch.Tensor:
        """What the mean is over: valid targets, or the sum of their class weights."""

    def plain(self, output: Any, targets: Any) -> torch.Tensor:
        """The total without smoothing."""

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, float | torch.Tensor] | None:
        """How many predictions are right, out of how many; None where that has no meaning."""


@dataclass(frozen=True)
class CrossEntropy:
    """Classification with integer (N,), (N, T) or soft targets, class weights, ignored positions and smoothing."""

    eps: float = 0.0
    weight: torch.Tensor | None = None
    ignore_index: int = IGNORE_INDEX
    class_dim: int | None = None
    name: str = "cross_entropy"

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        if isinstance(targets, MixedTargets):
            return self.total(output, targets) / self.count(targets)
        return self._loss(output, targets, self.eps, "mean")

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._total(output, targets, self.eps)

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._total(output, targets, 0.0)

    def count(self, targets: Any) -> float | torch.Tensor:
        if isinstance(targets, MixedTargets):
            lam = targets.lam.to(targets.first.device).reshape(-1, *[1] * (targets.first.ndim - 1))
            if targets.first.is_floating_point():
                return float(self._positions(targets.first))
            return (lam * self._masses(targets.first) + (1 - lam) * self._masses(targets.second)).sum()
        if targets.is_floating_point():
            return float(self._positions(targets))
        return self._masses(targets).sum()

    def correct(self, output: torch.Tensor, targets: Any) -> tuple[torch.Tensor, float | torch.Tensor]:
        if isinstance(targets, MixedTargets):
            shape = (-1, *[1] * (targets.first.ndim - 1 - targets.first.is_floating_point()))
            lam = targets.lam.to(output.device).reshape(shape)
            right_first, valid_first = self._hits(output, targets.first)
            right_second, valid_second = self._hits(output, targets.second)
            right = (lam * right_first + (1 - lam) * right_second).sum()
            return right, (lam * valid_first + (1 - lam) * valid_second).sum()
        right, valid = self._hits(output, targets)
        return right.sum(), valid.sum()

    def _loss(self, output: torch.Tensor, targets: torch.Tensor, eps: float, reduction: str) -> torch.Tensor:
        return soft_cross_entropy(
            output,
            targets,
            eps=eps,
            weight=None if self.weight is None else self.weight.to(output),
            ignore_index=self.ignore_index,
            class_dim=self.class_dim,
            reduction=reduction,
        )

    def _total(self, output: torch.Tensor, targets: Any, eps: float) -> torch.Tensor:
        if not isinstance(targets, MixedTargets):
            return self._loss(output, targets, eps, "sum")
        first, second = targets.first, targets.second
        dim = find_class_dim(output.shape, first.shape, first.is_floating_point(), self.class_dim)
        log_p = output.movedim(dim, -1).log_softmax(-1)
        if first.is_floating_point():
            first, second = first.movedim(dim, -1), second.movedim(dim, -1)
        else:
            first, second = self._one_hot(first, log_p.shape[-1]), self._one_hot(second, log_p.shape[-1])
        q = smooth(blend(first.to(log_p), second.to(log_p), targets.lam), eps)
        return -(q * log_p if self.weight is None else q * log_p * self.weight.to(log_p)).sum()

    def _one_hot(self, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
        valid = targets != self.ignore_index
        rows = torch.nn.functional.one_hot(targets.where(valid, 0), num_classes)
        return rows * valid[..., None]

    def _masses(self, targets: torch.Tensor) -> torch.Tensor:
        valid = targets != self.ignore_index
        if self.weight is None:
            return valid.float()
        return self.weight.to(targets.device)[targets.where(valid, 0)] * valid

    def _positions(self, soft: torch.Tensor) -> int:
        return soft.numel() // soft.shape[1 if self.class_dim is None else self.class_dim]

    def _hits(self, output: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dim = find_class_dim(output.shape, targets.shape, targets.is_floating_point(), self.class_dim)
        predicted = output.argmax(dim)
        truth = targets.argmax(dim) if targets.is_floating_point() else targets
        return predicted == truth, truth != self.ignore_index


@dataclass(frozen=True)
class Elementwise:
    """A mean over elements, which takes ``reduction=``: multi-label and regression losses. Outputs match targets' shape."""

    name: str
    function: Loss
    eps: float = 0.0
    multi_label: bool = False

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = self.function(*self._aligned(output, targets, self.eps), reduction="mean")
        return loss

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = self.function(*self._aligned(output, targets, self.eps), reduction="sum")
        return loss

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = self.function(*self._aligned(output, targets, 0.0), reduction="sum")
        return loss

    def count(self, targets: Any) -> float:
        return float((targets.first if isinstance(targets, MixedTargets) else targets).numel())

    def correct(self, output: torch.Tensor, targets: Any) -> tuple[torch.Tensor, float] | None:
        if not self.multi_label:
            return None
        output, truth = self._aligned(output, targets, 0.0)
        return ((output > 0) == (truth > 0.5)).sum(), float(truth.numel())

    def _aligned(self, output: torch.Tensor, targets: Any, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(targets, MixedTargets):
            targets = blend(targets.first, targets.second, targets.lam)
        if output.shape != targets.shape:
            if output.numel() != targets.numel():
                raise InputError(
                    f"outputs of shape {tuple(output.shape)} and targets of shape {tuple(targets.shape)}: "
                    f"{self.name} compares element by element, so give the model as many outputs as there are targets"
                )
            output = output.reshape(targets.shape)
        return output, smooth_binary(targets.to(output), eps) if eps else targets.to(output)


@dataclass(frozen=True)
class Ctc:
    """CTC: outputs are log-probabilities (T, N, C); targets (labels (N, S), input lengths (N,), target lengths (N,))."""

    eps: float = 0.0
    blank: int = 0
    zero_infinity: bool = False
    name: str = "ctc"

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, self.eps, "mean")

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, self.eps, "sum")

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, 0.0, "sum")

    def count(self, targets: Any) -> float:
        return float(targets[0].shape[0])

    def correct(self, output: torch.Tensor, targets: Any) -> None:
        return None

    def _loss(self, output: torch.Tensor, targets: Any, eps: float, reduction: str) -> torch.Tensor:
        kind = {"blank": self.blank, "zero_infinity": self.zero_infinity, "reduction": reduction}
        return smooth_ctc_loss(output, *targets, eps=eps, **kind)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Own:
    """A loss of the user's: ``function(output, targets)`` -> the mean over the samples (or one loss per sample)."""

    function: Loss
    name: str = "own"

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        if not isinstance(targets, MixedTargets):
            return self._mean(output, targets)
        if targets.first.is_floating_point():
            return self._mean(output, blend(targets.first, targets.second, targets.lam))
        lam = targets.lam[0].to(targets.first.device)
        return lam * self._mean(output, targets.first) + (1 - lam) * self._mean(output, targets.second)

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        return self.mean(output, targets) * self.count(targets)

    plain = total

    def count(self, targets: Any) -> float:
        first = targets.first if isinstance(targets, MixedTargets) else targets
        while not isinstance(first, torch.Tensor):
            first = next(iter(first.values())) if isinstance(first, dict) else first[0]
        return float(len(first))

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, float | torch.Tensor] | None:
        first = targets.first if isinstance(targets, MixedTargets) else targets
        if not isinstance(first, torch.Tensor) or first.is_floating_point() or not isinstance(output, torch.Tensor):
            return None
        return CrossEntropy().correct(output, targets) if output.shape[:1] == first.shape == output.shape[:-1] else None

    def _mean(self, output: Any, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = self.function(output, targets)
        return loss.mean() if loss.ndim else loss


def choose_criterion(
    loss: str | Loss | CrossEntropy | None, output: Any, targets: Any, smoothing: LabelSmoothing | None
) -> tuple[Criterion, str]:
    """The criterion for ``loss`` (a name, a ``torch.nn`` loss, a function, or None to go by the targets), and why.

    Raises:
        InputError: smoothing where there is nothing to smooth, smoothing asked for twice, or a loss that is not a mean.
    """
    eps = smoothing.eps if smoothing else 0.0
    why = "asked for"
    if loss is None:
        loss, why = _by_targets(output, targets)
    if isinstance(loss, str):
        check_choice("loss", loss, LOSSES)
    criterion = _by_name(loss, eps) if isinstance(loss, str) else _by_object(loss, eps)
    if smoothing and isinstance(criterion, Elementwise) and not criterion.multi_label:
        raise InputError(f"label_smoothing with loss {criterion.name!r}: regression has no classes to smooth; turn it off")
    if smoothing and isinstance(criterion, Own):
        raise InputError(
            "label_smoothing with a loss of your own: heptane cannot smooth inside it; "
            "use loss='cross_entropy' or torch.nn.CrossEntropyLoss(...), or turn label_smoothing off"
        )
    return criterion, f"loss {criterion.name}: {why}"


def _by_targets(output: Any, targets: Any) -> tuple[str, str]:
    if not isinstance(targets, torch.Tensor) or not isinstance(output, torch.Tensor):
        raise InputError("loss=None: with outputs or targets that are not one tensor the loss cannot be guessed; pass loss=")
    if not targets.is_floating_point():
        return "cross_entropy", "the targets are integer classes"
    rows = targets.reshape(len(targets), -1)
    if targets.shape == output.shape and targets.ndim == 2 and targets.shape[1] > 1 and bool((rows >= 0).all()):
        if torch.allclose(rows.sum(1), rows.new_ones(len(rows)), atol=1e-4):
            return "cross_entropy", "the targets are distributions, each row sums to 1"
        if bool((rows <= 1).all()):
            return "binary_cross_entropy", "the targets are several labels in [0, 1]"
    return "mse", "the targets are real numbers"


def _by_name(name: str, eps: float) -> Criterion:
    functional = torch.nn.functional
    if name == "cross_entropy":
        return CrossEntropy(eps=eps)
    if name == "binary_cross_entropy":
        return Elementwise(name, functional.binary_cross_entropy_with_logits, eps, multi_label=True)
    return Elementwise(name, {"mse": functional.mse_loss, "l1": functional.l1_loss}.get(name, functional.smooth_l1_loss))


def _by_object(loss: Loss | CrossEntropy, eps: float) -> Criterion:
    nn = torch.nn
    if isinstance(loss, CrossEntropy):
        return replace(loss, eps=eps or loss.eps)
    if not callable(loss):
        raise InputError(f"loss={loss!r}: expected None, one of {', '.join(LOSSES)}, a torch.nn loss or a function")
    if getattr(loss, "reduction", "mean") != "mean":
        raise InputError(f"loss={loss!r}: a step's loss is a mean; build it with reduction='mean'")
    if isinstance(loss, nn.CrossEntropyLoss):
        if loss.label_smoothing and eps:
            raise InputError(
                f"label_smoothing.eps={eps} and CrossEntropyLoss(label_smoothing={loss.label_smoothing}) would smooth "
                "twice: keep one of them"
            )
        return CrossEntropy(eps or loss.label_smoothing, loss.weight, loss.ignore_index)
    if isinstance(loss, nn.BCEWithLogitsLoss) and loss.weight is None:
        weight = loss.pos_weight

        def binary(output: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
            return nn.functional.binary_cross_entropy_with_logits(output, targets, pos_weight=weight, reduction=reduction)

        return Elementwise("binary_cross_entropy", binary, eps, multi_label=True)
    if isinstance(loss, nn.MSELoss):
        return Elementwise("mse", nn.functional.mse_loss)
    if isinstance(loss, nn.L1Loss):
        return Elementwise("l1", nn.functional.l1_loss)
    if isinstance(loss, nn.CTCLoss):
        return Ctc(eps, loss.blank, loss.zero_infinity)
    return Own(loss)
