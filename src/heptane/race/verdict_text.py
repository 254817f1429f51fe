"""Verdicts in words: one phrase per outcome, for the terminal, the report and ``race.json``."""

from __future__ import annotations

import math

from heptane.race.verdicts import (
    ARRIVES_LESS,
    ARRIVES_MORE,
    HELPS,
    HURTS,
    MOST_MORE,
    NO_DIFFERENCE,
    NOT_SETTLED,
    Judgement,
)


def verdict_text(made: Judgement, timed: bool) -> str:
    """A judgement in words: ``saves 23% (12 to 33%)``.

    Args:
        made: the judgement; its differences are logarithms of times, or accuracies.
        timed: whether the differences are of times.
    """
    low, high = (-math.inf if made.low is None else made.low), (math.inf if made.high is None else made.high)
    if made.verdict in (HELPS, HURTS):
        return _effect(made.estimate, low, high, timed)
    if made.verdict == NO_DIFFERENCE:
        return "no difference beyond 10%" if timed else "no difference beyond 1 point"
    if made.verdict == NOT_SETTLED:
        return f"not settled: {range_text(low, high, timed)}; {more_text(made.more_seeds, timed)}"
    if made.verdict in (ARRIVES_LESS, ARRIVES_MORE):
        return f"{made.verdict}: {arrival_counts(made)}"
    return "no verdict"


def arrival_counts(made: Judgement) -> str:
    """Runs that reached the target with and without the trick: ``3 of 5, against 5 of 5``."""
    (without, of_without), (with_it, of_with) = zip(made.evidence.arrived, made.evidence.known, strict=True)
    return f"{with_it} of {of_with}, against {without} of {of_without}"


def more_text(more_seeds: int | None, timed: bool) -> str:
    """How many more seeds would settle the question."""
    effect = "a 10% effect" if timed else "an effect of 1 point"
    if more_seeds is None:
        return f"> {MOST_MORE} more seeds would be needed to show {effect}"
    return f"about {more_seeds} more seed{'' if more_seeds == 1 else 's'} would show {effect}"


def range_text(low: float, high: float, timed: bool) -> str:
    """An interval in words: ``12% slower to 20% faster``.

    Example:
        >>> import math
        >>> from heptane.race.verdict_text import range_text
        >>> range_text(-math.log(1.12), -math.log(0.8), True), range_text(0.02, 0.1, True), range_text(-0.003, 0.012, False)
        ('12% slower to 20% faster', '2 to 10% faster', '0.3 points worse to 1.2 points better')
    """
    same_side = low * high > 0 and math.isfinite(low) and math.isfinite(high)
    first, last = (_change(end, timed) for end in (sorted((low, high), key=abs) if same_side else (low, high)))
    if same_side and first.split()[1:] == last.split()[1:]:
        return f"{first.split()[0].removesuffix('%')} to {last}"
    return f"{first} to {last}"


def _change(difference: float, timed: bool) -> str:
    """One end of an interval: ``20% faster``, ``3.2x slower``, ``1.2 points better``."""
    if not timed and math.isinf(difference):
        return f"any number of points {_direction(difference, timed)}"
    if not timed:
        return f"{abs(100 * difference):.2g} points {_direction(difference, timed)}"
    if abs(difference) > math.log(10):
        return f"over {'90% faster' if difference > 0 else '10x slower'}"
    if difference < -math.log(2):
        return f"{math.exp(-difference):.2g}x slower"
    return f"{percent_changed(difference)}% {_direction(difference, timed)}"


def _direction(difference: float, timed: bool) -> str:
    better, worse = ("faster", "slower") if timed else ("better", "worse")
    return better if difference > 0 else worse


def percent_changed(difference: float) -> str:
    """A log ratio of times as the percentage of time saved or added."""
    return f"{100 * abs(math.expm1(-difference)):.0f}"


def _effect(estimate: float | None, low: float, high: float, timed: bool) -> str:
    good, bad, unit = ("saves", "costs", "%") if timed else ("gains", "loses", " points")
    verb, (near, far) = good if low > 0 else bad, sorted((low, high), key=abs)

    def size(difference: float) -> str:
        return percent_changed(difference) if timed else f"{abs(100 * difference):.2g}"

    if estimate is None or math.isinf(far):
        return f"{verb} at least {size(near)}{unit}"
    return f"{verb} {size(estimate)}{unit} ({size(near)} to {size(far)}{'%' if timed else ''})"
