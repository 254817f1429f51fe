"""The columns of a large table in an Arrow file, mapped into memory.

The file is an Arrow IPC file with one column of numbers for each column of the table: numbers and dates (days since 1970,
NaN if missing), or codes of categories (-1 if missing). What they mean is in its metadata. It is written beside its place
and then renamed, so a file is complete or not there.
"""

from __future__ import annotations

import json
import mmap
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np
from heptane.base.progress import working
from heptane.data.tables.cells import Cells, comma_in
from heptane.data.tables.chunks import count_rows, read_chunks
from heptane.data.tables.column_kinds import ColumnSurvey, Kind

if TYPE_CHECKING:
    import numpy.typing as npt

FILE = "columns.arrow"
PIECE_ROWS = 1 << 20  # of a record batch in the file


class ColumnFile:
    """An open file of columns. What was read stays in the system's file cache, which gives it up if memory is short."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        opened = pa.ipc.open_file(pa.py_buffer(self._map))
        batches = [opened.get_batch(index) for index in range(opened.num_record_batches)]
        self.num_rows = sum(batch.num_rows for batch in batches)
        known = json.loads(opened.schema.metadata[b"heptane"])
        self.label, self.notes = known["label"], tuple(known["notes"])
        self.comma, self.first_missing = known["comma"], known["first_missing"]
        self.kinds = {name: Kind.parse(record) for name, record in known["columns"].items()}
        self._texts = {name: np.array([*kind.categories, None], dtype=object) for name, kind in self.kinds.items()}
        self._views = {
            name: [batch.column(index).to_numpy(zero_copy_only=True) for batch in batches]
            for index, name in enumerate(opened.schema.names)
        }

    def whole(self, name: str) -> npt.NDArray[Any]:
        """All of a column as it is stored."""
        made = np.concatenate(self._views[name])
        if hasattr(mmap, "MADV_DONTNEED"):  # else the process holds all columns after it has looked at each
            self._map.madvise(mmap.MADV_DONTNEED)
        return made

    def rows(self, names: list[str], rows: npt.NDArray[np.int64]) -> dict[str, Cells]:
        """Some rows of some columns, as cells."""
        piece, inside = np.divmod(rows, PIECE_ROWS)
        order = np.argsort(piece, kind="stable")
        cuts = [0, *(np.flatnonzero(np.diff(piece[order])) + 1).tolist(), len(rows)] if len(rows) else [0]
        runs = [(order[start:stop], int(piece[order[start]])) for start, stop in pairwise(cuts)]
        found = {}
        for name in names:
            views = self._views[name]
            values = np.empty(len(rows), dtype=self.kinds[name].dtype)
            for at, index in runs:
                values[at] = views[index][inside[at]]
            found[name] = self.cells(name, values)
        return found

    def cells(self, name: str, values: npt.NDArray[Any]) -> Cells:
        """Stored values of a column as cells."""
        kind = self.kinds[name]
        if kind.kind != "category":
            return Cells(kind.kind, values.astype(np.float64), kind.whole, kind.note)
        return Cells("category", self._texts[name][values])

    def __reduce__(self) -> tuple[Any, ...]:
        return ColumnFile, (self.path,)


def write_columns(source: Path, path: Path, label: str | None, notes: list[str]) -> None:
    """Convert a table to a file of columns; what was noted about its text goes to the file too.

    Args:
        source: Parquet files or text.
        path: the file to write.
        label: name of the label column; None: none has the meaning of a label.
        notes: extended by notes on the text.
    """
    import pyarrow as pa

    surveys: dict[str, ColumnSurvey] = {}
    read = list(notes)
    with working(f"reading {source.name}", count_rows(source)) as advance:
        for batch in read_chunks(source, read):
            surveys = surveys or {name: ColumnSurvey(name, name == label) for name in batch.schema.names}
            for name, survey in surveys.items():
                survey.add(batch.column(name))
            advance(batch.num_rows)
    comma = comma_in(survey.texts() for survey in surveys.values())
    kinds = {name: survey.finish(comma) for name, survey in surveys.items()}
    num_rows = next(iter(surveys.values())).rows
    facts = {
        "label": label,
        "comma": comma,
        "notes": read[len(notes) :],
        "first_missing": {name: survey.first_missing for name, survey in surveys.items()},
        "columns": {name: kind.record() for name, kind in kinds.items()},
    }
    schema = pa.schema(
        [pa.field(name, pa.from_numpy_dtype(np.dtype(kind.dtype))) for name, kind in kinds.items()],
        metadata={"heptane": json.dumps(facts)},
    )
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with (
            pa.OSFile(str(aside), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
            working(f"writing the columns of {source.name}", num_rows) as advance,
        ):
            _write_pieces(source, writer, schema, kinds, surveys, advance)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_pieces(
    source: Path, writer: Any, schema: Any, kinds: dict[str, Kind], surveys: dict[str, ColumnSurvey], advance: Any
) -> None:
    """Write the columns, ``PIECE_ROWS`` at a time."""
    import pyarrow as pa

    held = {name: np.empty(PIECE_ROWS, dtype=kind.dtype) for name, kind in kinds.items()}
    filled = 0

    def write() -> None:
        writer.write_batch(pa.record_batch([pa.array(values[:filled]) for values in held.values()], schema=schema))

    for batch in read_chunks(source, []):
        start = 0
        while start < batch.num_rows:
            count = min(batch.num_rows - start, PIECE_ROWS - filled)
            for name, kind in kinds.items():
                array = batch.column(name).slice(start, count)
                made = 0 if kind.kind == "other" else kind.convert(array, surveys[name].missing_names)
                held[name][filled : filled + count] = made
            start, filled = start + count, filled + count
            if filled == PIECE_ROWS:
                write()
                filled = 0
        advance(batch.num_rows)
    if filled:
        write()
