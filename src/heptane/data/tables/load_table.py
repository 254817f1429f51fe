"""Load a table as a dataset: one column is the label, the others become features learned on the training rows.

The rows are split by a seed, 80/10/10, stratified by class. A numeric label is standardized for training, and predictions
are converted back to its units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from heptane.base.errors import InputError, did_you_mean
from heptane.base.lazy import np, torch
from heptane.base.memory import check_memory
from heptane.data.dataset import Data
from heptane.data.preprocess import Preprocess, TargetScale, is_path
from heptane.data.splits import out_of_balance, split_by_class
from heptane.data.tables.cells import Cells, comma_of, read_cells
from heptane.data.tables.columns import Column, learn, reason_unused
from heptane.data.tables.labels import Labels, read_labels
from heptane.data.tables.read_table import read_table

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("label", "target", "class", "y")
MAX_NAMED = 8


@dataclass(frozen=True)
class TablePreprocess(Preprocess):
    """A table's rows as float32 (N, F).

    Args:
        label: name of the label column, which new data need not have.
        columns: the encoding of each column in use.
        comma: meaning of a comma in numbers, if a column is ambiguous.
        target: scale of the label, for regression; None for classes.
    """

    kind: ClassVar[str] = "table"
    label: str
    columns: tuple[Column, ...]
    comma: str | None = None
    target: TargetScale | None = None

    @property
    def features(self) -> list[str]:
        """A name for each of the F inputs."""
        return [name for column in self.columns for name in column.features]

    def record(self) -> dict[str, Any]:
        target = None if self.target is None else self.target.record()
        about = {"kind": self.kind, "label": self.label, "comma": self.comma, "target": target}
        return {**about, "columns": [column.record() for column in self.columns], "features": self.features}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> TablePreprocess:
        """Rebuild from :meth:`record`."""
        columns = tuple(Column.parse(column) for column in record["columns"])
        return cls(str(record["label"]), columns, record["comma"], TargetScale.parse(record["target"]))

    def inputs(self, source: Any) -> tuple[list[str], torch.Tensor]:
        """Return names (of the frame's index) and inputs of rows.

        Args:
            source: a CSV, TSV or Parquet file, a pandas or polars frame, a list of dicts or a dict. Columns are matched by
                name; those that training did not use may be missing.
        """
        frame, _ = read_table(source)
        self._check_columns(frame)
        cells = {column.name: self._read(column, frame[column.name]) for column in self.columns}
        return [str(index) for index in frame.index], self.apply(cells)

    def apply(self, cells: Mapping[str, Cells]) -> torch.Tensor:
        """Encode parsed columns as inputs, float32 (N, F)."""
        made = [feature for column in self.columns for feature in column.encode(cells[column.name])]
        return torch.from_numpy(np.stack(made, 1).astype(np.float32))

    def _check_columns(self, frame: pd.DataFrame) -> None:
        lacking = [column.name for column in self.columns if column.name not in frame.columns]
        if lacking:
            near = did_you_mean(lacking[0], map(str, frame.columns))
            raise InputError(f"the table has no column {names(lacking)}{near}: it has {names(list(frame.columns))}")

    def _read(self, column: Column, series: pd.Series) -> Cells:
        """Parse a column as in training, or raise :class:`InputError` if it holds something else."""
        if column.kind == "category":
            texts = [None if value is None else str(value) for value in as_texts(series)]
            return Cells("category", np.array([*texts, None], dtype=object)[:-1])
        cells = read_cells(series, self.comma)
        if not cells.missing.all() and cells.kind != column.kind:
            example = next(value for value, absent in zip(series, cells.missing, strict=True) if not absent)
            raise InputError(f"column {column.name!r} holds {example!r}: expected {column.kind}s, as in training")
        values = cells.values if cells.kind == column.kind else np.full(len(series), np.nan)
        check_finite(column.name, values)
        return Cells(column.kind, values)


def as_texts(series: pd.Series) -> list[Any]:
    """Categories of a column as in training: text, or None if missing."""
    cells = read_cells(series.astype(object).map(lambda value: value if value is None or value != value else str(value)))
    if cells.kind == "category":
        return list(cells.values)
    plain = series.astype(object)  # these look like numbers or dates, but were categories in training
    return [None if absent else str(value).strip() for value, absent in zip(plain, cells.missing, strict=True)]


def check_finite(name: str, values: Any) -> None:
    """Raise :class:`InputError` if a number is infinite."""
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise InputError(f"column {name!r} is infinite in row {row} (the first is 0): write a number, or leave it empty")


@dataclass(frozen=True, kw_only=True)
class OpenTable:
    """A table whose cells are parsed and whose rows are split.

    Attributes:
        source: as for :func:`heptane.load_data`.
        name: of a table in memory; None for "table".
        frame: the table.
        label: name of the label column.
        labels: its values.
        comma: meaning of a comma in numbers, if a column is ambiguous.
        cells: of each other column.
        rows: positions of the rows of ``train``, ``valid`` and ``test``.
        out: of each column that is not used, the reason.
        notes: for the user.
    """

    source: Any
    name: str | None
    frame: pd.DataFrame
    label: str
    labels: Labels
    comma: str | None
    cells: dict[str, Cells]
    rows: dict[str, torch.Tensor]
    out: dict[str, str]
    notes: tuple[str, ...]


def load_table(
    source: Any, *, label: str | None, task: str | None, seed: int, valid_fraction: float | None, name: str | None = None
) -> Data:
    """Load a table, split by ``seed``; see :func:`heptane.load_data`.

    Raises:
        InputError: the table cannot be read, the label is missing or ambiguous, or a column is damaged.
    """
    return load_opened(open_table(source, label=label, task=task, seed=seed, valid_fraction=valid_fraction, name=name))


def open_table(
    source: Any, *, label: str | None, task: str | None, seed: int, valid_fraction: float | None, name: str | None = None
) -> OpenTable:
    """Read a table, parse its cells and split its rows; see :func:`load_table`."""
    frame, notes = read_table(source)
    label = find_label(frame, label, notes)
    comma = comma_of(frame)
    labels = read_labels(repr(label), read_cells(frame[label], comma, label=True), task)
    cells = {str(column): read_cells(frame[column], comma) for column in frame.columns if column != label}
    for column, one in cells.items():
        if one.kind == "number":
            check_finite(column, one.values)
    notes += labels.notes
    shares = [0.1, 0.1 if valid_fraction is None else valid_fraction]
    train, test, valid = split_by_class(labels.targets, shares, seed)
    notes.append(f"the rows were split by seed {seed}: {len(train)} train, {len(test)} test, {len(valid)} valid")
    out = {column: why for column, one in cells.items() if (why := reason_unused(column, one, train.numpy()))}
    if labels.names:
        notes += out_of_balance(torch.bincount(labels.targets).tolist(), labels.names)
    return OpenTable(
        source=source,
        name=name,
        frame=frame,
        label=label,
        labels=labels,
        comma=comma,
        cells=cells,
        rows={"train": train, "valid": valid, "test": test},
        out=out,
        notes=tuple(notes),
    )


def load_opened(table: OpenTable) -> Data:
    """Encode the columns of a table, and make its parts; see :func:`load_table`."""
    frame, label, labels, comma = table.frame, table.label, table.labels, table.comma
    source, cells, out, notes = table.source, table.cells, table.out, list(table.notes)
    train, valid, test = (table.rows[part] for part in ("train", "valid", "test"))
    columns = learn({column: one for column, one in cells.items() if column not in out}, train.numpy())
    columns = [column for column in columns if column.features]
    notes += describe(columns, out, cells, train.numpy())
    if not columns:
        raise InputError(f"the table has no usable column to predict {label!r} from: {'; '.join(notes)}")
    width = sum(len(column.features) for column in columns)
    check_memory(f"the table as float32 ({len(frame)}, {width})", 12 * len(frame) * width, "give fewer rows or columns")
    targets, target = labels.targets, None
    if not labels.names:
        target = TargetScale.learn(targets[train])
        targets = target.apply(targets)
        notes.append(target.note(f"the label {label!r}"))
    preprocess = TablePreprocess(label, tuple(columns), comma, target)
    inputs = preprocess.apply(cells)
    parts = [(inputs[rows], targets[rows]) for rows in (train, valid, test)]
    name = Path(source).name.split(".")[0] if is_path(source) else table.name or "table"
    where = str(source) if is_path(source) else f"a {type(source).__name__}"
    about = (len(labels.names) or None, labels.names, tuple(notes), where)
    names = frame.index.tolist()
    files = {part: [f"row {names[at]}" for at in rows.tolist()] for part, rows in (("valid", valid), ("test", test))}
    return Data(name, parts[0], parts[1], parts[2], *about, kind="table", preprocess=preprocess, files=files)


def find_label(columns: Iterable[str], label: str | None, notes: list[str]) -> str:
    """Return the name of the label column, one of ``columns`` (also of a frame)."""
    columns = list(map(str, columns))
    if label is not None:
        label = str(label)  # a column name may be a number
        if label not in columns:
            raise InputError(
                f"label={label!r} is not a column{did_you_mean(label, columns)}: the table has {names(columns, 40)}"
            )
        return label
    found = [column for column in columns if column.lower() in LABELS]
    if len(found) != 1:
        several = f"{names(found)} could all be the label" if found else "no column is called label, target, class or y"
        raise InputError(f"{several}: pass --label COLUMN (label= in load_data), one of {names(columns, 40)}")
    notes.append(f"column {found[0]!r} is the label, by its name")
    return found[0]


def describe(columns: list[Column], out: Mapping[str, str], cells: Mapping[str, Cells], train: Any) -> list[str]:
    """Return notes on how the columns were encoded."""
    by_kind = {kind: [column for column in columns if column.kind == kind] for kind in ("number", "date", "category")}
    num_features = sum(len(column.features) for column in columns)
    done = [
        f"{len(by_kind['number'])} number(s) standardized" if by_kind["number"] else "",
        f"{len(by_kind['date'])} date(s) as days and seasons ({names([c.name for c in by_kind['date']])})"
        if by_kind["date"]
        else "",
        f"{len(by_kind['category'])} categorie(s) one-hot ({names([c.name for c in by_kind['category']])})"
        if by_kind["category"]
        else "",
    ]
    notes = [f"columns: {', '.join(filter(None, done))}; {num_features} inputs"]
    for why in sorted(set(out.values())):
        notes.append(f"ignored, {why}: {names([column for column, reason in out.items() if reason == why])}")
    imputed = [c.name for c in by_kind["number"] + by_kind["date"] if cells[c.name].missing.any()]
    if imputed:
        notes.append(f"missing numbers replaced by the median, with an indicator: {names(imputed)}")
    absent = [column.name for column in by_kind["category"] if cells[column.name].missing.any()]
    if absent:
        notes.append(f"missing categories are a category: {names(absent)}")
    rare = [column.name for column in by_kind["category"] if column.other]
    if rare:
        notes.append(f"rare categories share one input: {names(rare)}")
    skewed = [column.name for column in by_kind["number"] if column.numbers[0].power is not None]
    if skewed:
        notes.append(f"skewed numbers transformed (Yeo-Johnson): {names(skewed)}")
    parsed = sorted({one.note for name, one in cells.items() if name not in out} - {"", "booleans", "seconds"})
    return notes + [f"{how}: {names([name for name, one in cells.items() if one.note == how])}" for how in parsed]


def names(columns: list[str], most: int = MAX_NAMED) -> str:
    """The first ``most`` column names, for messages."""
    shown = ", ".join(repr(str(column)) for column in columns[:most])
    return shown + (f" and {len(columns) - most} more" if len(columns) > most else "")
