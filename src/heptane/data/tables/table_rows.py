"""Rows of a large table as the inputs of a data set: columns on disk, float32 features where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from heptane.base.lazy import np, torch
from heptane.base.tree import Rows
from heptane.data.tables.column_file import ColumnFile
from heptane.data.tables.load_table import TablePreprocess


class TableRows(Rows):
    """Rows of one part of a large table, in place of a tensor of inputs.

    Indexing gives what the model takes: float32 (N, F).

    Args:
        file: the columns.
        rows: the numbers of this part's rows in it.
        preprocess: encodes them.
    """

    def __init__(self, file: ColumnFile, rows: Any, preprocess: TablePreprocess) -> None:
        self._file, self.preprocess = file, preprocess
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.positions = np.asarray(rows, dtype=np.int64)
        self._columns = [column.name for column in preprocess.columns]
        self.shape = (len(self.positions), len(preprocess.features))
        self.nbytes = len(self.positions) * sum(np.dtype(file.kinds[name].dtype).itemsize for name in self._columns)

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        return self.preprocess.apply(self._file.rows(self._columns, self.positions[positions.cpu().numpy()]))

    def __repr__(self) -> str:
        return f"TableRows(shape={self.shape}, read as needed)"


class RowNames(Sequence[str]):
    """The names of a table's rows: ``row 7``."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return [f"row {row}" for row in self.rows[at].tolist()] if isinstance(at, slice) else f"row {int(self.rows[at])}"

    def __iter__(self) -> Iterator[str]:
        return (f"row {row}" for row in self.rows.tolist())
