"""Split samples by a seed, stratified by class; report rare and imbalanced classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch

BALANCED = 3.0  # largest ratio of class sizes at which plain accuracy still reflects the smallest class


def split(groups: Sequence[int], shares: Sequence[float], seed: int) -> list[torch.Tensor]:
    """Split samples at random into a rest and one part per share; a seed gives the same split on every machine.

    Every group of two or more has a sample in the rest and in the last part, which is for validation, before the other parts
    get any. With many small groups the last part is larger than its share.

    Args:
        groups: sizes of the groups of consecutive samples, such as classes, by which the split is stratified.
        shares: each part's fraction of all samples, in (0, 1).
        seed: of the split.

    Returns:
        Sorted int64 indices of the rest, then of each part. Every group has at least one sample in the rest.

    Raises:
        InputError: a part, or a group's rest, would be empty.
    """
    random = np.random.RandomState(seed)  # NumPy guarantees this legacy generator's stream (NEP 19)
    parts: list[list[Any]] = [[] for _ in range(len(shares) + 1)]
    filled = [0] * len(parts)
    starts = np.cumsum([0, *groups]).tolist()
    start = 0
    for index in sorted(range(len(groups)), key=lambda index: groups[index]):  # large groups last, to reach the counts
        size = groups[index]
        order = random.permutation(size) + starts[index]
        start += size
        for number, share in enumerate(shares, 1):
            is_last = number == len(shares)
            kept = 1 if is_last else 2  # one to train on, one to validate on
            count = max(0, min(round(start * share) - filled[number], len(order) - kept))
            count = 1 if is_last and count == 0 and len(order) > 1 and len(groups) > 1 else count
            parts[number].append(order[:count])
            filled[number] += count
            order = order[count:]
        parts[0].append(order)
    wanted = [round(start * share) for share in shares]
    if min(wanted) < 1 or any(have < least for have, least in zip(filled[1:], wanted, strict=True)):
        cut = " + ".join(f"{share:.4g}" for share in shares)
        raise InputError(
            f"setting aside {cut} of {start} samples leaves a part, or a class of the training part, empty: change "
            "valid_fraction or give more data"
        )
    return [torch.from_numpy(np.sort(np.concatenate([np.empty(0, dtype=np.int64), *part]))) for part in parts]


def split_by_class(targets: torch.Tensor, shares: Sequence[float], seed: int) -> list[torch.Tensor]:
    """:func:`split` stratified by class, for samples in any order; regression targets are one group.

    Example:
        >>> rest, valid = split_by_class(torch.tensor([0, 1, 0, 0, 1, 0]), [0.4], seed=0)
        >>> rest.tolist(), valid.tolist()
        ([0, 1, 2, 5], [3, 4])
    """
    if targets.is_floating_point() or targets.ndim != 1:
        return split([len(targets)], shares, seed)
    order = torch.argsort(targets, stable=True)
    parts = split(torch.bincount(targets).tolist(), shares, seed)
    return [order[part].sort().values for part in parts]


def out_of_balance(counts: Sequence[int], names: Sequence[str] = ()) -> list[str]:
    """Return notes on imbalanced classes and on classes with one sample.

    Args:
        counts: samples per class, in all parts that were split.
        names: of the classes.

    Example:
        >>> [note.split("; ")[0] for note in out_of_balance([150, 60, 2], ["A", "B", "Z"])]
        ["classes are imbalanced: 'A' has 150 samples, 'Z' 2"]
    """
    called = [repr(name) for name in names] if names else [f"class {index}" for index in range(len(counts))]
    there = [(count, name) for count, name in zip(counts, called, strict=True) if count]
    notes = []
    if len(there) > 1:
        (most, large), (least, small) = max(there, key=lambda one: one[0]), min(there, key=lambda one: one[0])
        if most > BALANCED * least:
            both = f"{large} has {most} samples, {small} {least}"
            notes.append(
                f"classes are imbalanced: {both}; balanced accuracy is shown beside accuracy; --sampling balanced or "
                "--class-weights balanced (in Python hp.Extras) makes rare classes count as much"
            )
    if single := [name for count, name in there if count == 1]:
        named = ", ".join(single[:8]) + (f" and {len(single) - 8} more" if len(single) > 8 else "")
        notes.append(f"{named}: only one sample, used for training, so the validation and test parts have none")
    return notes
