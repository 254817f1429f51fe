"""What a pass over data came to, as a record for ``result.json``: pure functions of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from heptane.base.lazy import np, torch
from heptane.report.examination.collect import Collector

MAX_MATRIX = 100  # classes, up to which the whole confusion matrix is kept
MOST_PAIRS = 15
MOST_POINTS = 400  # of a scatter

Record = dict[str, Any]


def summarise(
    collector: Collector,
    names: Sequence[str] = (),
    files: Sequence[str] = (),
    units: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Record | None:
    """The record of an examination, or None where there was nothing to examine.

    Args:
        collector: what a pass kept.
        names: of the classes or of the columns that are predicted; numbers stand for those that have none.
        files: of the samples, in order.
        units: from numbers as the model has them to numbers as the data had them.
    """
    if not collector.kind or not collector.num_samples:
        return None
    indices, truth, guess, sure = collector.all()
    if not len(truth):
        return None
    if units and collector.kind == "numbers":
        truth, guess = units(truth), units(guess)
    record: Record = {"kind": collector.kind, "num_samples": len(truth)}
    if collector.kind == "classes":
        record |= _classes(truth.numpy(), guess.numpy(), called(names, collector.num_classes))
    elif collector.kind == "labels":
        record |= _labels(truth.numpy(), guess.numpy(), called(names, truth.shape[1]))
    else:
        record |= _numbers(truth.double().numpy(), guess.double().numpy(), called(names, truth.shape[1]))
    place = {index: at for at, index in enumerate(indices.tolist())}
    record["mistakes"] = [
        {"index": index, **({"file": str(files[index])} if index < len(files) else {})}
        | _answer(collector.kind, truth[place[index]], guess[place[index]], float(sure[place[index]]), record)
        for _, index, _ in collector.worst
    ]
    return record


def called(names: Sequence[str], count: int) -> list[str]:
    """``count`` names; a number where there is none.

    Example:
        >>> called(["cat"], 2)
        ['cat', '1']
    """
    return [str(names[at]) if at < len(names) else str(at) for at in range(count)]


def _classes(truth: Any, guess: Any, names: list[str]) -> Record:
    count = len(names)
    matrix = np.bincount(truth * count + guess, minlength=count * count) if count <= MAX_MATRIX else None
    per_class: list[Record] = [
        {"class": name, "count": int(has), "correct": int(right), "predicted": int(said)}
        for name, has, right, said in zip(
            names,
            np.bincount(truth, minlength=count),
            np.bincount(truth[truth == guess], minlength=count),
            np.bincount(guess, minlength=count),
            strict=True,
        )
    ]
    recalls = [row["correct"] / row["count"] for row in per_class if row["count"]]
    wrong = truth != guess
    pairs, times = np.unique(np.stack([truth[wrong], guess[wrong]], 1), axis=0, return_counts=True)
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


def _labels(truth: Any, guess: Any, names: list[str]) -> Record:
    rows = []
    for at, name in enumerate(names):
        has, said = truth[:, at], guess[:, at]
        rows.append(
            {"class": name, "count": int(has.sum()), "correct": int((has & said).sum()), "predicted": int(said.sum())}
        )
    return {
        "class_names": names,
        "accuracy": float((truth == guess).mean()),
        "num_mistakes": int((truth != guess).any(1).sum()),
        "per_class": rows,
    }


def _numbers(truth: Any, guess: Any, names: list[str]) -> Record:
    finite = np.isfinite(truth).all(1) & np.isfinite(guess).all(1)
    left_out, truth, guess = int((~finite).sum()), truth[finite], guess[finite]
    columns = []
    for at, name in enumerate(names if len(truth) else []):
        error = guess[:, at] - truth[:, at]
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
    points = [[[float(truth[i, at]), float(guess[i, at])] for i in chosen] for at in range(len(columns))]
    return {"columns": columns, "points": points, "not_finite": left_out}


def _answer(kind: str, truth: torch.Tensor, guess: torch.Tensor, sure: float, record: Record) -> Record:
    if kind == "numbers":
        one = truth.numel() == 1
        return {"true": truth.item() if one else truth.tolist(), "predicted": guess.item() if one else guess.tolist()}
    names = record["class_names"]
    if kind == "classes":
        return {
            "true": names[int(truth)],
            "predicted": names[int(guess)],
            "probability": sure if math.isfinite(sure) else None,
        }
    said = ([name for name, yes in zip(names, part.tolist(), strict=True) if yes] for part in (truth, guess))
    return dict(zip(("true", "predicted"), said, strict=True))
