"""A manifest: a table with a column of image paths, a column of labels, and perhaps one that names the part.

The paths are relative to the manifest's folder. The label is a class, several classes (``cat|dog``, ``cat;dog``, or a list
in Parquet), or a number. A table is a manifest if it has a column of paths, and one of the first names an image that exists.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np
from heptane.base.progress import working
from heptane.data.images.image_files import ImageFiles
from heptane.data.images.image_labels import ImageLabels, from_cells, from_lists, split_texts
from heptane.data.images.listing import PARTS, Listing, part_named
from heptane.data.images.read_image import SUFFIXES
from heptane.data.tables.cells import read_cells
from heptane.data.tables.load_table import find_label
from heptane.data.tables.read_table import PARQUET_SUFFIXES, find_separator, first_text, is_table, read_table, table_suffix

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file", "image_name"),
    *("image_id", "img", "img_path"),
)
SPLIT_COLUMN = "split"
FIRST_ROWS = 20  # that may show that a table is a manifest


def path_column(path: Path) -> str | None:
    """The column of image paths of a table; None if it has none, or is no table.

    Raises:
        InputError: a column has names of images, but none of the first exists.
    """
    if not is_table(path):
        return None
    try:
        rows = _first_rows(path)
    except Exception:  # not a readable table: loading will report it
        return None
    missing = ""
    for at, name in enumerate(rows[0] if rows else ()):
        if name.strip().lower() not in PATH_COLUMNS:
            continue
        values = [str(row[at]) for row in rows[1:] if len(row) > at]
        named = [value for value in values if value.strip().lower().endswith(SUFFIXES)]
        if any((path.parent / value).is_file() for value in named):
            return str(name).strip()
        if 2 * len(named) > len(values):
            missing = missing or (
                f"column {name.strip()!r} of {str(path)!r} names images, but the first {len(named)} do not exist, such as "
                f"{str(path.parent / named[0])!r}: paths are relative to the table's folder; correct them, or remove the "
                "column to read the others as a table"
            )
    if missing:
        raise InputError(missing)
    return None


def _first_rows(path: Path) -> list[list[Any]]:
    """The names of a table's columns, and its first rows."""
    if table_suffix(path) in PARQUET_SUFFIXES:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.lower() in PATH_COLUMNS]
            first = next(file.iter_batches(FIRST_ROWS, columns=names), None) if names else None
        return [names, *([row[name] for name in names] for row in (first.to_pylist() if first is not None else []))]
    head, _ = first_text(path, [], whole=False)
    separator = "\t" if table_suffix(path) in (".tsv", ".tab") and "\t" in head else find_separator(head)
    reader = csv.reader(io.StringIO(head), delimiter=separator)
    return [row for row, _ in zip(reader, range(FIRST_ROWS + 1), strict=False)]


def list_manifest(path: Path, *, label: str | None, task: str | None, skip_bad: int) -> Listing:
    """List the images of a manifest.

    Args:
        path: of the table.
        label, task, skip_bad: as for :func:`heptane.load_data`.

    Raises:
        InputError: files are missing, or the labels or parts are wrong.
    """
    column = path_column(path)
    assert column is not None
    with working(f"reading {path.name}"):
        frame, notes = read_table(path)
    if len(frame.columns) == 1:
        raise InputError(f"{str(path)!r} has no column but {column!r}: add one with the labels")
    label = find_label(frame.drop(columns=column), label, notes)
    frame = _without_repeats(frame, column, path.parent.resolve(), label, notes)
    with working(f"looking for {len(frame):,} images"):
        images = ImageFiles(path.parent.resolve(), frame[column].tolist())
    _check_files(images, column, path, skip_bad)
    labels = labels_of(frame[label], label, task)
    return Listing(
        name=path.name.split(".")[0],
        where=str(path),
        images=images,
        labels=labels.values,
        parts=_parts(frame),
        classes=labels.classes,
        notes=(*notes, *labels.notes),
        encoded_bytes=int(images.facts[:, 0].clip(0).sum()),
        named=labels.named,
    )


