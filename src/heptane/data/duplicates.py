"""Samples of a data set that are the same: across its parts, under different labels, or within a part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt

ACROSS, RELABELLED, WITHIN = "across parts", "different labels", "within a part"


def equal_groups(keys: npt.NDArray[Any]) -> list[list[int]]:
    """The positions of equal rows, for each row that occurs more than once.

    Args:
        keys: a checksum of each sample: (N,) or (N, K).

    Example:
        >>> equal_groups(np.array([7, 3, 7, 5, 3]))
        [[0, 2], [1, 4]]
    """
    _, codes, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    codes = codes.reshape(-1)
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.cumsum(counts)[:-1])
    return sorted(group.tolist() for group in groups if len(group) > 1)


def describe_duplicates(
    groups: Iterable[Sequence[int]],
    parts: dict[str, npt.NDArray[np.int64]],
    labels: Sequence[Any],
    name: Callable[[int], str],
) -> dict[str, Any]:
    """The groups as a record, those that reach across parts first.

    Args:
        groups: numbers of samples that are the same.
        parts: the numbers of the samples of each part.
        labels: of each sample, by number.
        name: the name of a sample.

    Returns:
        ``samples``: how many belong to a group; ``in_training``: of each other part, how many are also in training;
        ``different_labels``: groups with several labels; ``within_a_part``: groups with two samples in one part;
        ``groups``: each with its ``kinds`` and ``samples``.
    """
    home = {int(number): part for part, numbers in parts.items() for number in numbers}
    found = list[dict[str, Any]]()
    leaked = {part: 0 for part in parts if part != "train"}
    for group in groups:
        samples = [{"name": name(n), "part": home[n], "label": labels[n]} for n in group if n in home]
        if len(samples) < 2:
            continue
        homes = [sample["part"] for sample in samples]
        kinds = [ACROSS] if len(set(homes)) > 1 else []
        kinds += [RELABELLED] if len({sample["label"] for sample in samples}) > 1 else []
        kinds += [WITHIN] if len(set(homes)) < len(homes) else []
        for part in leaked:
            leaked[part] += homes.count(part) if "train" in homes else 0
        found.append({"kinds": kinds, "samples": samples})
    found.sort(key=lambda group: (ACROSS not in group["kinds"], RELABELLED not in group["kinds"]))
    return {
        "samples": sum(len(group["samples"]) for group in found),
        "in_training": leaked,
        "across_parts": sum(ACROSS in group["kinds"] for group in found),
        "different_labels": sum(RELABELLED in group["kinds"] for group in found),
        "within_a_part": sum(WITHIN in group["kinds"] for group in found),
        "groups": found,
    }


def count_classes(
    parts: dict[str, npt.NDArray[np.int64]], labels: npt.NDArray[Any], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The number of samples of each class in each part; labels are class numbers (N,), or 0 and 1 for each class (N, K).

    Example:
        >>> count_classes({"train": np.array([0, 1, 2])}, np.array([1, 0, 1]), ["a", "b"])
        [{'name': 'a', 'train': 1}, {'name': 'b', 'train': 2}]
    """

    def count(chosen: npt.NDArray[Any]) -> list[int]:
        found = np.bincount(chosen, minlength=len(classes)) if chosen.ndim == 1 else (chosen > 0).sum(0)
        return [int(number) for number in found]

    counts = {part: count(labels[numbers]) for part, numbers in parts.items()}
    return [{"name": name, **{part: counts[part][at] for part in parts}} for at, name in enumerate(classes)]


def describe_numbers(values: npt.NDArray[Any]) -> dict[str, float]:
    """The range and the mean of numbers to predict.

    Example:
        >>> describe_numbers(np.array([1.0, 2.0, 6.0]))
        {'min': 1.0, 'mean': 3.0, 'max': 6.0}
    """
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}
