"""The tests behind a verdict: Student's t, the exact sign test, Holm's correction, and the noise pooled over arms.

Degrees of freedom are whole numbers here, so Student's t has a closed form. That saves scipy, which would triple the size
of a bare install.

Source: Abramowitz and Stegun 1964, *Handbook of Mathematical Functions*, 26.7.3 and 26.7.4 (Student's t); Holm 1979, *A
simple sequentially rejective multiple test procedure*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def student_p(t: float, df: int) -> float:
    """The two-sided p-value of Student's t with ``df`` degrees of freedom.

    Args:
        t: any number.
        df: degrees of freedom, at least 1.

    Example:
        >>> from heptane.race.statistics import student_p
        >>> round(student_p(2.776445, 4), 6)
        0.05
    """
    angle = math.atan(abs(t) / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = cosine if df % 2 else 1.0
    for k in range(2 + df % 2, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if df % 2:
        inside = 2 / math.pi * (angle + (sine * total if df > 1 else 0.0))
    else:
        inside = sine * total
    return min(max(1.0 - inside, 0.0), 1.0)


@cache
def student_quantile(p: float, df: int) -> float:
    """The two-sided quantile of Student's t: the inverse of :func:`student_p`.

    Example:
        >>> from heptane.race.statistics import student_quantile
        >>> round(student_quantile(0.05, 1), 3), round(student_quantile(0.01, 7), 3)
        (12.706, 3.499)
    """
    low, high = 0.0, 1.0
    while student_p(high, df) > p:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) > p else (low, middle)
    return (low + high) / 2


@cache
def sign_p(wins: int, losses: int) -> float:
    """The two-sided p-value of an exact sign test.

    Example:
        >>> from heptane.race.statistics import sign_p
        >>> sign_p(5, 0), sign_p(3, 3)
        (0.0625, 1.0)
    """
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2.0 * float(tail) / float(2**n))


def holm(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's procedure tests each hypothesis, which is rejected if its p is at most its level.

    In order of p, the levels are alpha / m, alpha / (m - 1), ... After the first hypothesis that is not rejected, the level
    stays the same, so that the interval at a hypothesis's level excludes 0 exactly if it is rejected.

    Args:
        p_values: one per hypothesis.
        alpha: the family-wise error rate, in (0, 1).

    Example:
        >>> from heptane.race.statistics import holm
        >>> holm([0.01, 0.2, 0.02], 0.06)
        [0.02, 0.06, 0.03]
    """
    levels, stuck = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        level = stuck or alpha / (len(p_values) - rank)
        levels[at] = level
        stuck = stuck or (level if p_values[at] > level else 0.0)
    return levels


@dataclass(frozen=True)
class Noise:
    """The variance of runs that is not due to their seed.

    ``variance`` is pooled over all arms, with ``df`` degrees of freedom (0: unknown); ``of_arm`` is that of each arm alone
    (NaN: unknown).
    """

    variance: float
    df: int
    of_arm: tuple[float, ...] = ()


def pooled_noise(values: Sequence[Sequence[float]]) -> Noise:
    """The residual variance of the model value = arm + seed + noise, by least squares.

    Args:
        values: per arm, per seed; NaN for a missing run. With gaps, the rank determines the degrees of freedom.

    Example:
        >>> from heptane.race.statistics import pooled_noise
        >>> pooled_noise([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
        Noise(variance=0.0, df=2, of_arm=(0.0, 0.0))
    """
    table = np.array(values, dtype=float)
    known = ~np.isnan(table)
    if table.ndim < 2 or not known.any():
        return Noise(0.0, 0, (math.nan,) * len(values))
    squares, free = _balanced(table) if known.all() else _with_gaps(table, known)
    df = round(float(free.sum()))
    if df < 1:
        return Noise(0.0, 0, (math.nan,) * len(values))
    of_arm = [float(s / f) if f > 0.5 else math.nan for s, f in zip(squares, free, strict=True)]
    return Noise(float(squares.sum()) / df, df, tuple(of_arm))


def _balanced(table: Array) -> tuple[Array, Array]:
    """Per arm, the sum of squared residuals and its share of the degrees of freedom."""
    arms, seeds = table.shape
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return (residual**2).sum(axis=1), np.full(arms, (arms - 1) * (seeds - 1) / arms)


def _with_gaps(table: Array, known: Array) -> tuple[Array, Array]:
    arms, seeds = table.shape
    rows, columns = known.nonzero()
    design = np.zeros((len(rows), arms + seeds))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), arms + columns] = 1
    left, sizes, _ = np.linalg.svd(design, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]
    values = table[known]
    residual = values - basis @ (basis.T @ values)
    freedom = 1 - (basis**2).sum(axis=1)
    return np.bincount(rows, residual**2, arms), np.bincount(rows, freedom, arms)


def json_number(value: float | None) -> float | str | None:
    """A number for JSON; infinite numbers become the text "inf" or "-inf"."""
    return str(value) if value is not None and math.isinf(value) else value
