"""Read a table as a pandas DataFrame: CSV, TSV or Parquet files, pandas and polars frames, lists of dicts.

Cells of a text file stay text; ``cells.py`` infers what a column holds, so that nothing is lost. The separator is inferred
from the first lines, the compression from the file name (``.csv.gz``), the encoding from the content.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np
from heptane.data.preprocess import is_path

if TYPE_CHECKING:
    import pandas as pd

TEXT_SUFFIXES, PARQUET_SUFFIXES = (".csv", ".tsv", ".tab"), (".parquet", ".pq")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")
SUFFIXES = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
SEPARATORS = (",", ";", "\t", "|")
SNIFFED_BYTES, PIECE_BYTES = 1 << 16, 1 << 24
INSTALL = 'pip install "heptane[tables]"'


def is_table(source: Any) -> bool:
    """Whether ``source`` is a table: a file name with a table's suffix, a folder of Parquet files, a frame, a dict, or a
    list of dicts."""
    if is_path(source):
        return table_suffix(Path(source)) in SUFFIXES or bool(parquet_files(Path(source).expanduser()))
    if isinstance(source, Mapping) or any(hasattr(source, name) for name in ("to_pandas", "iloc", "collect_schema")):
        return True
    return isinstance(source, (list, tuple)) and bool(source) and all(isinstance(row, Mapping) for row in source)


def table_suffix(path: Path) -> str:
    """The suffix of a table's format, in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS else suffixes[-1] if suffixes else ""


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files in a folder, in the order of their names; of a file, the file itself."""
    if not path.is_dir():
        return [path] if table_suffix(path) in PARQUET_SUFFIXES else []
    return sorted(file for file in path.iterdir() if file.suffix.lower() in PARQUET_SUFFIXES and file.is_file())


def pandas() -> Any:
    """Import pandas, or raise :class:`InputError` with the command that installs it."""
    try:
        import pandas
    except ImportError as error:
        raise InputError(f"tables need pandas, which is missing: {INSTALL}") from error
    return pandas


def read_table(source: Any) -> tuple[pd.DataFrame, list[str]]:
    """Read a table; return a frame with unique column names, and notes on ignored or renamed parts.

    Args:
        source: a path, a pandas or polars frame (or anything with ``to_pandas``), a list of dicts (rows), or a dict (of
            columns, or one row).

    Raises:
        InputError: the table cannot be read or is empty, or pandas or pyarrow is missing.
    """
    pd, notes = pandas(), list[str]()
    if is_path(source):
        path = Path(source).expanduser()
        files = parquet_files(path)
        frame = read_parquet(files) if files else read_text(path, notes)
        name = repr(str(path))
    else:
        frame, name = from_memory(pd, source), f"the {type(source).__name__}"
    if isinstance(frame.columns, pd.MultiIndex):
        raise InputError(f"{name} has multi-level column names: give each column one name")
    frame = frame.rename(columns=str)
    twice = sorted({column for column, many in zip(frame.columns, frame.columns.duplicated(), strict=True) if many})
    if twice:
        raise InputError(f"{name} has two columns called {twice[0]!r}: give each column a name of its own")
    if not len(frame.columns) or not len(frame):
        raise InputError(f"{name} has {len(frame)} rows and {len(frame.columns)} columns: expected at least one of each")
    return frame, notes


def join_labels(frame: Any, labels: Any) -> pd.DataFrame:
    """Join a frame and its labels into one frame with a column ``label``."""
    pd = pandas()
    frame, _ = read_table(frame)
    if hasattr(labels, "columns") and len(labels.columns) == 1:
        labels = read_table(labels)[0].iloc[:, 0]
    if hasattr(labels, "to_pandas"):
        labels = labels.to_pandas()
    values = labels.to_numpy() if isinstance(labels, pd.Series) else np.asarray(labels)
    if values.shape != (len(frame),):
        raise InputError(f"x has {len(frame)} rows but y has shape {values.shape}: give one label per row")
    if "label" in frame.columns:
        raise InputError("x has a column 'label', and y is given too: remove one of them")
    return frame.assign(label=values)


def from_memory(pd: Any, source: Any) -> pd.DataFrame:
    """Convert a table in memory to a frame."""
    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, pd.Series):  # one row of a frame
        return source.to_frame().T.infer_objects()
    try:
        if hasattr(source, "collect") and hasattr(source, "lazy"):  # a lazy polars frame
            source = source.collect()
        if hasattr(source, "to_pandas"):
            return source.to_pandas()
        if isinstance(source, Mapping):
            scalar = all(isinstance(value, str) or not hasattr(value, "__len__") for value in source.values())
            return pd.DataFrame([source] if scalar else dict(source))
        return pd.DataFrame(list(source))
    except Exception as error:
        remedy = f"{INSTALL}" if isinstance(error, ImportError) else "expected columns of one length"
        raise InputError(f"a {type(source).__name__} cannot be read as a table ({one_line(error)}): {remedy}") from error


def read_parquet(files: list[Path]) -> pd.DataFrame:
    """Read Parquet files, one after the other."""
    pd, path = pandas(), files[0]
    try:
        if len(files) == 1:
            return pd.read_parquet(path)
        return pd.concat([pd.read_parquet(path := file) for file in files], ignore_index=True)
    except ImportError as error:
        raise InputError(f"Parquet files need pyarrow, which is missing: {INSTALL}") from error
    except Exception as error:  # pyarrow raises many types for damaged files
        raise InputError(f"{str(path)!r} cannot be read as Parquet ({one_line(error)}): write it again") from error


def read_text(path: Path, notes: list[str]) -> pd.DataFrame:
    """Read a text file; every cell is text, "" if empty."""
    pd = pandas()
    form = find_form(path, notes)
    separator, names, encoding = form.separator, [name.strip() for name in form.header], form.encoding
    from heptane.base.memory import check_memory

    check_memory(repr(str(path)), 8 * path.stat().st_size, "give a smaller file, or Parquet")
    try:
        settings = {"sep": separator, "dtype": str, "keep_default_na": False, "encoding": encoding}
        frame = pd.read_csv(path, **settings)
        # More cells than column names: each line ends with a separator, or rows have names.
        if not isinstance(frame.index, pd.RangeIndex):
            if not frame.iloc[:, -1].fillna("").any():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the last cell, an empty one, has no name
                    frame = pd.read_csv(path, index_col=False, **settings)
            else:
                notes.append("the first cell of each row has no column name: treated as a row name, and ignored")
                frame = frame.reset_index(drop=True)
    except Exception as error:  # pandas raises many types
        remedy = "correct that line, or quote cells that hold the separator"
        raise InputError(f"{str(path)!r} cannot be read as a table ({one_line(error)}): {remedy}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    repeats = (frame.astype(object).to_numpy() == np.array(names, dtype=object)).all(1) if len(names) > 1 else None
    if repeats is not None and frame.shape[1] == len(names) and repeats.any():
        notes.append(f"{int(repeats.sum())} row(s) that repeat the header were ignored")
        frame = frame[~repeats].reset_index(drop=True)
    return frame


class TextForm(NamedTuple):
    """How a text file holds a table."""

    separator: str
    header: list[str]
    """the cells of the first line"""
    encoding: str
    head: str
    """the first lines"""


def find_form(path: Path, notes: list[str]) -> TextForm:
    """Infer the form of a text file; raise :class:`InputError` if its first line does not name the columns."""
    head, encoding = first_text(path, notes)
    separator = "\t" if table_suffix(path) in (".tsv", ".tab") and "\t" in head else find_separator(head)
    header = next(csv.reader(io.StringIO(head), delimiter=separator), [])
    names = [name.strip() for name in header]
    if not any(names):
        raise InputError(f"{str(path)!r} begins with an empty line: expected the names of the columns")
    if len(names) > 1 and all(re.fullmatch(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?", name) for name in names):
        raise InputError(f"{str(path)!r} begins with numbers, {', '.join(names[:3])}: put a line of column names first")
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        raise InputError(f"{str(path)!r} has two columns called {twice[0]!r}: give each column a name of its own")
    return TextForm(separator, header, encoding, head)


def first_text(path: Path, notes: list[str], *, whole: bool = True) -> tuple[str, str]:
    """Return the uncompressed first lines of a text file, and its encoding, judged by the ``whole`` file."""
    from pandas.io.common import get_handle  # type: ignore[import-untyped,unused-ignore]

    encoding = "utf-8-sig"
    try:
        with get_handle(path, "rb", compression="infer", is_text=False) as handles:
            head: bytes = handles.handle.read(SNIFFED_BYTES)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
                encoding = "utf-16"
            elif not _is_utf8(head, handles.handle if whole else io.BytesIO()):
                encoding = "cp1252"
    except Exception as error:  # decompression raises many types
        raise InputError(f"{str(path)!r} cannot be opened ({one_line(error)}): give a readable file") from error
    if not head.strip():
        raise InputError(f"{str(path)!r} is empty: expected a line of column names, then rows")
    if b"\0" in head and encoding != "utf-16":
        raise InputError(f"{str(path)!r} is not a text file: is it a spreadsheet? save it as CSV")
    if encoding == "cp1252":
        notes.append(f"{path.name} is not UTF-8: read as Windows-1252 (Western European)")
    return head.decode(encoding, errors="replace"), encoding


def _is_utf8(head: bytes, rest: Any) -> bool:
    """Whether ``head``, and the file that goes on after it, are UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        decoder.decode(head)
        while piece := rest.read(PIECE_BYTES):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def find_separator(head: str) -> str:
    """Infer the separator (comma, semicolon, tab or bar): it gives the first lines equally many cells, and the most."""
    lines = head.splitlines()[: 50 if len(head) < SNIFFED_BYTES else 49] or [""]
    best, most = ",", (0.0, 0)
    for separator in SEPARATORS:
        widths = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
        if widths and widths[0] > 1:
            alike = sum(width == widths[0] for width in widths) / len(widths)
            if (round(alike, 1), widths[0]) > most:
                best, most = separator, (round(alike, 1), widths[0])
    return best
