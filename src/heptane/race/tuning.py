"""What is chosen before a race, with equal effort on both sides: the rate of plain training, the length of the cycles.

Both are chosen on the validation split with a seed of their own, which does not race.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heptane.race.attempt import Trial

TRIALS = 3  # per side
RATE_STEP = 3.0  # factor between learning rates that are tried
LENGTH_STEP = 1.5  # factor between lengths of a cycle that are tried
FIRST_LENGTH = 0.5  # of the epochs that plain training took


@dataclass
class Tuning:
    """What one side was tuned in, what was tried in turn, and what was chosen."""

    knob: str
    chosen: float
    tried: list[float]


Try = Callable[[float], Trial]
Rank = Callable[[Trial], tuple[float, float]]


def climb(first: float, step: float, trials: int, attempt: Try, rank: Rank) -> Tuning:
    """Try ``first``, then its neighbours a factor ``step`` away, and go on in the direction that is better.

    Args:
        first: where to begin.
        step: factor between two values.
        trials: how many to make at most.
        attempt: makes a run with a value.
        rank: of an attempt, lower is better.

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
    """The shortest length of a cycle, in epochs, that arrives at the target: shorter while it does, twice as long if not.

    Args:
        first: where to begin.
        step: factor between a length that arrives and the next one.
        trials: how many to make at most; but the search does not end on a length that is too short.
        longest, shortest: bounds of a length.
        attempt: makes runs of a length, with more than one seed; what comes back is the worst of them.
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
