"""Label smoothing: train on targets that leave a little doubt.

Equation
    q = (1 - eps) * t + eps / K, for K classes and a target distribution t (one-hot for an integer target);
    loss = sum_c w_c q_c (-log p_c) / sum of the weights of the targets, ignored positions weighing 0.
    The loss has a floor, the entropy of q: 0.5003 for K = 10 and eps = 0.1. So the unsmoothed loss is reported beside it.
    Multi-label targets have K = 2: q = (1 - eps) * t + eps / 2.
    CTC has no target per frame: (1 - eps) * CTC + eps * (mean over frames of KL(uniform || p)).

Source
    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7, arXiv:1512.00567.
    CTC: Kim et al. 2018, arXiv:1711.02212; the two directions of the divergence: Pereyra et al. 2017, arXiv:1701.06548.

Meets the loop at
    ``criterion``. Mixup blends targets first, smoothing comes after, once: there is one owner of targets.

Costs, and when it does not help
    Next to nothing in time. It lowers over-confidence more than error; expect little on short runs that do not overfit.
    A smoothed teacher distils worse (Müller et al. 2019, arXiv:1906.02629). Regression has no classes to smooth: refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from heptane._lazy import torch
from heptane.errors import InputError, check_range

IGNORE_INDEX = -100


def smooth(targets: torch.Tensor, eps: float, num_classes: int | None = None) -> torch.Tensor:
    """Spread ``eps`` of each target evenly over the classes: q = (1 - eps) t + eps / K.

    Args:
        targets: integer classes of shape (...), or distributions of shape (..., K).
        eps: share to spread, in [0, 1].
        num_classes: K; needed for integer targets.

    Returns:
        Distributions of shape (..., K); rows sum to what the rows of ``targets`` sum to, 1 for integers.

    Raises:
        InputError: integer targets without ``num_classes``, or ``eps`` out of range.

    Example:
        >>> smooth(torch.tensor([1]), 0.1, num_classes=2)
        tensor([[0.0500, 0.9500]])

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    check_range("eps", eps, 0, 1)
    if not targets.is_floating_point():
        if num_classes is None:
            raise InputError("num_classes=None: integer targets do not say how many classes there are; pass num_classes")
        targets = torch.nn.functional.one_hot(targets, num_classes).float()
    share = targets.sum(-1, keepdim=True) / targets.shape[-1]
    return targets * (1 - eps) + eps * share


def smooth_binary(targets: torch.Tensor, eps: float) -> torch.Tensor:
    """Smooth multi-label targets, each a choice between two: q = (1 - eps) t + eps / 2. Shape (N, K) in and out."""
    return targets * (1 - eps) + eps / 2


def soft_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    eps: float = 0.0,
    weight: torch.Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    class_dim: int | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy with integer or soft targets, smoothed by ``eps``; the mean counts what is not ignored.

    Args:
        logits: (N, C), (N, C, T) or (N, T, C), unnormalised.
        targets: integers of shape (N,) or (N, T), or probabilities of the shape of ``logits``.
        eps: label smoothing, in [0, 1].
        weight: weight per class, shape (C,).
        ignore_index: integer targets of this value weigh 0.
        class_dim: where the classes are; None finds it from the shapes and refuses a shape that could be both.
        reduction: "mean" over the weights of the valid targets (over positions for soft targets), or "sum".

    Returns:
        A scalar.

    Raises:
        InputError: shapes that do not go together.

    Example:
        >>> soft_cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100])).item()
        1.3862943649291992

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    dim = find_class_dim(logits.shape, targets.shape, targets.is_floating_point(), class_dim)
    if dim != 1:
        logits = logits.movedim(dim, 1)
        targets = targets.movedim(dim, 1) if targets.is_floating_point() else targets
    return torch.nn.functional.cross_entropy(
        logits, targets, weight, ignore_index=ignore_index, label_smoothing=eps, reduction=reduction
    )


def find_class_dim(
    logits_shape: tuple[int, ...], targets_shape: tuple[int, ...], soft: bool, class_dim: int | None = None
) -> int:
    """The dimension of the classes in ``logits_shape``: 1 or the last. See :func:`soft_cross_entropy`."""
    last = len(logits_shape) - 1
    if class_dim is not None:
        return class_dim % len(logits_shape)
    if last < 2:
        return last
    if soft:
        return 1
    first, final = (targets_shape == (*logits_shape[:1], *logits_shape[2:])), (targets_shape == logits_shape[:-1])
    if first and final:
        raise InputError(
            f"class_dim=None: with outputs of shape {tuple(logits_shape)} and targets of shape {tuple(targets_shape)} "
            "the classes could be dimension 1 or the last; say which, with class_dim=1 or class_dim=-1"
        )
    if not first and not final:
        raise InputError(
            f"targets of shape {tuple(targets_shape)} do not fit outputs of shape {tuple(logits_shape)}: "
            "expected (N, C, T) or (N, T, C) outputs for (N, T) targets"
        )
    return 1 if first else last


def smooth_ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    eps: float,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """CTC with a pull of each valid frame toward the uniform distribution: (1 - eps) CTC + eps KL(uniform || p).

    Args:
        log_probs: (T, N, C), log-softmax over C.
        targets: (N, S) padded labels, as for ``torch.nn.CTCLoss``.
        input_lengths, target_lengths: (N,); frames past an input's length weigh 0.
        eps: in [0, 1]; 0 is ``torch.nn.functional.ctc_loss`` exactly.
        blank: index of the blank label.
        zero_infinity: as in ``torch.nn.CTCLoss``.
        reduction: "mean" (the mean over the batch of each sequence's loss divided by its target's length) or "sum"
            (the sum over the batch of the same).

    Returns:
        A scalar.

    Source: Kim et al. 2018, arXiv:1711.02212.
    """
    each = torch.nn.functional.ctc_loss(
        log_probs, targets, input_lengths, target_lengths, blank, reduction="none", zero_infinity=zero_infinity
    ) / target_lengths.clamp(min=1).to(log_probs)
    if eps:
        num_frames, _, num_classes = log_probs.shape
        frames = torch.arange(num_frames, device=log_probs.device)[:, None]
        valid = (frames < input_lengths.to(log_probs.device)[None, :]).to(log_probs)
        divergence = -log_probs.mean(-1) - math.log(num_classes)
        per_sequence = (divergence * valid).sum(0) / valid.sum(0).clamp(min=1)
        each = (1 - eps) * each + eps * per_sequence
    return each.sum() if reduction == "sum" else each.mean()


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Trick 5: soft targets. ``LabelSmoothing(eps=0.1)`` fills the criterion's slot."""

    eps: float = 0.1
    """share of each target spread evenly over all classes, in [0, 1)"""

    def __post_init__(self) -> None:
        check_range("LabelSmoothing.eps", self.eps, 0, 1, high_open=True)
