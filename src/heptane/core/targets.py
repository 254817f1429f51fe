"""Targets of blended samples, made by mixup and joined by the criterion."""

from __future__ import annotations

from dataclasses import dataclass

from heptane.base.lazy import torch


@dataclass(frozen=True)
class MixedTargets:
    """Targets ``first`` and ``second``, of one shape, and ``lam`` (N,), the weight of the first."""

    first: torch.Tensor
    second: torch.Tensor
    lam: torch.Tensor


def blend(first: torch.Tensor, second: torch.Tensor, lam: float | torch.Tensor) -> torch.Tensor:
    """lam * first + (1 - lam) * second, floating point, where ``lam`` is a number or has shape (N,)."""
    if isinstance(lam, torch.Tensor):
        lam = lam.to(first)
        lam = lam.reshape(-1, *[1] * (first.ndim - 1)) if lam.ndim else lam
    return torch.lerp(second, first, lam)
