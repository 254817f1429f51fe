"""Load a table that is too large for memory: its columns in a mapped Arrow file in the data cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.base.progress import working
from heptane.data.dataset import Data
from heptane.data.disk_cache import OFF, make_room, mark_used
from heptane.data.preprocess import TargetScale
from heptane.data.reading import AUTO, Reading
from heptane.data.splits import out_of_balance, split_by_class
from heptane.data.tables.cells import Cells
from heptane.data.tables.chunks import count_rows, read_chunks, source_files
from heptane.data.tables.column_file import FILE, ColumnFile, write_columns
from heptane.data.tables.columns import DISTINCT, MIN_ROWS, Column, keep_frequent, learn, reason_unused
from heptane.data.tables.labels import Labels, check_no_missing, classes_of, read_labels
from heptane.data.tables.load_table import TablePreprocess, describe, find_label
from heptane.data.tables.table_rows import RowNames, TableRows

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 1  # raise it when the conversion changes
LEARNED_ROWS = 1 << 20  # training rows at most from which numbers are standardized, evenly spaced


def load_large(
    source: Path, *, label: str | None, task: str | None, seed: int, valid_fraction: float | None, reading: Reading
) -> Data | str:
    """Load a large table, or return the reason why it has no place on the disk; see :func:`heptane.load_data`."""
    notes: list[str] = []
    label = find_label(next(iter(read_chunks(source, []))).schema.names, label, notes)
    where = _cached(source, label, reading)
    if isinstance(where, str):
        return where
    file = ColumnFile(where / FILE)
    notes += file.notes
    notes.insert(0, f"the table has {file.num_rows:,} rows: its columns are read from {where.parent} as they are needed")
    labels = _labels(file, label, task)
    notes += labels.notes
    shares = [0.1, 0.1 if valid_fraction is None else valid_fraction]
    train, test, valid = split_by_class(labels.targets, shares, seed)
    notes.append(f"the rows were split by seed {seed}: {len(train)} train, {len(test)} test, {len(valid)} valid")
    if labels.names:
        notes += out_of_balance(torch.bincount(labels.targets).tolist(), labels.names)
    columns, out = _learn(file, [name for name in file.kinds if name != label], train.numpy())
    known = {
        name: Cells(kind.kind, np.array([np.nan if kind.missing else 0.0]), kind.whole, kind.note)
        if kind.kind in ("number", "date")
        else Cells(kind.kind, np.array([None if kind.missing else "a"], dtype=object))
        for name, kind in file.kinds.items()
        if name != label
    }
    notes += describe(columns, out, known, train.numpy())
    if not columns:
        raise InputError(f"the table has no usable column to predict {label!r} from: {'; '.join(notes)}")
    targets, target = labels.targets, None
    if not labels.names:
        target = TargetScale.learn(targets[train])
        targets = target.apply(targets)
        notes.append(target.note(f"the label {label!r}"))
    preprocess = TablePreprocess(label, tuple(columns), file.comma, target)
    parts = [(TableRows(file, rows.numpy(), preprocess), targets[rows]) for rows in (train, valid, test)]
    about = (len(labels.names) or None, labels.names, tuple(notes), str(source))
    files = {"valid": RowNames(valid), "test": RowNames(test)}
    name = source.name.split(".")[0]
    return Data(name, parts[0], parts[1], parts[2], *about, kind="table", preprocess=preprocess, files=files)


def _cached(source: Path, label: str, reading: Reading) -> Path | str:
    """The folder of the table's columns in the cache, written if it is not there; or why there is none."""
    if reading.cache == OFF:
        return "the cache is off"
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(source)]
    key = hashlib.sha256(json.dumps([FORMAT, str(source.resolve()), label, facts]).encode()).hexdigest()[:32]
    folder = reading.cache_folder
    path = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if not _is_complete(path / FILE):
                if why := make_room(folder, path, _largest_bytes(source), reading.cache_gb, "its columns take up to"):
                    return why
                path.mkdir(exist_ok=True)
                write_columns(source, path / FILE, label, [])
            mark_used(path, {"data": str(source), "bytes": (path / FILE).stat().st_size})
    except OSError as error:
        if reading.cache != AUTO:
            raise InputError(f"data_cache={str(folder)!r} cannot be used ({one_line(error)}): choose another") from error
        return f"{folder} cannot be used ({one_line(error)})"
    return path


def _is_complete(path: Path) -> bool:
    """Whether a file of columns is there and can be opened."""
    import pyarrow as pa

    try:
        ColumnFile(path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False
    return True


def _largest_bytes(source: Path) -> int:
    """The size of the columns on the disk, at most."""
    rows = count_rows(source)
    if rows is None:
        return 2 * source.stat().st_size
    return 8 * rows * len(next(iter(read_chunks(source, []))).schema.names)


def _labels(file: ColumnFile, label: str, task: str | None) -> Labels:
    """The targets; as :func:`read_labels`, without a Python object for each row."""
    kind, values = file.kinds[label], file.whole(label)
    if kind.kind != "category":
        return read_labels(repr(label), file.cells(label, values), task)
    check_no_missing(repr(label), np.flatnonzero(values < 0), len(values))
    if task == "regression":
        return read_labels(repr(label), file.cells(label, values[:1]), task)
    found = classes_of(repr(label), np.array(kind.categories, dtype=object), len(values))
    return Labels(torch.from_numpy(values.astype(np.int64)), found.names)


def _learn(file: ColumnFile, names: list[str], train: npt.NDArray[np.int64]) -> tuple[list[Column], dict[str, str]]:
    """The encoding of each column, learned on the training rows, and the reasons why others are not used."""
    columns, out = [], {}
    chosen = train[np.linspace(0, len(train) - 1, min(len(train), LEARNED_ROWS)).astype(np.int64)]
    with working("learning the encoding of the columns", len(names)) as advance:
        for name in names:
            kind = file.kinds[name]
            if kind.kind == "other":
                found: Column | str = kind.why
            elif kind.kind == "category":
                found = _learn_category(name, kind.categories, file.whole(name)[train])
            else:
                found = _learn_numbers(file, name, chosen, train)
            if isinstance(found, str):
                out[name] = found
            elif found.features:
                columns.append(found)
            advance()
    return columns, out


def _learn_category(name: str, categories: tuple[str, ...], codes: npt.NDArray[Any]) -> Column | str:
    counts = np.bincount(codes[codes >= 0], minlength=len(categories))
    there, present = np.flatnonzero(counts), int(counts.sum())
    missing = present < len(codes)
    if not len(there):
        return "empty"
    if len(there) == 1 and not missing:
        return "constant"
    if present > 10 and len(there) > DISTINCT * present:
        return "nearly all values distinct: names or identifiers"
    kept, others = keep_frequent(np.array(categories)[there], counts[there])
    if len(there) > 1 and not kept:
        return f"no value occurs {MIN_ROWS} times"
    return Column(name, "category", (), tuple(kept), others, missing)


def _learn_numbers(file: ColumnFile, name: str, chosen: npt.NDArray[np.int64], train: npt.NDArray[np.int64]) -> Column | str:
    """Learn from ``chosen``, some of the rows of ``train``."""
    cells, kind = file.rows([name], chosen)[name], file.kinds[name]
    if kind.missing and not cells.missing.any():  # one missing value, if there is one, gives the column its indicator
        absent = train[np.isnan(file.whole(name)[train])]
        cells = file.rows([name], np.concatenate([chosen, absent[:1]]))[name]
    everywhere = np.arange(len(cells.values))
    if why := reason_unused(name, cells, everywhere):
        return why
    return learn({name: cells}, everywhere)[0]
