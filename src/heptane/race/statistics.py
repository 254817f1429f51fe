"""What a race's times say: ratios of paired runs, their intervals, and a verdict per trick.

A run that missed the target has taken infinitely long: its ratios are infinite, never left out. Where two paired runs both
missed, their ratio is not known and is not counted; how many were is said.

Source: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, sections 6.5 and 12.5 (the parametric and the
studentised bootstrap). With a handful of seeds a percentile interval cannot reach beyond the observed range: that of five
is too short to keep its promise, and a studentised one from the five values alone is far too long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from heptane._lazy import np

CONFIDENCE = 0.95
ENOUGH_SEEDS = 5  # below this an interval is said to be weak
SMALLEST_EFFECT = 0.03  # a smaller change of the time is not worth a name: below it lies what machines do by themselves
SMALLEST_POINTS = 0.001  # the same for an accuracy
RESAMPLES = 100_000
HELPS, HURTS, NO_EFFECT, NOT_APPLICABLE = "helps", "hurts", "no effect detected", "not applicable here"


@dataclass(frozen=True)
class Estimate:
    """A median over seeds with its interval; infinite where a run missed the target, None where nothing is known.

    ``values`` are the seeds' own; ``unknown`` counts the seeds where neither run arrived, which are not among them.
    """

    median: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...] = ()
    unknown: int = 0

    @property
    def weak(self) -> bool:
        """Whether there are too few seeds to lean on the interval."""
        return len(self.values) < ENOUGH_SEEDS

    def above(self, value: float) -> bool:
        """Whether the whole interval lies above ``value``."""
        return self.low is not None and self.low > value

    def below(self, value: float) -> bool:
        """Whether the whole interval lies below ``value``."""
        return self.high is not None and self.high < value

    def record(self) -> dict[str, Any]:
        """As JSON holds it: an infinite number is the text "inf" or "-inf"."""
        return {
            "median": plain(self.median),
            "interval": [plain(self.low), plain(self.high)],
            "confidence": CONFIDENCE,
            "values": [plain(value) for value in self.values],
            "unknown": self.unknown,
            "weak": self.weak,
        }


@dataclass(frozen=True)
class Effect:
    """What one trick is worth: added to plain training, and lost when it is left out of the whole set.

    ``alone`` and ``without`` are ratios of times (or differences of accuracy); above 1 (above 0) the trick helps.
    """

    alone: Estimate | None
    without: Estimate | None
    pooled: Estimate
    verdict: str
    why: str


def speedup(slow: Sequence[float | None], fast: Sequence[float | None]) -> Estimate:
    """How many times less time ``fast`` takes: the median of the paired ratios, with an interval.

    Args:
        slow, fast: seconds to the target per seed, in the same order; None for a run that missed it.

    Example:
        >>> speedup([20.0, 22.0, 18.0], [10.0, 11.0, 9.0]).median
        2.0
        >>> speedup([None, 22.0, 18.0], [10.0, 11.0, 9.0]).values
        (inf, 2.0, 2.0)
    """
    return _ratio(estimate(_log_ratios(slow, fast)))


def gain(low: Sequence[float], high: Sequence[float]) -> Estimate:
    """How much more accuracy ``high`` has: the median of the paired differences, with an interval."""
    return estimate([b - a for a, b in zip(low, high, strict=True)])


def effect_on_time(
    plain_times: Sequence[float | None],
    all_times: Sequence[float | None],
    added: Sequence[float | None] | None,
    left_out: Sequence[float | None] | None,
) -> Effect:
    """What a trick does to the time to the target.

    Args:
        plain_times, all_times: of the arms plain and all, per seed; None for a run that missed the target.
        added: of plain with the trick; None where that arm was not run.
        left_out: of all without the trick; None where that arm was not run.
    """
    alone = None if added is None else _log_ratios(plain_times, added)
    without = None if left_out is None else _log_ratios(left_out, all_times)
    pooled = estimate(_pool(alone, without))
    verdict, why = _verdict(alone, without, pooled, math.log1p(SMALLEST_EFFECT))
    added_ratio, left_out_ratio = (None if side is None else _ratio(estimate(side)) for side in (alone, without))
    return Effect(added_ratio, left_out_ratio, _ratio(pooled), verdict, why)


def effect_on_accuracy(
    plain_scores: Sequence[float],
    all_scores: Sequence[float],
    added: Sequence[float] | None,
    left_out: Sequence[float] | None,
) -> Effect:
    """What a trick does to the accuracy that is reached in a fixed time; arguments as in :func:`effect_on_time`."""
    alone = None if added is None else [b - a for a, b in zip(plain_scores, added, strict=True)]
    without = None if left_out is None else [b - a for a, b in zip(left_out, all_scores, strict=True)]
    pooled = estimate(_pool(alone, without))
    verdict, why = _verdict(alone, without, pooled, SMALLEST_POINTS)
    return Effect(_or_none(alone), _or_none(without), pooled, verdict, why)


def estimate(values: Sequence[float]) -> Estimate:
    """The median of ``values`` with a 95% interval; NaN stands for a value that is not known.

    From two finite values on, the interval is that of the studentised bootstrap of the mean, resampling from a normal
    distribution (of logarithms, for ratios of times). With an infinite value among them it is the range, which covers the
    median of n values with probability 1 - 2 / 2^n. One value alone has none: it is infinitely wide.
    """
    known = tuple(float(value) for value in values if not math.isnan(value))
    unknown = len(values) - len(known)
    if not known:
        return Estimate(None, None, None, (), unknown)
    median = _median(known)
    if len(known) == 1:
        return Estimate(median, -math.inf, math.inf, known, unknown)
    if not all(map(math.isfinite, known)):
        return Estimate(median, min(known), max(known), known, unknown)
    low, high = _studentised(np.array(known))
    return Estimate(median, min(low, median), max(high, median), known, unknown)


def plain(value: float | None) -> float | str | None:
    """A number as JSON can hold it."""
    return str(value) if value is not None and math.isinf(value) else value


def _studentised(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    width = _quantile_of_t(len(values)) * error
    return mean - width, mean + width


@cache
def _quantile_of_t(n: int) -> float:
    """What |mean| / standard error of n normal values stays below in 95% of resamples."""
    drawn = np.random.default_rng(n).standard_normal((RESAMPLES, n))
    t = np.abs(drawn.mean(axis=1)) / (drawn.std(axis=1, ddof=1) / math.sqrt(n))
    return float(np.quantile(t, CONFIDENCE))


def _log_ratios(numerators: Sequence[float | None], denominators: Sequence[float | None]) -> list[float]:
    """log(numerator / denominator) per seed; a time that is None is infinite."""
    logs = []
    for numerator, denominator in zip(numerators, denominators, strict=True):
        if numerator is None and denominator is None:
            logs.append(math.nan)
        elif numerator is None:
            logs.append(math.inf)
        elif denominator is None:
            logs.append(-math.inf)
        else:
            logs.append(math.log(numerator / denominator))
    return logs


def _pool(alone: Sequence[float] | None, without: Sequence[float] | None) -> list[float]:
    """Per seed the mean of the two effects; one that is not known leaves the other; opposite infinities say nothing."""
    if alone is None or without is None:
        return list(alone if alone is not None else without or [])
    pairs = zip(alone, without, strict=True)
    return [b if math.isnan(a) else a if math.isnan(b) else (a + b) / 2 for a, b in pairs]


def _verdict(
    alone: Sequence[float] | None, without: Sequence[float] | None, pooled: Estimate, smallest: float
) -> tuple[str, str]:
    if pooled.median is None:
        return NO_EFFECT, "no pair of runs reached the target"
    contrary = _contrary(alone, without)
    if pooled.above(0) and pooled.median >= smallest:
        return HELPS, contrary
    if pooled.below(0) and pooled.median <= -smallest:
        return HURTS, contrary
    small = pooled.above(0) or pooled.below(0)
    return NO_EFFECT, contrary or ("what it does is too small to matter" if small else "the interval contains no effect")


def _contrary(alone: Sequence[float] | None, without: Sequence[float] | None) -> str:
    """A remark where a trick does the one thing alone and the other among the rest."""
    if alone is None or without is None:
        return ""
    first, second = estimate(alone), estimate(without)
    if first.above(0) and second.below(0):
        return "it helps alone and hurts among the others"
    if first.below(0) and second.above(0):
        return "it hurts alone and helps among the others"
    return ""


def _or_none(values: Sequence[float] | None) -> Estimate | None:
    return None if values is None else estimate(values)


def _ratio(of_logs: Estimate) -> Estimate:
    """An estimate of logarithms as one of ratios."""
    median, low, high = (None if end is None else _exp(end) for end in (of_logs.median, of_logs.low, of_logs.high))
    return Estimate(median, low, high, tuple(map(_exp, of_logs.values)), of_logs.unknown)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # e^710 is more than a float holds


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    below, above = ordered[middle - 1], ordered[middle]
    return below if below == above else (below + above) / 2
