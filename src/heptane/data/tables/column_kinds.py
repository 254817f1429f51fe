"""Infer what the columns of a large table hold in one pass, and convert its pieces to numbers in a second.

The meaning of values is that of ``cells.py``. The different texts of a column are counted up to ``MAX_TEXTS``; beyond, it is
used only if all its cells are plain numbers or ISO dates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np
from heptane.data.tables.cells import ISO, LEADING_ZERO, MISSING, MISSING_LABEL, PLAIN, WHOLE, Cells, days, parse_distinct
from heptane.data.tables.read_table import pandas

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_TEXTS = 200_000


@dataclass(frozen=True)
class Kind:
    """What a column holds, and how it is stored.

    Args:
        kind: as of :class:`Cells`.
        dtype: of the stored numbers; of a category, of its codes, where -1 is missing.
        categories: the text of each code.
        missing: cells without a value.
        whole, note: as of :class:`Cells`.
        why: of ``other``, the reason.
        values: the value of each of ``texts``: a number or a code; None if cells are converted without them.
    """

    kind: str
    dtype: str
    categories: tuple[str, ...] = ()
    missing: int = 0
    whole: bool = False
    note: str = ""
    why: str = ""
    texts: Any = field(default=None, repr=False, compare=False)
    values: Any = field(default=None, repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """What is needed to read the stored column, as JSON values."""
        names = ("kind", "dtype", "categories", "missing", "whole", "note", "why")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Kind:
        """Rebuild from :meth:`record`."""
        return cls(**{**record, "categories": tuple(record["categories"])})

    def convert(self, array: Any, missing: frozenset[str]) -> npt.NDArray[Any]:
        """The cells of an Arrow array as they are stored."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.values is not None:
            codes = pc.index_in(_stripped(array), value_set=self.texts).fill_null(-1).to_numpy(zero_copy_only=False)
            return np.asarray(self.values[codes], dtype=self.dtype)  # the last value is that of -1
        if _is_text(array.type):
            texts = _stripped(array)
            texts = pc.if_else(pc.is_in(pc.utf8_lower(texts), value_set=_texts(missing)), None, texts)
            if self.kind == "date":
                return days(pandas().to_datetime(texts.to_pandas(), format="ISO8601", utc=True))
            bare = pc.replace_substring_regex(texts, "^\\+", "")
            return np.asarray(pc.cast(bare, pa.float64()).to_numpy(zero_copy_only=False), dtype=self.dtype)
        series = array.to_pandas()
        if self.kind == "date":
            return days(series)
        if pa.types.is_duration(array.type):
            return np.asarray(series.dt.total_seconds(), dtype=self.dtype)
        wide = (
            array if array.null_count == 0 and pa.types.is_integer(array.type) else pc.cast(array, pa.float64(), safe=False)
        )
        return np.asarray(wide.to_numpy(zero_copy_only=False), dtype=self.dtype)


