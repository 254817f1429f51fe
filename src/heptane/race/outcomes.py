"""Runs of a race as observations for its statistics, and the difference of two paired runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptane.race.attempt import DONE, FAILED, MISSED, REACHED, STOPPED

ARRIVED, NOT_ARRIVED, CENSORED, UNKNOWN = "arrived", "not arrived", "censored", "unknown"


@dataclass(frozen=True)
class Outcome:
    """One run as an observation.

    ``cost`` is the log of the seconds to the target, or minus the accuracy; for a censored run it is a lower bound.
    ``grid`` is the variance of ``cost`` due to the time between two evaluations; 0 if interpolated.
    """

    kind: str
    cost: float = math.nan
    grid: float = 0.0


NOT_KNOWN, NOT_REACHED = Outcome(UNKNOWN), Outcome(NOT_ARRIVED)
Table = Mapping[str, Sequence[Outcome]]
"""Per arm, an outcome per seed."""


def reached_after(seconds: float, between: float = 0.0) -> Outcome:
    """The outcome of a run that reached the target; ``between``: uncertainty in seconds, 0 if interpolated.

    Example:
        >>> from heptane.race.outcomes import reached_after
        >>> reached_after(1.0)
        Outcome(kind='arrived', cost=0.0, grid=0.0)
    """
    return Outcome(ARRIVED, math.log(seconds), (between / seconds) ** 2 / 12)  # the variance of a uniform distribution


def outcome_of(run: Mapping[str, Any] | None, timed: bool) -> Outcome:
    """The outcome of a run of ``race.json``.

    A run that missed the target or failed did not arrive. A run stopped for being slower is censored at its time. A run
    that was never run, was refused or was ended by the budget is unknown.
    """
    status = run["status"] if run else UNKNOWN
    if run is None or status not in (REACHED, MISSED, STOPPED, FAILED, DONE):
        return NOT_KNOWN
    if not timed:
        return Outcome(ARRIVED, -float(run["best"])) if status == DONE and run["best"] is not None else NOT_REACHED
    if status == REACHED and run["seconds"] > 0:
        return reached_after(float(run["seconds"]), float(run.get("between") or 0.0))
    if status == STOPPED and run["clocks"].get("train", 0.0) > 0:
        return Outcome(CENSORED, math.log(run["clocks"]["train"]))
    return NOT_REACHED


def difference(without: Outcome, with_it: Outcome) -> tuple[float, float] | None:
    """Bounds on the cost without the trick minus the cost with it; None if nothing is known.

    A run that did not arrive is infinitely late; of two such runs, nothing is known.

    Example:
        >>> from heptane.race.outcomes import NOT_REACHED, Outcome, difference
        >>> difference(Outcome("arrived", 3.0), Outcome("arrived", 2.0)), difference(Outcome("arrived", 3.0), NOT_REACHED)
        ((1.0, 1.0), (-inf, -inf))
        >>> difference(Outcome("arrived", 3.0), Outcome("censored", 3.5))
        (-inf, -0.5)
    """
    match without.kind, with_it.kind:
        case ("arrived", "arrived"):
            exact = without.cost - with_it.cost
            return exact, exact
        case ("arrived", "not arrived"):
            return -math.inf, -math.inf
        case ("not arrived", "arrived"):
            return math.inf, math.inf
        case ("arrived", "censored"):
            return -math.inf, without.cost - with_it.cost
        case ("censored", "arrived"):
            return without.cost - with_it.cost, math.inf
    return None
