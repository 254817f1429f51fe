"""When a run of a race has reached its target.

The first evaluation at the target flatters the arm whose evaluations vary most: on 30 validation images it is nearly a third
too early. So two in a row must be there, and the time is read off the line to the first of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heptane.session.history import Goal, at_target, lower

IN_A_ROW = 2
ENOUGH_ERRORS = 20  # expected at the target, of a validation set: with fewer, a time to the target says little


@dataclass(frozen=True)
class Reached:
    """``seconds`` of training to the target; ``between`` are those within which it came, 0 where they are interpolated."""

    seconds: float
    between: float = 0.0


def when_reached(history: Sequence[dict[str, Any]], goal: Goal, *, margin: float, whole: bool) -> Reached | None:
    """When the target was reached: at the first of two evaluations in a row that are at it.

    Args:
        history: a record per evaluation, with the target's metric and ``train_seconds``.
        goal: the target.
        margin: its standard error. On the last evaluation of a run, which none can confirm, one suffices at the target
            and so much more.
        whole: the last record is the end of the planned run.

    Example:
        >>> from heptane.session.history import Goal, lower
        >>> from heptane.race.reaching import when_reached
        >>> history = [{"valid_accuracy": a, "train_seconds": s} for a, s in ((0.7, 10.0), (0.9, 20.0), (0.85, 30.0))]
        >>> when_reached(history, Goal("valid_accuracy", 0.8), margin=0.02, whole=False)
        Reached(seconds=15.0, between=0.0)
    """
    at = [at_target(goal, record) for record in history]
    for index in range(len(history)):
        if all(at[index : index + IN_A_ROW]) and index + IN_A_ROW <= len(at):
            return _interpolated(history, index, goal)
    if whole and at and at[-1]:
        raised = goal.value - margin if lower(goal) else goal.value + margin
        if at_target(goal._replace(value=raised), history[-1]):
            return _interpolated(history, len(history) - 1, goal)
    return None


def standard_error(metric: str, target: float, num_samples: int | None) -> float:
    """Of an accuracy that is ``target``, on so many samples; 0 of other metrics, whose spread is not known beforehand."""
    if metric != "valid_accuracy" or not num_samples:
        return 0.0
    return math.sqrt(target * (1 - target) / num_samples)


def expected_errors(metric: str, target: float | None, num_samples: int | None) -> float:
    """How many validation samples are wrong at the target; infinite where that has no meaning."""
    if target is None or metric != "valid_accuracy" or not num_samples:
        return math.inf
    return num_samples * (1 - target)


def _interpolated(history: Sequence[dict[str, Any]], index: int, goal: Goal) -> Reached:
    now = history[index]
    before = history[index - 1] if index else {}
    begin = float(before.get("train_seconds", 0.0))
    gained, missing = now[goal.metric] - before.get(goal.metric, math.nan), goal.value - before.get(goal.metric, math.nan)
    if not math.isfinite(gained) or gained == 0:
        return Reached(float(now["train_seconds"]), float(now["train_seconds"]) - begin)
    return Reached(begin + (now["train_seconds"] - begin) * missing / gained)
