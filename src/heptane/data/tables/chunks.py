"""Read a large table piece by piece, as Arrow record batches: Parquet files, or text whose cells stay text."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np
from heptane.data.preprocess import is_path
from heptane.data.tables.read_table import (
    INSTALL,
    PARQUET_SUFFIXES,
    find_form,
    find_separator,
    first_text,
    is_table,
    parquet_files,
    table_suffix,
)

if TYPE_CHECKING:
    import pandas as pd

LARGE_CELLS = 20_000_000  # rows times columns above which a table is not loaded into memory
ROWS = 1 << 16  # of a piece of Parquet
TEXT_BYTES = 1 << 23  # of a piece of text
COMPRESSIONS = {"": None, ".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # that Arrow reads
INFLATION = 5  # of a compressed text file, about


def is_large(source: Any) -> bool:
    """Whether a table has more than ``LARGE_CELLS`` cells; those of a text file are estimated from its first lines."""
    if not can_read(source):
        return False
    path = Path(source).expanduser()
    try:
        if _is_parquet(path):
            cells: int = sum(meta.num_rows * meta.num_columns for meta in map(_metadata, parquet_files(path)))
            return cells > LARGE_CELLS
        if path.stat().st_size * INFLATION < LARGE_CELLS:  # a cell takes more than a byte
            return False
        head, _ = first_text(path, [], whole=False)
        lines = head.splitlines(keepends=True)[:-1]
        width = len(next(csv.reader(io.StringIO(head), delimiter=find_separator(head)), []))
        per_line = sum(map(len, lines)) / max(len(lines), 1)
        total = path.stat().st_size * (INFLATION if _compression(path) else 1)
        return bool(lines) and total / per_line * width > LARGE_CELLS
    except (InputError, ImportError, OSError, ValueError):
        return False  # reading it will report it


def can_read(source: Any) -> bool:
    """Whether a source is a file, or a folder of files, that can be read piece by piece."""
    if not is_path(source) or not is_table(source):
        return False
    path = Path(source).expanduser()
    return _is_parquet(path) or _compression(path) in COMPRESSIONS


def count_rows(path: Path) -> int | None:
    """The rows of Parquet files; None for text."""
    return sum(_metadata(file).num_rows for file in parquet_files(path)) if _is_parquet(path) else None


def source_files(path: Path) -> list[Path]:
    """The files of a table."""
    return parquet_files(path) if _is_parquet(path) else [path]


def read_chunks(path: Path, notes: list[str]) -> Iterator[Any]:
    """Yield record batches of a table, all with the same column names.

    Raises:
        InputError: pyarrow is missing, or the table is damaged.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise InputError(f"large tables need pyarrow, which is missing: {INSTALL}") from error
    try:
        yield from _parquet(path) if _is_parquet(path) else _text(path, notes)
    except (pa.ArrowException, OSError, EOFError) as error:
        remedy = "write it again" if _is_parquet(path) else "correct that line, or quote cells that hold the separator"
        raise InputError(f"{str(path)!r} cannot be read as a table ({one_line(error)}): {remedy}") from error


def read_frames(source: Any) -> Iterator[pd.DataFrame]:
    """Yield a large table as frames of some rows each, which are numbered through."""
    start = 0
    for batch in read_chunks(Path(source).expanduser(), []):
        frame = batch.to_pandas()
        frame.index += start
        start += len(frame)
        yield frame


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    names: list[str] | None = None
    for file in parquet_files(path):
        with pq.ParquetFile(file, memory_map=False, pre_buffer=False) as opened:
            kept = [name for name in opened.schema_arrow.names if not name.startswith("__index_level_")]
            if names is not None and kept != names:
                raise InputError(f"{str(file)!r} has other columns than the first file: give files with the same columns")
            names = kept
            yield from opened.iter_batches(ROWS, columns=names, use_threads=False)


def _text(path: Path, notes: list[str]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.csv as text

    form = find_form(path, notes)
    names = [name.strip() for name in form.header]
    encoding = {"utf-8-sig": "utf8"}.get(form.encoding, form.encoding)
    options = {
        "read_options": text.ReadOptions(block_size=TEXT_BYTES, encoding=encoding, use_threads=False),
        "parse_options": text.ParseOptions(delimiter=form.separator, newlines_in_values=True),
        "convert_options": text.ConvertOptions(column_types=dict.fromkeys(form.header, pa.string()), null_values=[]),
    }
    repeats = 0
    with (
        pa.input_stream(str(path), compression=COMPRESSIONS[_compression(path)]) as stream,
        contextlib.closing(text.open_csv(stream, **options)) as reader,
    ):
        for batch in reader:
            batch = batch.rename_columns(names)
            first = np.asarray(batch.column(0).to_pylist(), dtype=object) == names[0] if len(names) > 1 else np.zeros(0)
            found = [row for row in np.flatnonzero(first) if all(batch[at][row].as_py() == n for at, n in enumerate(names))]
            if found:
                repeats += len(found)
                batch = batch.take(pa.array(np.setdiff1d(np.arange(batch.num_rows), found)))
            yield batch
    if repeats:
        notes.append(f"{repeats} row(s) that repeat the header were ignored")


def _is_parquet(path: Path) -> bool:
    return path.is_dir() or table_suffix(path) in PARQUET_SUFFIXES


def _metadata(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_metadata(file)


def _compression(path: Path) -> str:
    """The suffix of a compression; '' if there is none."""
    return "" if path.suffix.lower() == table_suffix(path) else path.suffix.lower()
