"""Evaluate a run's history: whether the target is reached, the best evaluation, divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from heptane.base.errors import InputError, check_choice, check_range
from heptane.core.metric_direction import WAYS, direction, lower_is_better

DIVERGED = 0.5  # warn if the loss rose by this share of its earlier fall, and doubled


class Goal(NamedTuple):
    """A target: a run stops after ``in_a_row`` consecutive evaluations at ``value`` or better."""

    metric: str
    value: float
    in_a_row: int = 1
    lower: bool | None = None
    """whether less of the metric is better; None: by its name"""


Records = Sequence[dict[str, Any]]


def check_target(target: Any, valid: Any, metrics: dict[str, Any] | None) -> Goal | None:
    """The target as a :class:`Goal`; refuse one that cannot be compared."""
    if target is None or isinstance(target, Goal):
        return target
    pair = tuple(target) if isinstance(target, (tuple, list)) else ("valid_accuracy", target)
    if len(pair) not in (2, 3) or not isinstance(pair[0], str):
        raise InputError(f"target={target!r}: expected an accuracy such as 0.9, or a pair such as ('valid_loss', 0.3)")
    (metric, value), way = pair[:2], (pair[2] if len(pair) == 3 else None)
    known = ["valid_accuracy", "valid_balanced_accuracy", "valid_loss", *(f"valid_{name}" for name in metrics or {})]
    check_choice("target metric", metric, known)
    if valid is None:
        raise InputError(f"target={value!r} needs validation data, and there is none: pass valid")
    check_range("target", value, *((0, 1) if metric == "valid_accuracy" else ()))
    if way is None:
        way = direction(metric, (metrics or {}).get(metric.removeprefix("valid_")))
    check_choice("target's direction", way, WAYS)
    return Goal(metric, float(value), lower=way == "min")


def reached(history: Records, goal: Goal | None) -> float | None:
    """Training seconds at which the target was reached; None if it was not, or there is none.

    If several evaluations in a row are required, it is the time of the first.
    """
    if goal is None:
        return None
    at = [at_target(goal, record) for record in history]
    first = next((i for i in range(len(at) - goal.in_a_row + 1) if all(at[i : i + goal.in_a_row])), None)
    return None if first is None else float(history[first]["train_seconds"])


def best_step(history: Records, goal: Goal | None) -> int | None:
    """The step of the best evaluation so far, of equal ones the last; None if no evaluation is finite."""
    best = best_record(history, goal)
    return None if best is None else int(best["step"])


def best_record(history: Records, goal: Goal | None) -> dict[str, Any] | None:
    """The record of the best evaluation so far by :func:`best_metric`; of equal ones the last."""
    metric, best = best_metric(history, goal), None
    for record in history:
        value = record.get(metric, math.nan)
        if math.isnan(record.get("valid_loss", 0.0)):
            continue  # the outputs for some samples are not finite
        if math.isfinite(value) and (best is None or not _better(metric, goal, best[metric], value)):
            best = record
    return best


def best_metric(history: Records, goal: Goal | None) -> str:
    """The metric that ranks evaluations: the target's, else ``valid_accuracy``, else ``valid_loss``."""
    metric = goal[0] if goal else "valid_accuracy"
    return metric if any(metric in record for record in history) else "valid_loss"


def since_better(history: Records, goal: Goal | None) -> int:
    """The number of evaluations since the last improvement."""
    metric, best, count = best_metric(history, goal), math.nan, 0
    for record in history:
        value, count = record.get(metric, math.nan), count + 1
        if math.isfinite(value) and (math.isnan(best) or _better(metric, goal, value, best)):
            best, count = value, 0
    return count


def _better(metric: str, goal: Goal | None, one: float, other: float) -> bool:
    less = lower_is_better(metric, goal.lower if goal and goal.metric == metric else None)
    return one < other if less else one > other


def lower(goal: Goal) -> bool:
    """Whether less of a goal's metric is better."""
    return lower_is_better(goal.metric, goal.lower)


def divergence(history: Records, record: dict[str, Any]) -> str:
    """A warning if the training loss of ``record`` is far above its minimum; else empty."""
    losses = [(r["train_loss"], r["epoch"]) for r in history if math.isfinite(r.get("train_loss", math.nan))]
    if not losses:
        return ""
    (best, when), now = min(losses), record["train_loss"]
    if now <= best + max(abs(best), DIVERGED * (losses[0][0] - best)):
        return ""
    return (
        f"diverging: the training loss is {now:.3g} at epoch {record['epoch']}, after {best:.3g} at epoch {when}: "
        f"lower the learning rate (now {record['learning_rate']:.3g})"
    )


def at_target(goal: Goal, record: dict[str, Any]) -> bool:
    """Whether one evaluation is at the target or better."""
    metric, value = goal.metric, goal.value
    if metric not in record:
        known = ", ".join(key for key in record if key.startswith("valid_"))
        raise InputError(f"target metric {metric!r} is not measured here: this run measures {known}")
    return bool(record[metric] <= value if lower(goal) else record[metric] >= value)
