"""The top of a run's page: its main metric, and the key figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heptane.report import (
    epochs_done,
    format_duration,
    format_metric,
    format_percent,
    format_value,
    is_finite,
    readable_name,
    section,
    target_text,
)
from heptane.report.examination_view import describe_part, is_imbalanced, wilson_interval

Record = Mapping[str, Any]
ORDER = ("test_accuracy", "valid_accuracy", "test_loss", "valid_loss")
_FALLBACK = ("train_accuracy", "train_accuracy_mixed", "train_loss")


def subject(result: Record) -> str:
    """Model and data: ``resnet on digits``."""
    model = section(result, "model").get("name") or "the model"
    return f"{model} on {section(result, 'data').get('name') or 'the data'}"


def main_result(result: Record) -> dict[str, Any]:
    """The run's main metric, what it is, and what it was measured on."""
    key, value = _main(result)
    error = _error(result)
    if error:
        return error
    if not key:
        failed = any(isinstance(v, float) or v is None for v in section(result, "metrics").values())
        big = "failed" if failed else "trained"
        what = "the loss is not finite" if failed else "not evaluated"
        return {"big": big, "what": what, "on": "", "tone": "bad" if failed else "", "words": True}
    return {
        "big": format_metric(key, value),
        "what": readable_name(key),
        "on": _measured_on(result, key, value),
        "tone": "",
        "words": False,
    }


def _error(result: Record) -> dict[str, Any] | None:
    """For regression with one output: the mean absolute error, in units of the target."""
    seen = section(result, "examination")
    columns = seen.get("columns") or []
    if len(columns) != 1 or not is_finite(columns[0]["mean_absolute_error"]):
        return None
    words = f"on {describe_part(seen)}"
    if is_finite(columns[0]["r2"]):
        words += f"; R² {columns[0]['r2']:.3f} (1: perfect; 0: no better than the mean)"
    return {
        "big": format_value(columns[0]["mean_absolute_error"]),
        "what": "mean absolute error",
        "on": words,
        "tone": "",
        "words": False,
    }


def key_figures(result: Record) -> list[dict[str, str]]:
    """The other known figures: metrics, times, target."""
    metrics, seconds, seen = section(result, "metrics"), section(result, "seconds"), section(result, "examination")
    main, _ = _main(result)
    found = []
    if is_imbalanced(result) and is_finite(seen.get("balanced_accuracy")):
        detail = "mean over classes"
        found.append(_item("balanced accuracy", format_percent(seen["balanced_accuracy"]), detail))
    for key in ORDER:
        of_main_kind = ("accuracy" in key) == ("accuracy" in main)
        if (key != main or _error(result)) and of_main_kind and is_finite(metrics.get(key)):
            count = section(result, "data").get(f"num_{key.split('_')[0]}")
            found.append(
                _item(
                    readable_name(key),
                    format_metric(key, metrics[key]),
                    f"on {format_value(count)} samples" if count else "",
                )
            )
    part = main.split("_")[0]
    others = [key for key in metrics if key not in ORDER and key.startswith(f"{part}_") and "balanced" not in key]
    found += [
        _item(readable_name(key), format_metric(key, metrics[key]), "") for key in others[:2] if is_finite(metrics[key])
    ]
    done = epochs_done(result)
    if is_finite(seconds.get("train")):
        found.append(_item("training time", format_duration(seconds["train"]), f"{done:g} epoch{'' if done == 1 else 's'}"))
    if is_finite(seconds.get("wall")):
        found.append(_item("wall clock", format_duration(seconds["wall"]), "start to end"))
    verdict, target = target_text(result)
    if target:
        found.append(_item("target", verdict, target, "bad" if verdict == "not reached" else "good"))
    return found


def _main(result: Record) -> tuple[str, Any]:
    metrics, history = section(result, "metrics"), result.get("history") or []
    for key in ORDER:
        if is_finite(metrics.get(key)):
            return key, metrics[key]
    if any(key in metrics for key in ORDER) or not history:
        return "", None
    return next(((key, history[-1][key]) for key in _FALLBACK if is_finite(history[-1].get(key))), ("", None))


def _measured_on(result: Record, key: str, value: float) -> str:
    part = key.split("_")[0]
    data = section(result, "data")
    count = data.get(f"num_{part}") or (
        section(result, "examination").get("num_samples") if section(result, "examination").get("part") == part else None
    )
    words = f"on {format_value(count)} {readable_name(part)} samples" if count and part != "train" else ""
    if part == "train":
        return "on the training samples: there is no validation or test data"
    if (
        count
        and "accuracy" in key
        and section(result, "examination").get("kind", "classes") == "classes"
        and 0 <= value <= 1
    ):
        low, high = wilson_interval(float(value), int(count))
        words += f"; 95% interval {100 * low:.1f} to {100 * high:.1f}%"
    return words


def _item(name: str, value: str, detail: str, tone: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail, "tone": tone}