class ColumnSurvey:
    """Learns what a column holds, piece by piece."""

    def __init__(self, name: str, label: bool) -> None:
        self.name, self.label = name, label
        self.missing_names = MISSING_LABEL if label else MISSING
        self.counts: dict[str, int] | None = {}
        """rows of each text; None if there are too many"""
        self.rows = self.missing = self.first_missing = 0
        self.whole = self.plain = self.iso = True
        self.type: Any = None

    def add(self, array: Any) -> None:
        """Look at a piece: an Arrow array."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.type is not None and array.type != self.type:
            raise InputError(f"column {self.name!r} is {self.type} and then {array.type}: write it with one type")
        self.type = array.type
        if pa.types.is_dictionary(array.type):
            self.missing_names = frozenset()  # as in a frame, the categories of a column are all values
        if not _is_text(array.type):
            absent = pc.is_null(array, nan_is_null=pa.types.is_floating(array.type))
            if pa.types.is_floating(array.type) and pc.any(pc.is_inf(array)).as_py():
                row = self.rows + int(np.flatnonzero(np.isinf(array.to_numpy(zero_copy_only=False)))[0])
                raise InputError(
                    f"column {self.name!r} is infinite in row {row} (the first is 0): write a number, or leave it empty"
                )
        else:
            texts = _stripped(array)
            self._add_texts(pc.value_counts(texts.drop_null()))
            named = pc.is_in(pc.utf8_lower(texts), value_set=_texts(self.missing_names))
            absent = pc.or_(pc.is_null(array), pc.fill_null(named, True))
        count = pc.sum(absent).as_py() or 0
        if count and not self.missing:
            self.first_missing = self.rows + pc.index(absent, True).as_py()
        self.missing += count
        self.rows += len(array)

    def _add_texts(self, found: Any) -> None:
        import pyarrow.compute as pc

        values, counts = found.field("values"), found.field("counts")
        if self.counts is not None:
            for text, count in zip(values.to_pylist(), counts.to_pylist(), strict=True):
                self.counts[text] = self.counts.get(text, 0) + count
        present = values.filter(pc.invert(pc.is_in(pc.utf8_lower(values), value_set=_texts(self.missing_names))))

        def all_match(pattern: str) -> bool:
            return bool(pc.all(pc.match_substring_regex(present, f"^(?:{pattern})$"), min_count=0).as_py())

        coded = pc.any(pc.match_substring_regex(present, f"^(?:{LEADING_ZERO.pattern})$"), min_count=0).as_py()
        self.plain = self.plain and not coded and all_match(PLAIN.pattern)
        self.whole = self.whole and self.plain and all_match(WHOLE.pattern)
        self.iso = (
            self.iso and bool(pc.all(pc.match_substring(present, "-"), min_count=0).as_py()) and all_match(ISO.pattern)
        )
        if self.counts is not None and len(self.counts) > MAX_TEXTS:
            self.counts = None

    def texts(self) -> list[str]:
        """The different texts, if they are known."""
        return list(self.counts or ())

    def finish(self, comma: str | None) -> Kind:
        """What the column holds; ``comma`` is the meaning of one in ambiguous numbers."""
        import pyarrow as pa

        kind, types = self.type, pa.types
        if pa.types.is_dictionary(kind) or (_is_text(kind) and self.counts is not None):
            return self._distinct(comma)
        if _is_text(kind):
            if self.plain or self.iso:
                return Kind("number" if self.plain else "date", "float64", missing=self.missing, whole=self.whole)
            return Kind("other", "int8", missing=self.missing, why=f"more than {MAX_TEXTS:,} different texts")
        if types.is_boolean(kind):
            return Kind("number", "float32", missing=self.missing, whole=True, note="booleans")
        if types.is_timestamp(kind) or types.is_date(kind):
            return Kind("date", "float64", missing=self.missing)
        if types.is_duration(kind):
            return Kind("number", "float64", missing=self.missing, note="seconds")
        if types.is_integer(kind):
            dtype = "float64" if self.missing else str(np.dtype(kind.to_pandas_dtype()))
            return Kind("number", dtype, missing=self.missing, whole=True)
        if types.is_floating(kind):
            return Kind("number", "float64" if types.is_float64(kind) else "float32", missing=self.missing)
        if types.is_decimal(kind):
            return Kind("number", "float64", missing=self.missing)
        return Kind("other", "int8", missing=self.missing, why="holds objects")

    def _distinct(self, comma: str | None) -> Kind:
        """A column whose different texts are known."""
        import pyarrow as pa

        known = self.counts
        if known is None:
            return Kind("other", "int8", missing=self.missing, why=f"more than {MAX_TEXTS:,} different texts")
        texts = list(known)
        if pa.types.is_dictionary(self.type):
            cells = Cells("category", np.array([*texts, None], dtype=object)[:-1])
        else:
            cells = parse_distinct(self.name, texts, np.array(list(known.values()), dtype=np.int64), comma, self.label)
        about: dict[str, Any] = {"missing": self.missing, "whole": cells.whole, "note": cells.note}
        if cells.kind != "category":
            values = np.array([*cells.values.tolist(), np.nan])
            return Kind(cells.kind, "float64", **about, texts=_texts(texts), values=values)
        names = sorted({text for text in cells.values if text is not None})
        code_of = {name: code for code, name in enumerate(names)} | {None: -1}
        values = np.array([code_of[text] for text in [*cells.values, None]])
        dtype = "int8" if len(names) < 1 << 7 else "int16" if len(names) < 1 << 15 else "int32"
        return Kind("category", dtype, tuple(names), **about, texts=_texts(texts), values=values)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    is_words = pa.types.is_dictionary(kind) and _is_text(kind.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return is_words or any(test(kind) for test in texts)


def _texts(texts: Iterable[str]) -> Any:
    """Texts as an Arrow array."""
    import pyarrow as pa

    return pa.array(list(texts), pa.string())


def _stripped(array: Any) -> Any:
    """Texts without blanks around them, as ``string``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(pc.cast(array, pa.string()))
