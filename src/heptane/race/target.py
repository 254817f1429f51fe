"""The target of a race, and when a run has reached it.

The first evaluation at the target favours noisy arms: on 30 validation images it comes nearly a third too early. So two
evaluations in a row must be at the target, and the time is interpolated linearly up to the first of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptane.report import format_duration, format_metric, readable_name
from heptane.session.history import Goal, at_target, lower

IN_A_ROW = 2
ENOUGH_ERRORS = 20  # expected validation errors at the target that a verdict needs


@dataclass(frozen=True)
class Reached:
    """Seconds of training to the target; ``between``: its uncertainty in seconds, 0 if interpolated."""

    seconds: float
    between: float = 0.0


def when_reached(history: Sequence[dict[str, Any]], goal: Goal, *, margin: float, whole: bool) -> Reached | None:
    """When the target was reached: the first of two evaluations in a row that are at it.

    Args:
        history: a record per evaluation, with the target's metric and ``train_seconds``.
        goal: the target.
        margin: the target's standard error. The last evaluation of a run, which no other can confirm, counts if it is
            better than the target by this much.
        whole: whether the last record is the end of the planned run.

    Example:
        >>> from heptane.session.history import Goal, lower
        >>> from heptane.race.target import when_reached
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
    """The standard error of an accuracy of ``target``; 0 for other metrics, whose spread is unknown."""
    if metric != "valid_accuracy" or not num_samples:
        return 0.0
    return math.sqrt(target * (1 - target) / num_samples)


def expected_errors(metric: str, target: float | None, num_samples: int | None) -> float:
    """Validation samples that are wrong at the target; infinite for other metrics than accuracy."""
    if target is None or metric != "valid_accuracy" or not num_samples:
        return math.inf
    return num_samples * (1 - target)


def too_few_samples(race: Mapping[str, Any]) -> str:
    """Why there are too few validation samples for a verdict at this target; empty if there are enough."""
    target, count = race["target"], race.get("num_valid")
    errors = expected_errors(target["metric"], target["value"], count)
    if errors >= ENOUGH_ERRORS:
        return ""
    return (
        f"at {goal_text(race)} only about {errors:.0f} of {count} validation samples are wrong, and a verdict needs "
        f"{ENOUGH_ERRORS}: use more validation data or a lower target"
    )


def goal_text(race: Mapping[str, Any]) -> str:
    """The target in a few words: ``91.0%``, ``a validation loss of 0.3``, ``in 60 s of training``."""
    target = race["target"]
    if target["value"] is None:
        return f"in {format_duration(target['seconds'])} of training"
    if target["metric"] == "valid_accuracy":
        return format_metric("accuracy", target["value"])
    return f"a {readable_name(target['metric'])} of {target['value']:g}"


def _interpolated(history: Sequence[dict[str, Any]], index: int, goal: Goal) -> Reached:
    now = history[index]
    before = history[index - 1] if index else {}
    begin = float(before.get("train_seconds", 0.0))
    gained, missing = now[goal.metric] - before.get(goal.metric, math.nan), goal.value - before.get(goal.metric, math.nan)
    if not math.isfinite(gained) or gained == 0:
        return Reached(float(now["train_seconds"]), float(now["train_seconds"]) - begin)
    return Reached(begin + (now["train_seconds"] - begin) * missing / gained)