def manifest_images(path: Path) -> ImageFiles:
    """The images of a manifest by the names that it gives them, whatever its other columns hold."""
    column = path_column(path)
    assert column is not None
    frame, _ = read_table(path)
    _check_filled(frame, column)
    with working(f"looking for {len(frame):,} images"):
        return ImageFiles(path.parent, [str(value) for value in frame[column]])


def labels_of(series: pd.Series, name: str, task: str | None) -> ImageLabels:
    """The labels in a column: one class, several classes, or a number each."""
    values = series.tolist()
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in values):
        absent = [value is None or isinstance(value, float) for value in values]
        return from_lists(repr(name), [[] if no else [str(v) for v in one] for no, one in zip(absent, values, strict=True)])
    if task is None and all(value is None or isinstance(value, str) for value in values):
        several = split_texts(values)
        if several is not None:
            return from_lists(repr(name), several)
    return from_cells(repr(name), read_cells(series, label=True), task)


def _without_repeats(frame: pd.DataFrame, column: str, folder: Path, label: str, notes: list[str]) -> pd.DataFrame:
    """The rows, with paths relative to ``folder``, without those that repeat a path; a contradiction is an error."""
    _check_filled(frame, column)
    frame = frame.assign(**{column: [_relative(str(value), folder) for value in frame[column]]})
    again = frame[column].duplicated()
    if not again.any():
        return frame
    text = frame[[label, *_split_columns(frame)]].astype(str).agg("\n".join, axis=1)
    odd = frame[column][text.groupby(frame[column]).transform("nunique") > 1]
    if len(odd):
        raise InputError(
            f"{odd.iloc[0]!r} is in several rows with different labels or parts: give each image one row, and several "
            "classes as cat|dog"
        )
    notes.append(f"{int(again.sum())} row(s) that repeat an image were ignored")
    return frame[~again].reset_index(drop=True)


def _check_filled(frame: pd.DataFrame, column: str) -> None:
    lacking = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
    if lacking.any():
        row = int(lacking.to_numpy().argmax())
        raise InputError(f"column {column!r} is empty in row {row} (the first is 0): fill it in, or remove the row")


def _relative(value: str, folder: Path) -> str:
    """A path of the manifest, relative to its folder."""
    return os.path.relpath(value, folder) if os.path.isabs(value) else os.path.normpath(value)


def _check_files(images: ImageFiles, column: str, path: Path, skip_bad: int) -> None:
    """Raise :class:`InputError` if more files are missing than may be skipped; others are skipped as they are decoded."""
    missing = np.flatnonzero(images.facts[:, 0] < 0)
    if len(missing) > skip_bad:
        raise InputError(
            f"{len(missing):,} of the {len(images):,} files in column {column!r} of {str(path)!r} do not exist, the first "
            f"is {images.name(int(missing[0]))!r}: paths are relative to {str(images.root)!r}; correct them, or skip up "
            "to N with --skip-bad N"
        )


def _parts(frame: pd.DataFrame) -> dict[str, npt.NDArray[np.int64]]:
    """The rows of each part; ``all`` without a column of parts."""
    columns = _split_columns(frame)
    if not columns:
        return {"all": np.arange(len(frame))}
    found = [part_named(str(value)) for value in frame[columns[0]]]
    if None in found:
        row = found.index(None)
        raise InputError(
            f"column {columns[0]!r} holds {str(frame[columns[0]].iloc[row])!r} in row {row} (the first is 0): expected "
            "train, valid (or val, validation) or test"
        )
    if "train" not in found:
        raise InputError(f"column {columns[0]!r} has no row of the part train: add some, or remove the column")
    each = np.array(found)
    return {part: np.flatnonzero(each == part) for part in PARTS if (each == part).any()}


def _split_columns(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns if str(name).strip().lower() == SPLIT_COLUMN]
