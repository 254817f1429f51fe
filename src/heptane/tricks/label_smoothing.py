"""Label smoothing: train on targets that move a small probability from the true class to all classes.

Equation
    q = (1 - eps) t + eps / K, for K classes and a target distribution t (one-hot for an integer target);
    loss = sum_c w_c q_c (-log p_c) / sum of the weights of the targets, where ignored positions have weight 0.
    The loss cannot fall below the entropy of q, 0.5003 for K = 10 and eps = 0.1, so the unsmoothed loss is reported too.
    Multi-label targets are binary, K = 2: q = (1 - eps) t + eps / 2.
    CTC has no target per frame: (1 - eps) CTC + eps (mean over frames of KL(uniform || p)).

Source
    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7, arXiv:1512.00567.
    CTC: Kim et al. 2018, arXiv:1711.02212; the two directions of the divergence: Pereyra et al. 2017, arXiv:1701.06548.

Meets the loop at
    ``criterion``. Mixup blends the targets first; they are smoothed afterwards, once.

Costs, and when it does not help
    The cost in time is negligible. It reduces over-confidence more than error; expect little on short runs that do not
    overfit. A teacher trained with it distils worse (Müller et al. 2019, arXiv:1906.02629). It is refused for regression,
    which has no classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from heptane.base.errors import InputError, check_bool, check_range
from heptane.base.lazy import torch
from heptane.core.cross_entropy import IGNORE_INDEX, smooth_distribution


def smooth_labels(targets: torch.Tensor, eps: float, num_classes: int | None = None) -> torch.Tensor:
    """Spread ``eps`` of each target evenly over the classes: q = (1 - eps) t + eps / K.

    Args:
        targets: integer classes of shape (...), where -100 is ignored, or distributions of shape (..., K).
        eps: probability to spread, in [0, 1].
        num_classes: K; required for integer targets.

    Returns:
        Distributions of shape (..., K). Each row keeps the sum of its target: 1 for an integer class, 0 for an ignored one.

    Raises:
        InputError: integer targets without ``num_classes`` or outside its range; distributions over another number of
            classes; ``eps`` out of range.

    Example:
        >>> smooth_labels(torch.tensor([1]), 0.1, num_classes=2)
        tensor([[0.0500, 0.9500]])

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    check_range("eps", eps, 0, 1)
    if not targets.is_floating_point():
        if num_classes is None:
            raise InputError("num_classes=None: integer targets do not say how many classes there are; pass num_classes")
        valid = targets != IGNORE_INDEX
        classes = targets.long().where(valid, 0)
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            bad = int(classes.min()) if int(classes.min()) < 0 else int(classes.max())
            raise InputError(f"target {bad} is out of range: num_classes={num_classes} allows 0 to {num_classes - 1}")
        targets = (torch.nn.functional.one_hot(classes, num_classes) * valid[..., None]).float()
    elif num_classes not in (None, targets.shape[-1]):
        raise InputError(f"num_classes={num_classes}: the targets hold {targets.shape[-1]} classes per row")
    return smooth_distribution(targets, targets.sum(-1), eps)


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Settings of label smoothing."""

    eps: float = 0.1
    """Probability of each target that is spread evenly over all classes, in [0, 1)."""
    optional: bool = False
    """Turn smoothing off with a note, instead of an error, where the loss has no classes."""

    def __post_init__(self) -> None:
        check_range("LabelSmoothing.eps", self.eps, 0, 1, high_open=True)
        check_bool("LabelSmoothing.optional", self.optional)
