"""What one run counts as in the statistics of a race, and what two paired runs say of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptane.race.attempt import DONE, FAILED, MISSED, REACHED, STOPPED

ARRIVED, MISSED_IT, CUT, UNKNOWN = "arrived", "missed it", "cut", "unknown"


@dataclass(frozen=True)
class Outcome:
    """One run as the statistics see it.

    ``cost`` is the logarithm of the seconds to the target, or minus the accuracy; of a run that was cut, the least that it
    can be. ``grid`` is the variance of ``cost`` that comes from the time between two evaluations; 0 if interpolated.
    """

    kind: str
    cost: float = math.nan
    grid: float = 0.0


NOT_KNOWN, DID_NOT_ARRIVE = Outcome(UNKNOWN), Outcome(MISSED_IT)
Table = Mapping[str, Sequence[Outcome]]
"""Per arm, the outcome of each seed."""


def arrived_after(seconds: float, between: float = 0.0) -> Outcome:
    """A run that reached the target; ``between`` are the seconds within which it did, 0 where that is interpolated.

    Example:
        >>> from heptane.race.outcomes import arrived_after
        >>> arrived_after(1.0)
        Outcome(kind='arrived', cost=0.0, grid=0.0)
    """
    return Outcome(ARRIVED, math.log(seconds), (between / seconds) ** 2 / 12)  # the variance of a uniform distribution


def outcome_of(run: Mapping[str, Any] | None, timed: bool) -> Outcome:
    """What a run of ``race.json`` counts as.

    A run that trained its whole plan in vain, and one that failed, did not arrive. One that was stopped for being slower has
    its time as a bound. What was never run, was refused or was cut off by the budget is not known.
    """
    status = run["status"] if run else UNKNOWN
    if run is None or status not in (REACHED, MISSED, STOPPED, FAILED, DONE):
        return NOT_KNOWN
    if not timed:
        return Outcome(ARRIVED, -float(run["best"])) if status == DONE and run["best"] is not None else DID_NOT_ARRIVE
    if status == REACHED and run["seconds"] > 0:
        return arrived_after(float(run["seconds"]), float(run.get("between") or 0.0))
    if status == STOPPED and run["clocks"].get("train", 0.0) > 0:
        return Outcome(CUT, math.log(run["clocks"]["train"]))
    return DID_NOT_ARRIVE


def difference(without: Outcome, with_it: Outcome) -> tuple[float, float] | None:
    """Between which two numbers cost without - cost with lies; None where the pair says nothing.

    A run that did not arrive is infinitely late; of two that did not, nothing is known.

    Example:
        >>> from heptane.race.outcomes import DID_NOT_ARRIVE, Outcome, difference
        >>> difference(Outcome("arrived", 3.0), Outcome("arrived", 2.0)), difference(Outcome("arrived", 3.0), DID_NOT_ARRIVE)
        ((1.0, 1.0), (-inf, -inf))
        >>> difference(Outcome("arrived", 3.0), Outcome("cut", 3.5))
        (-inf, -0.5)
    """
    match without.kind, with_it.kind:
        case ("arrived", "arrived"):
            exact = without.cost - with_it.cost
            return exact, exact
        case ("arrived", "missed it"):
            return -math.inf, -math.inf
        case ("missed it", "arrived"):
            return math.inf, math.inf
        case ("arrived", "cut"):
            return -math.inf, without.cost - with_it.cost
        case ("cut", "arrived"):
            return without.cost - with_it.cost, math.inf
    return None
