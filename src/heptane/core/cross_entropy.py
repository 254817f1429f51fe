"""Cross-entropy with integer and soft targets, class weights, ignored positions and label smoothing; and CTC."""

from __future__ import annotations

import math

from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch

IGNORE_INDEX = -100


def smooth_distribution(targets: torch.Tensor, share: torch.Tensor, eps: float, dim: int = -1) -> torch.Tensor:
    """(1 - eps) t + eps share / K along ``dim``, where ``share`` is the mass of each position: 0 where it is ignored."""
    return targets * (1 - eps) + (eps / targets.shape[dim]) * share.unsqueeze(dim).to(targets) if eps else targets


def valid_soft_targets(soft: torch.Tensor, ignore_index: int, dim: int) -> torch.Tensor:
    """Positions of soft targets that count: not all zeros, not all ``ignore_index``, not all mass on that class."""
    nonzero = soft != 0
    of_ignored = nonzero.select(dim, ignore_index) if 0 <= ignore_index < soft.shape[dim] else 0
    return (nonzero.sum(dim) > of_ignored) & (soft != ignore_index).any(dim)


def smooth_binary(targets: torch.Tensor, eps: float) -> torch.Tensor:
    """Smooth multi-label targets: q = (1 - eps) t + eps / 2. Shape (N, K) in and out."""
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
    """Cross-entropy with integer or soft targets and label smoothing ``eps``; the mean is over targets that are not ignored.

    If nothing counts (all ignored, or of weight 0) the mean is 0 with gradients of 0, where PyTorch returns NaN.

    Args:
        logits: (N, C), (N, C, T) or (N, T, C), unnormalized.
        targets: integers of shape (N,) or (N, T), or probabilities of the shape of ``logits``.
        eps: label smoothing, in [0, 1].
        weight: weight per class, shape (C,).
        ignore_index: integer targets of this value have weight 0. So have soft targets that are all zeros, all this value,
            or have all of their mass on this class.
        class_dim: dimension of the classes. None infers it from the shapes and refuses ambiguous ones with integer targets;
            for soft targets it is 1, as in PyTorch.
        reduction: "mean" over the weights of the valid targets (over positions for soft targets), or "sum".

    Returns:
        A scalar.

    Raises:
        InputError: shapes that do not match, or an argument out of range.

    Example:
        >>> soft_cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100])).item()
        1.3862943649291992

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    check_range("eps", eps, 0, 1)
    check_choice("reduction", reduction, ("mean", "sum"))
    soft = targets.is_floating_point()
    dim = find_class_dim(logits.shape, targets.shape, soft, class_dim)
    logits = logits.movedim(dim, 1) if dim > 1 else logits
    classes = min(dim, 1)
    check_weight(weight, logits.shape[classes])
    cross_entropy = torch.nn.functional.cross_entropy
    if not soft:
        targets = targets.long()
        loss = cross_entropy(logits, targets, weight, ignore_index=ignore_index, label_smoothing=eps, reduction=reduction)
        return loss if reduction == "sum" else zero_if_empty(loss, targets, weight, ignore_index)
    targets = (targets.movedim(dim, 1) if dim > 1 else targets).to(logits)
    valid = valid_soft_targets(targets, ignore_index, classes)
    q = smooth_distribution(targets.where(valid.unsqueeze(classes), 0.0), valid, eps, classes)
    if reduction == "sum" or not valid.numel():
        return cross_entropy(logits, q, weight, reduction="sum")
    return cross_entropy(logits, q, weight) * (max(1, valid.numel()) / valid.sum().clamp(min=1)).to(logits)


def check_weight(weight: torch.Tensor | None, num_classes: int) -> None:
    """Refuse class weights whose shape is not (num_classes,)."""
    if weight is not None and weight.shape != (num_classes,):
        raise InputError(f"weight of shape {tuple(weight.shape)}: expected one weight per class, shape ({num_classes},)")


def zero_if_empty(mean: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None, ignore_index: int) -> torch.Tensor:
    """``mean``, or 0 where no integer target counts, so that it would be 0 / 0."""
    valid = targets != ignore_index
    counts = valid if weight is None else (weight[targets.where(valid, 0)] != 0) & valid
    return torch.where(counts.any(), mean, 0.0)


def find_class_dim(
    logits_shape: tuple[int, ...], targets_shape: tuple[int, ...], soft: bool, class_dim: int | None = None
) -> int:
    """The class dimension of ``logits_shape``: 1 or the last. See :func:`soft_cross_entropy`."""
    last = len(logits_shape) - 1
    candidates = sorted({min(1, last), last}) if logits_shape else []
    if class_dim is not None:
        if class_dim not in ([*range(-last, 0), *range(1, last + 1)] or [-1, 0]):
            raise InputError(
                f"class_dim={class_dim} with outputs of shape {tuple(logits_shape)}: expected 1 to {last}, or -1"
            )
        candidates = [class_dim % (last + 1)]
    if soft:
        fitting = candidates[:1] if targets_shape == logits_shape else []
    else:
        fitting = [dim for dim in candidates if targets_shape == (*logits_shape[:dim], *logits_shape[dim + 1 :])]
    if len(fitting) == 1:
        return fitting[0]
    shapes = f"outputs of shape {tuple(logits_shape)} and targets of shape {tuple(targets_shape)}"
    if fitting:
        raise InputError(
            f"class_dim=None: with {shapes} the classes could be dimension 1 or the last; set class_dim=1 or class_dim=-1"
        )
    raise InputError(
        f"{shapes} do not match: for integer classes expected (N, C) outputs and (N,) targets, or (N, C, T) or (N, T, C) "
        "outputs and (N, T) targets; for soft targets the shape of the outputs"
    )


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
    """CTC with each valid frame pulled towards the uniform distribution: (1 - eps) CTC + eps KL(uniform || p).

    Args:
        log_probs: (T, N, C), log-softmax over C.
        targets: (N, S) padded labels, or all of them concatenated, as for ``torch.nn.CTCLoss``.
        input_lengths, target_lengths: (N,); frames past an input's length have weight 0.
        eps: in [0, 1]; 0 is exactly ``torch.nn.functional.ctc_loss``.
        blank: index of the blank label.
        zero_infinity: as in ``torch.nn.CTCLoss``.
        reduction: "mean" (over the batch, of each sequence's loss divided by its target length) or "sum" (over the batch, of
            the same).

    Returns:
        A scalar.

    Source: Kim et al. 2018, arXiv:1711.02212.
    """
    check_range("eps", eps, 0, 1)
    check_choice("reduction", reduction, ("mean", "sum"))
    input_lengths, target_lengths = torch.as_tensor(input_lengths), torch.as_tensor(target_lengths)
    each = torch.nn.functional.ctc_loss(
        log_probs, targets, input_lengths, target_lengths, blank, reduction="none", zero_infinity=zero_infinity
    ) / target_lengths.clamp(min=1).to(log_probs)
    if eps:
        num_frames, _, num_classes = log_probs.shape
        frames = torch.arange(num_frames, device=log_probs.device)[:, None]
        valid = frames < input_lengths.to(log_probs.device)[None, :]
        divergence = -log_probs.where(valid[..., None], 0.0).mean(-1) - math.log(num_classes)
        per_sequence = divergence.where(valid, 0.0).sum(0) / valid.sum(0).clamp(min=1)
        each = (1 - eps) * each + eps * per_sequence
    return each.sum() if reduction == "sum" else each.mean()
