"""Format a run's result for readers: text and numbers for ``report.html`` and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
MAIN_METRICS = ("test_accuracy", "valid_accuracy", "test_loss", "valid_loss")
"""Those that count, the first one most."""
_WORDS = {
    "train": "training",
    "valid": "validation",
    "num": "number of",
    "cpu": "CPU",
    "gpus": "GPUs",
    "gib": "GiB",
    "lr": "LR",
}


def headline(result: Mapping[str, Any]) -> str:
    """The result of a run in one sentence.

    Example:
        >>> headline({"model": {"name": "resnet"}, "data": {"name": "digits"}, "metrics": {"test_accuracy": 0.926},
        ...           "seconds": {"train": 41.2}, "history": [{"epoch": 1}]})
        'resnet reached 92.6% test accuracy on digits in 41 s of training (1 epoch)'
    """
    model = section(result, "model").get("name") or "the model"
    data = section(result, "data").get("name") or "the data"
    done = epochs_done(result)
    count = f"{done:g} epoch{'' if done == 1 else 's'}"
    train = section(result, "seconds").get("train")
    time = f"in {format_duration(train)} of training ({count})" if is_finite(train) and done else f"({count})"
    key, value = main_metric(result)
    errors = only_column(result)
    if errors:
        gained = f"a mean absolute error of {format_value(errors['mean_absolute_error'])}"
    elif key:
        words = format_metric(key, value)
        gained = f"{words} {readable_name(key)}" if "accuracy" in key else f"a {readable_name(key)} of {words}"
    elif any(isinstance(value, float) and not math.isfinite(value) for value in section(result, "metrics").values()):
        return f"{model} failed on {data}: the loss is not finite ({count})"
    else:
        return f"{model} trained on {data} {time}"
    return f"{model} {'reached' if done else 'has'} {gained} on {data} {time}"


def main_metric(result: Mapping[str, Any]) -> tuple[str, Any]:
    """The name and value of the metric that counts, of those that are finite; empty if none is."""
    metrics = section(result, "metrics")
    return next(((key, metrics[key]) for key in MAIN_METRICS if is_finite(metrics.get(key))), ("", None))


def only_column(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The errors of a regression with one output; empty for other tasks."""
    columns = section(result, "examination").get("columns") or []
    return columns[0] if len(columns) == 1 and is_finite(columns[0]["mean_absolute_error"]) else {}


def section(result: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """``result[key]``, or an empty mapping where it is absent or ``None``."""
    return result.get(key) or {}


def epochs_done(result: Mapping[str, Any]) -> float:
    """Epochs trained so far; a fraction where the run ended within an epoch."""
    history = result.get("history") or []
    counted = history[-1].get("epoch") if history else 0
    return counted if is_finite(counted) else len(history)


def is_finite(value: object) -> bool:
    """Whether ``value`` is a finite number (not a bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def readable_name(key: str) -> str:
    """A key of the result as words: ``valid_accuracy`` becomes ``validation accuracy``."""
    return " ".join(_WORDS.get(word, word) for word in str(key).replace("_", " ").split()) or str(key)


def format_metric(key: str, value: object, decimals: int = 1) -> str:
    """A metric as text: a percentage if its name contains "accuracy", else a number."""
    return format_percent(value, decimals) if "accuracy" in key and is_finite(value) else format_value(value)


def format_percent(value: Any, decimals: int = 1) -> str:
    """A share as a percentage: ``0.926`` becomes ``92.6%``. Only 1 becomes ``100%``: anything less gets more decimals."""
    text = f"{100 * value:.{decimals}f}"
    while float(text) == 100 and value < 1 and decimals < 6:
        decimals += 1
        text = f"{100 * value:.{decimals}f}"
    return f"{text}%"


def format_duration(seconds: Any) -> str:
    """Seconds as text: ``1.4 ms``, ``0.42 s``, ``4.2 s``, ``41 s``, ``3 min 05 s``, ``1 h 04 min``."""
    if not is_finite(seconds):
        return MISSING
    if 0 < seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_value(value: object) -> str:
    """Any value of the result as short text: four digits of a float, yes or no, lists joined by commas."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return settings_text(value) or MISSING
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value) or MISSING
    return str(value)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line: ``alpha 0.2, per batch yes``."""
    return ", ".join(f"{readable_name(key)} {format_value(value)}" for key, value in settings.items())


def target_text(result: Mapping[str, Any]) -> tuple[str, str]:
    """Whether the target was reached, and the target: ``("reached in 37 s", "validation accuracy 92.0%")``."""
    target = section(result, "target")
    if not target:
        return "none set", ""
    metric = str(target.get("metric") or "metric")
    reached = target.get("reached_seconds")
    verdict = "not reached" if reached is None else f"reached in {format_duration(reached)}"
    return verdict, f"{readable_name(metric)} {format_metric(metric, target.get('value'))}"
