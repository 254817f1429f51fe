"""The top of a run's page: one large number, what it was measured on, and the few figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heptane.report import duration, epochs_done, figure, is_finite, label, measure, percent, section, target_text
from heptane.report.results import interval, out_of_balance, part_text

Record = Mapping[str, Any]
ORDER = ("test_accuracy", "valid_accuracy", "test_loss", "valid_loss")
_FALLBACK = ("train_accuracy", "train_accuracy_mixed", "train_loss")


def subject(result: Record) -> str:
    """What was trained on what: ``resnet on digits``."""
    model = section(result, "model").get("name") or "the model"
    return f"{model} on {section(result, 'data').get('name') or 'the data'}"


def hero(result: Record) -> dict[str, Any]:
    """The large number, what it is, and what it was measured on."""
    key, value = _main(result)
    error = _error(result)
    if error:
        return error
    if not key:
        failed = any(isinstance(v, float) or v is None for v in section(result, "metrics").values())
        big = "failed" if failed else "trained"
        what = "the loss is not a number" if failed else "without an evaluation"
        return {"big": big, "what": what, "on": "", "tone": "bad" if failed else "", "words": True}
    return {
        "big": measure(key, value),
        "what": _named(key),
        "on": _measured_on(result, key, value),
        "tone": "",
        "words": False,
    }


def _error(result: Record) -> dict[str, Any] | None:
    """Of a regression with one number per sample: by how much it is off, in the units of the target."""
    seen = section(result, "examination")
    columns = seen.get("columns") or []
    if len(columns) != 1 or not is_finite(columns[0]["mean_absolute_error"]):
        return None
    words = f"on {part_text(seen)}"
    if is_finite(columns[0]["r2"]):
        words += f"; R² {columns[0]['r2']:.3f} (1 is perfect, 0 is predicting the mean)"
    return {
        "big": figure(columns[0]["mean_absolute_error"]),
        "what": "mean absolute error",
        "on": words,
        "tone": "",
        "words": False,
    }


def glance(result: Record) -> list[dict[str, str]]:
    """The other figures that are known: quality, time, target. What is not there is not shown."""
    metrics, seconds, seen = section(result, "metrics"), section(result, "seconds"), section(result, "examination")
    main, _ = _main(result)
    found = []
    if out_of_balance(result) and is_finite(seen.get("balanced_accuracy")):
        detail = "each class counts the same"
        found.append(_item("balanced accuracy", percent(seen["balanced_accuracy"]), detail))
    for key in ORDER:
        of_main_kind = ("accuracy" in key) == ("accuracy" in main)
        if (key != main or _error(result)) and of_main_kind and is_finite(metrics.get(key)):
            count = section(result, "data").get(f"num_{key.split('_')[0]}")
            found.append(_item(_named(key), measure(key, metrics[key]), f"on {figure(count)} samples" if count else ""))
    part = main.split("_")[0]
    others = [key for key in metrics if key not in ORDER and key.startswith(f"{part}_") and "balanced" not in key]
    found += [_item(label(key), measure(key, metrics[key]), "") for key in others[:2] if is_finite(metrics[key])]
    done = epochs_done(result)
    if is_finite(seconds.get("train")):
        found.append(_item("training", duration(seconds["train"]), f"{done:g} epoch{'' if done == 1 else 's'}"))
    if is_finite(seconds.get("wall")):
        found.append(_item("wall clock", duration(seconds["wall"]), "from start to end"))
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


def _named(key: str) -> str:
    part, _, rest = key.partition("_")
    return f"{ {'train': 'training'}.get(part, label(part)) } {label(rest)}"


def _measured_on(result: Record, key: str, value: float) -> str:
    part = key.split("_")[0]
    data = section(result, "data")
    count = data.get(f"num_{part}") or (
        section(result, "examination").get("num_samples") if section(result, "examination").get("part") == part else None
    )
    words = f"on {figure(count)} {label(part)} samples" if count and part != "train" else ""
    if part == "train":
        return "on the samples that it was trained on: how it does on new ones is not known"
    if (
        count
        and "accuracy" in key
        and section(result, "examination").get("kind", "classes") == "classes"
        and 0 <= value <= 1
    ):
        low, high = interval(float(value), int(count))
        words += f"; 95% interval {100 * low:.1f} to {100 * high:.1f}%"
    return words


def _item(name: str, value: str, detail: str, tone: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail, "tone": tone}
