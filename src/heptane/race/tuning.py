"""Tuning before a race, with equal effort on both sides: the learning rate of plain, the cycle length of the others.

Tuning uses the validation data and seeds that do not race.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heptane.race.attempt import Trial

TRIALS = 3  # per side
RATE_STEP = 3.0  # factor between tried learning rates
LENGTH_STEP = 1.5  # factor between tried cycle lengths
FIRST_LENGTH = 0.5  # first tried cycle length, relative to the epochs that plain took


@dataclass
class Tuning:
    """The tuning of one side: the knob, the chosen value, and the values tried in order."""

    knob: str
    chosen: float
    tried: list[float]


Try = Callable[[float], Trial]
Rank = Callable[[Trial], tuple[float, float]]


def climb(first: float, step: float, trials: int, attempt: Try, rank: Rank) -> Tuning:
    """Hill-climb from ``first`` in factors of ``step``.

    Args:
        first: first value.
        step: factor between two values.
        trials: maximum number of runs.
        attempt: makes a run with a value.
        rank: ranks a run; lower is better.

    Example:
        >>> made = lambda rate: Attempt(0, "reached", seconds=abs(rate - 5))
        >>> climb(1.0, 3.0, 3, made, lambda attempt: (attempt.seconds, 0))
        Tuning(knob='rate', chosen=3.0, tried=[1.0, 3.0, 9.0])
    """
    done: dict[float, Trial] = {}
    best, value, direction = first, first, step
    while len(done) < trials:
        done[value] = attempt(value)
        if value != best and rank(done[value]) < rank(done[best]):
            best = value
        elif value != first:
            if direction < 1 or best != first:
                break
            direction = 1 / step
        value = best * direction
    return Tuning("rate", best, list(done))


def shorten(first: float, step: float, trials: int, longest: float, shortest: float, attempt: Try) -> Tuning:
    """Find the shortest cycle, in epochs, that reaches the target: shorten while it does, double if it does not.

    Args:
        first: first length.
        step: factor by which a length that reaches the target is shortened.
        trials: maximum number of lengths, unless none has reached the target.
        longest, shortest: bounds of the length.
        attempt: makes runs of a length with several seeds, and returns the worst.
    """
    done: dict[float, bool] = {}
    length = min(max(first, shortest), longest)
    while length not in done and (len(done) < trials or not any(done.values())):
        done[length] = attempt(length).seconds is not None
        if any(done.values()) and not done[length]:
            break
        length = length / step if done[length] else length * 2
        length = min(max(length, shortest), longest)
    chosen = min((length for length, arrives in done.items() if arrives), default=longest)
    return Tuning("epochs", chosen, list(done))
