"""Interpret labels as classes or numbers: guesses are noted, and ambiguous labels are an error that names both readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch
from heptane.data.tables.cells import Cells

if TYPE_CHECKING:
    import numpy.typing as npt

FEW, MANY = 20, 100  # distinct whole numbers: up to FEW are classes, above MANY are for regression
ROWS_PER_CLASS = 5  # on average; whole numbers with fewer are for regression


@dataclass(frozen=True)
class Labels:
    """Targets: int64 class numbers (N,), or float64 numbers (N,) where ``names`` is ()."""

    targets: torch.Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_labels(name: str, cells: Cells, task: str | None) -> Labels:
    """Convert a label column to targets.

    Args:
        name: of the column, for messages.
        cells: the column.
        task: ``classification``, ``regression``, or None to infer it from the values.

    Raises:
        InputError: a label is missing or infinite, or the values are ambiguous or do not match ``task``.
    """
    if cells.kind not in ("number", "category"):
        held = "dates" if cells.kind == "date" else "objects that are neither numbers nor text"
        raise InputError(f"the label {name} holds {held}: expected classes or numbers")
    check_no_missing(name, np.flatnonzero(cells.missing), len(cells.values))
    if cells.kind == "category":
        if task == "regression":
            raise InputError(
                f"task='regression', but the label {name} holds text such as {cells.values[0]!r}: expected numbers"
            )
        return classes_of(name, cells.values)
    if not np.isfinite(cells.values).all():
        row = int(np.flatnonzero(~np.isfinite(cells.values))[0])
        raise InputError(f"the label {name} is {cells.values[row]} in row {row} (the first is 0): expected finite numbers")
    task, note = (task, "") if task else guess_task(name, cells)
    if task == "classification":
        found = classes_of(name, cells.values if cells.note != "booleans" else cells.values.astype(bool))
        return Labels(found.targets, found.names, (note,) if note else ())
    if np.ptp(cells.values) == 0:
        raise InputError(f"the label {name} is {cells.values[0]:g} in every row: there is nothing to learn")
    return Labels(torch.from_numpy(cells.values.copy()), (), (note,) if note else ())


def check_no_missing(name: str, rows: Sequence[int] | npt.NDArray[np.int64], total: int) -> None:
    """Raise :class:`InputError` if a label is missing, in ``rows`` of ``total``."""
    if len(rows):
        raise InputError(
            f"the label {name} is missing in {len(rows)} of {total} rows, first in row {rows[0]} (the first is "
            "row 0): fill it in, or remove these rows"
        )


def guess_task(name: str, cells: Cells) -> tuple[str, str]:
    """Infer classification or regression from numeric labels; return it with a note, or an empty one."""
    unique = np.unique(cells.values)
    count, rows = len(unique), len(cells.values)
    shown = ", ".join(f"{value:g}" for value in unique[:4]) + (", ..." if count > 4 else "")
    if cells.note == "booleans":
        return "classification", ""
    if np.isin(unique, (0, 1)).all():
        return "classification", "" if cells.whole else f"the label {name} is 0.0 or 1.0: treated as two classes"
    if not (unique == np.round(unique)).all() or count > MANY or count * ROWS_PER_CLASS > rows > FEW:
        return "regression", f"the label {name} is numeric with {count} distinct values: regression"
    if cells.whole and count <= FEW:
        return "classification", f"the label {name} is {count} whole numbers ({shown}): treated as classes"
    kind = "whole numbers" if cells.whole else "floats that are whole"
    raise InputError(
        f"the label {name} holds {count} different {kind} ({shown}), which can be {count} classes or regression targets: "
        "choose with --task classification or --task regression (task= in load_data)"
    )


def classes_of(name: str, values: npt.NDArray[Any], rows: int | None = None) -> Labels:
    """Number the distinct values in sorted order; return targets and class names.

    Args:
        name: of the column, for messages.
        values: the labels.
        rows: with these labels; None: one for each.
    """
    rows = len(values) if rows is None else rows
    unique, targets = np.unique(values.astype(str) if values.dtype == object else values, return_inverse=True)
    if len(unique) < 2:
        raise InputError(f"the label {name} is {unique[0]!s} in every row: expected two or more classes")
    if len(unique) > max(FEW, rows // 2):
        raise InputError(
            f"the label {name} has {len(unique)} different values in {rows} rows: classes need several rows each; to "
            "predict numbers, use --task regression (task= in load_data)"
        )
    whole = unique.dtype.kind == "f" and bool((unique == np.round(unique)).all())
    names = tuple(str(int(value)) if whole else str(value) for value in unique.tolist())
    return Labels(torch.from_numpy(targets.astype(np.int64)), names)
