"""The top of a run's page: its main metric, and the key figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from heptane.report import (
    MAIN_METRICS,
    epochs_done,
    format_duration,
    format_metric,
    format_percent,
    format_value,
    is_finite,
    main_metric,
    only_column,
    readable_name,
    section,
    target_text,
)
from heptane.report.examination_view import describe_part, is_imbalanced, wilson_interval

Record = Mapping[str, Any]
_FALLBACK = ("train_accuracy", "train_accuracy_mixed", "train_loss")


def subject(result: Record) -> str:
    """Model and data: ``resnet on digits``."""
    model = section(result, "model").get("name") or "the model"
    return f"{model} on {section(result, 'data').get('name') or 'the data'}"


class MainResult(NamedTuple):
    """The main result in large letters, what it is, and on what it was measured."""

    big: str
    what: str
    on: str
    tone: str = ""
    """good, bad, or neither"""
    words: bool = False
    """whether it is no number"""


class Figure(NamedTuple):
    """A key figure."""

    name: str
    value: str
    detail: str = ""
    tone: str = ""


def main_result(result: Record) -> MainResult:
    """The run's main metric; of a regression with one output, the mean absolute error in units of the target."""
    key, value = _main(result)
    if errors := only_column(result):
        words = f"on {describe_part(section(result, 'examination'))}"
        if is_finite(errors["r2"]):
            words += f"; R² {errors['r2']:.3f} (1: perfect; 0: no better than the mean)"
        return MainResult(format_value(errors["mean_absolute_error"]), "mean absolute error", words)
    if key:
        return MainResult(format_metric(key, value), readable_name(key), _measured_on(result, key, value))
    if any(isinstance(v, float) or v is None for v in section(result, "metrics").values()):
        return MainResult("failed", "the loss is not finite", "", "bad", words=True)
    return MainResult("trained", "not evaluated", "", words=True)


def key_figures(result: Record) -> list[Figure]:
    """The other known figures: metrics, times, target."""
    metrics, seconds, seen = section(result, "metrics"), section(result, "seconds"), section(result, "examination")
    main, _ = _main(result)
    found = []
    if is_imbalanced(result) and is_finite(seen.get("balanced_accuracy")):
        found.append(Figure("balanced accuracy", format_percent(seen["balanced_accuracy"]), "mean over classes"))
    for key in MAIN_METRICS:
        of_main_kind = ("accuracy" in key) == ("accuracy" in main)
        if (key != main or only_column(result)) and of_main_kind and is_finite(metrics.get(key)):
            count = section(result, "data").get(f"num_{key.split('_')[0]}")
            detail = f"on {format_value(count)} samples" if count else ""
            found.append(Figure(readable_name(key), format_metric(key, metrics[key]), detail))
    part = main.split("_")[0]
    others = [key for key in metrics if key not in MAIN_METRICS and key.startswith(f"{part}_") and "balanced" not in key]
    found += [Figure(readable_name(key), format_metric(key, metrics[key])) for key in others[:2] if is_finite(metrics[key])]
    done = epochs_done(result)
    if is_finite(seconds.get("train")):
        found.append(Figure("training time", format_duration(seconds["train"]), f"{done:g} epoch{'' if done == 1 else 's'}"))
    if is_finite(seconds.get("wall")):
        found.append(Figure("wall clock", format_duration(seconds["wall"]), "start to end"))
    verdict, target = target_text(result)
    if target:
        found.append(Figure("target", verdict, target, "bad" if verdict == "not reached" else "good"))
    return found


def _main(result: Record) -> tuple[str, Any]:
    """The main metric; where nothing was evaluated, that of the training samples."""
    history = result.get("history") or []
    if not history or any(key in section(result, "metrics") for key in MAIN_METRICS):
        return main_metric(result)
    return next(((key, history[-1][key]) for key in _FALLBACK if is_finite(history[-1].get(key))), ("", None))


def _measured_on(result: Record, key: str, value: float) -> str:
    part, seen = key.split("_")[0], section(result, "examination")
    if part == "train":
        return "on the training samples: there is no validation or test data"
    count = section(result, "data").get(f"num_{part}") or (seen.get("num_samples") if seen.get("part") == part else None)
    words = f"on {format_value(count)} {readable_name(part)} samples" if count else ""
    if count and "accuracy" in key and seen.get("kind", "classes") == "classes" and 0 <= value <= 1:
        low, high = wilson_interval(float(value), int(count))
        words += f"; 95% interval {100 * low:.1f} to {100 * high:.1f}%"
    return words
