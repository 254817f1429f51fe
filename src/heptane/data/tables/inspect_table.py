"""Inspect a table: its columns, its labels, and rows that occur more than once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np
from heptane.data.duplicates import count_classes, describe_duplicates, describe_numbers, equal_groups
from heptane.data.tables.read_table import pandas

if TYPE_CHECKING:
    import numpy.typing as npt

    from heptane.data.tables.cells import Cells
    from heptane.data.tables.load_table import OpenTable

MAX_VALUES, MAX_LETTERS = 3, 24


def describe_table(table: OpenTable) -> dict[str, Any]:
    """What a table holds, as a record. Rows are the same if they are equal in all columns that training uses."""
    parts = {part: rows.numpy() for part, rows in table.rows.items()}
    targets, names, index = table.labels.targets.numpy(), table.labels.names, table.frame.index.tolist()
    labels = [names[label] for label in targets.tolist()] if names else targets.tolist()
    used = [cells for column, cells in table.cells.items() if column not in table.out]
    groups = equal_groups(np.stack([_codes(cells) for cells in used], 1)) if used else []
    return {
        "kind": "table",
        "samples": len(table.frame),
        "parts": {part: len(rows) for part, rows in parts.items()},
        "label": table.label,
        "classes": count_classes(parts, targets, names) if names else None,
        "target": None if names else describe_numbers(targets),
        "columns": [_column(column, cells, table.out.get(column)) for column, cells in table.cells.items()],
        "duplicates": describe_duplicates(groups, parts, labels, lambda row: f"row {index[row]}"),
    }


def _column(name: str, cells: Cells, unused: str | None) -> dict[str, Any]:
    present = cells.values[~cells.missing]
    values, counts = np.unique(present.astype(str) if cells.kind == "category" else present, return_counts=True)
    return {
        "name": name,
        "kind": "objects" if cells.kind == "other" else cells.kind,
        "missing": int(cells.missing.sum()),
        "distinct": len(values),
        "values": _shown(cells, values, counts),
        "unused": unused,
    }


def _shown(cells: Cells, values: npt.NDArray[Any], counts: npt.NDArray[Any]) -> str:
    """The range of numbers or dates, or the most frequent categories."""
    if not len(values):
        return ""
    if cells.kind == "date":
        low, high = (str(np.datetime64(int(day // 1), "D")) for day in (values[0], values[-1]))
        return low if low == high else f"{low} to {high}"
    if cells.kind == "number":
        return f"{values[0]:.6g}" if len(values) == 1 else f"{values[0]:.6g} to {values[-1]:.6g}"
    most = [str(value) for value in values[np.argsort(-counts, kind="stable")[:MAX_VALUES]]]
    cut = [value if len(value) <= MAX_LETTERS else f"{value[: MAX_LETTERS - 3]}..." for value in most]
    return ", ".join([*cut, *(["..."] if len(values) > len(most) else [])])


def _codes(cells: Cells) -> npt.NDArray[Any]:
    """A number for each value of a column: equal for equal values, -1 if missing."""
    return np.asarray(pandas().factorize(cells.values)[0], dtype=np.int64)
