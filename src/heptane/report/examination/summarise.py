"""Summarise collected predictions as a record for ``result.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from heptane.base.lazy import np, torch
from heptane.report.examination.collect import Collector

MAX_MATRIX = 100  # classes; above, no confusion matrix is stored
MOST_PAIRS = 15
MOST_POINTS = 400  # of a scatter plot

Record = dict[str, Any]


def summarise(
    collector: Collector,
    names: Sequence[str] = (),
    files: Sequence[str] = (),
    units: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Record | None:
    """The record of an examination; None if nothing was examined.

    Args:
        collector: the collected predictions.
        names: of the classes or target columns; a number stands for a missing name.
        files: of the samples, in order.
        units: converts predictions and targets to the units of the data.
    """
    if not collector.kind or not collector.num_samples:
        return None
    indices, truth, predicted, confidence = collector.all()
    if not len(truth):
        return None
    if units and collector.kind == "numbers":
        truth, predicted = units(truth), units(predicted)
    record: Record = {"kind": collector.kind, "num_samples": len(truth)}
    if collector.kind == "classes":
        record |= _classes(truth.numpy(), predicted.numpy(), fill_names(names, collector.num_classes))
    elif collector.kind == "labels":
        record |= _labels(truth.numpy(), predicted.numpy(), fill_names(names, truth.shape[1]))
    else:
        record |= _numbers(truth.double().numpy(), predicted.double().numpy(), fill_names(names, truth.shape[1]))
    place = {index: at for at, index in enumerate(indices.tolist())}
    record["mistakes"] = [
        {"index": index, **({"file": str(files[index])} if index < len(files) else {})}
        | _answer(collector.kind, truth[place[index]], predicted[place[index]], float(confidence[place[index]]), record)
        for _, index, _ in collector.worst
    ]
    return record


def fill_names(names: Sequence[str], count: int) -> list[str]:
    """``count`` names, with numbers for missing ones.

    Example:
        >>> fill_names(["cat"], 2)
        ['cat', '1']
    """
    return [str(names[at]) if at < len(names) else str(at) for at in range(count)]


def _classes(truth: Any, predicted: Any, names: list[str]) -> Record:
    count = len(names)
    matrix = np.bincount(truth * count + predicted, minlength=count * count) if count <= MAX_MATRIX else None
    wrong = truth != predicted
    counts = (np.bincount(classes, minlength=count) for classes in (truth, truth[~wrong], predicted))
    per_class = _per_class(names, *counts)
    recalls = [row["correct"] / row["count"] for row in per_class if row["count"]]
    pairs, times = np.unique(np.stack([truth[wrong], predicted[wrong]], 1), axis=0, return_counts=True)
    most = sorted(zip(times.tolist(), pairs.tolist(), strict=True), key=lambda found: (-found[0], found[1]))
    return {
        "class_names": names,
        "accuracy": float((~wrong).mean()),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "majority_share": max(row["count"] for row in per_class) / len(truth),
        "num_mistakes": int(wrong.sum()),
        "per_class": per_class,
        "confusion": None if matrix is None else matrix.reshape(count, count).tolist(),
        "confused": [{"true": names[a], "predicted": names[b], "count": n} for n, (a, b) in most[:MOST_PAIRS]],
    }


def _labels(truth: Any, predicted: Any, names: list[str]) -> Record:
    return {
        "class_names": names,
        "accuracy": float((truth == predicted).mean()),
        "num_mistakes": int((truth != predicted).any(1).sum()),
        "per_class": _per_class(names, truth.sum(0), (truth & predicted).sum(0), predicted.sum(0)),
    }


def _per_class(names: list[str], counts: Any, correct: Any, predicted: Any) -> list[Record]:
    keys = ("class", "count", "correct", "predicted")
    columns = (names, counts.tolist(), correct.tolist(), predicted.tolist())
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _numbers(truth: Any, predicted: Any, names: list[str]) -> Record:
    finite = np.isfinite(truth).all(1) & np.isfinite(predicted).all(1)
    left_out, truth, predicted = int((~finite).sum()), truth[finite], predicted[finite]
    columns = []
    for at, name in enumerate(names if len(truth) else []):
        error = predicted[:, at] - truth[:, at]
        spread = float(((truth[:, at] - truth[:, at].mean()) ** 2).mean())
        columns.append(
            {
                "name": name,
                "mean_absolute_error": float(np.abs(error).mean()),
                "root_mean_square_error": math.sqrt(float((error**2).mean())),
                "r2": 1 - float((error**2).mean()) / spread if spread > 0 else None,
                "spread": math.sqrt(spread),
            }
        )
    chosen = np.linspace(0, max(len(truth) - 1, 0), min(len(truth), MOST_POINTS)).round().astype(int)
    points = [[[float(truth[i, at]), float(predicted[i, at])] for i in chosen] for at in range(len(columns))]
    return {"columns": columns, "points": points, "not_finite": left_out}


def _answer(kind: str, truth: torch.Tensor, predicted: torch.Tensor, confidence: float, record: Record) -> Record:
    if kind == "numbers":
        true, found = (part.item() if part.numel() == 1 else part.tolist() for part in (truth, predicted))
        return {"true": true, "predicted": found}
    names = record["class_names"]
    if kind == "classes":
        return {
            "true": names[int(truth)],
            "predicted": names[int(predicted)],
            "probability": confidence if math.isfinite(confidence) else None,
        }
    true, found = ([name for name, yes in zip(names, part.tolist(), strict=True) if yes] for part in (truth, predicted))
    return {"true": true, "predicted": found}
