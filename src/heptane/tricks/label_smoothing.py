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

from dataclasses import dataclass

from heptane.base.errors import InputError, check_bool, check_range
from heptane.base.lazy import torch
from heptane.core.cross_entropy import IGNORE_INDEX, smooth_distribution


def smooth_labels(targets: torch.Tensor, eps: float, num_classes: int | None = None) -> torch.Tensor:
    """Spread ``eps`` of each target evenly over the classes: q = (1 - eps) t + eps / K.

    Args:
        targets: integer classes of shape (...), where -100 is an ignored one, or distributions of shape (..., K).
        eps: share to spread, in [0, 1].
        num_classes: K; needed for integer targets.

    Returns:
        Distributions of shape (..., K); rows sum to what those of ``targets`` sum to: for integers 1, and 0 where ignored.

    Raises:
        InputError: integer targets without ``num_classes`` or outside it, other distributions than it says, or ``eps`` out
            of range.

    Example:
        >>> smooth(torch.tensor([1]), 0.1, num_classes=2)
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
    """Trick 5: soft targets. ``LabelSmoothing(eps=0.1)`` fills the criterion's slot."""

    eps: float = 0.1
    """Share of each target that is spread evenly over all classes, in [0, 1)."""
    optional: bool = False
    """Where the loss has no classes to smooth, leave smoothing out and say so, instead of refusing it."""

    def __post_init__(self) -> None:
        check_range("LabelSmoothing.eps", self.eps, 0, 1, high_open=True)
        check_bool("LabelSmoothing.optional", self.optional)
