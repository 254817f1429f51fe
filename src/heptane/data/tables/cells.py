"""Infer what a table's column holds: numbers, dates, categories, or nothing usable.

Text is numeric if every cell is: plain (``-1.5e3``), with a currency or percent sign (``$5``, ``12%``), with thousands
separators (``1,234.5``) or a decimal comma (``1.234,5``). ``1,234`` is ambiguous: other cells of the table decide, else it
is an error. Codes with leading zeros (``02139``) are categories. Dates are ISO (``2024-03-31``), or have a day and month
whose order the column proves.
"""

from __future__ import annotations

import datetime
import decimal
import numbers
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np
from heptane.data.tables.read_table import pandas

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

MISSING = frozenset(
    ("", "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan", "-nan", "<na>", "n/a", "n.a.", "na", "nan")
).union(("null", "none", "?", "-", "--", "."))
MISSING_LABEL = MISSING - {"none", "-", "--", "."}  # a class may have these names
AFFIXES = re.compile(r"^([+-]?)\s*[$€£¥]\s*|\s*[%$€£¥]$|(?<=\d)['’\s](?=\d{3})")
PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d+")
THOUSANDS = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?([eE][+-]?\d+)?")
DOT_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})*")
LEADING_ZERO = re.compile(r"0\d+")
ISO = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s?(Z|[+-]\d{2}:?\d{2})?)?")
DAY_MONTH = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})( \d{1,2}:\d{2}(:\d{2})?)?")
NEARLY, MAX_ODD = 0.9, 3  # if this fraction of cells is numeric, up to so many other distinct values are typing errors


@dataclass(frozen=True)
class Cells:
    """The cells of a column.

    Args:
        kind: ``number`` or ``date`` (float64; dates as days since 1970), ``category`` (text), or ``other``: unusable.
        values: one per row, None or NaN if missing.
        whole: whether numbers are integers by dtype or notation.
        note: how text was parsed, unless it was plain.
    """

    kind: str
    values: npt.NDArray[Any]
    whole: bool = False
    note: str = ""

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Mask of the rows without a value."""
        found = np.isnan(self.values) if self.kind in ("number", "date") else [value is None for value in self.values]
        return np.asarray(found, dtype=bool)


def read_cells(series: pd.Series, comma: str | None = None, *, label: bool = False) -> Cells:
    """Parse a column.

    Args:
        series: the column, with its name.
        comma: meaning of a comma in numbers, if the column is ambiguous: ``decimal``, ``thousands``, or None.
        label: whether it is the label column, where fewer texts mean a missing value.

    Raises:
        InputError: numbers or dates are ambiguous, or nearly all cells are numbers.
    """
    types = pandas().api.types
    if isinstance(series.dtype, pandas().CategoricalDtype):
        texts = [None if _is_missing(value) else str(value) for value in series.astype(object)]
        return Cells("category", np.array([*texts, None], dtype=object)[:-1])
    if types.is_bool_dtype(series.dtype):
        return Cells(
            "number", series.astype("float64").to_numpy(dtype=np.float64, na_value=np.nan), whole=True, note="booleans"
        )
    if types.is_datetime64_any_dtype(series.dtype):
        return Cells("date", days(series))
    if types.is_timedelta64_dtype(series.dtype):
        return Cells("number", series.dt.total_seconds().to_numpy(dtype=np.float64), note="seconds")
    if types.is_complex_dtype(series.dtype):
        return Cells("other", np.full(len(series), None))
    if types.is_numeric_dtype(series.dtype):
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        return Cells("number", values, whole=types.is_integer_dtype(series.dtype))
    return _read_objects(series, comma, label)


def _read_objects(series: pd.Series, comma: str | None, label: bool) -> Cells:
    """Parse a column of Python objects, usually text."""
    objects = series.astype(object).to_numpy(dtype=object)
    objects = np.array([None if _is_missing(value) else value for value in objects] + [None], dtype=object)[:-1]
    present = [value for value in objects if value is not None]
    if all(isinstance(value, str) for value in present):
        return read_texts(str(series.name), objects, comma, label)
    if all(isinstance(value, (bool, np.bool_)) for value in present):
        return Cells("number", _floats(objects), whole=True, note="booleans")
    if all(isinstance(value, (numbers.Real, decimal.Decimal)) for value in present):
        return Cells("number", _floats(objects), whole=all(isinstance(value, numbers.Integral) for value in present))
    if all(isinstance(value, datetime.date) for value in present):
        pd = pandas()
        return Cells("date", days(pd.to_datetime(pd.Series(objects), utc=True)))
    if all(isinstance(value, (str, numbers.Real)) for value in present):  # text and numbers together, as text
        return read_texts(
            str(series.name), np.array([None if v is None else str(v) for v in objects] + [None])[:-1], comma, label
        )
    return Cells("other", np.full(len(objects), None))


def read_texts(name: str, texts: npt.NDArray[Any], comma: str | None, label: bool = False) -> Cells:
    """Parse a column of text; see :func:`read_cells`."""
    codes, found = pandas().factorize(pandas().Series(texts, dtype=object))
    counts = np.bincount(codes[codes >= 0], minlength=len(found)) if len(found) else np.zeros(0)
    known = parse_distinct(name, [str(text).strip() for text in found], counts, comma, label)
    # Missing cells have the code -1, which selects the last entry.
    absent = None if known.kind == "category" else np.nan
    table = np.array([*known.values.tolist(), absent], dtype=known.values.dtype)
    return Cells(known.kind, table[codes], known.whole, known.note)


def parse_distinct(
    name: str, distinct: list[str], counts: npt.NDArray[Any], comma: str | None, label: bool = False
) -> Cells:
    """Parse the different texts of a column, each with the number of its rows; the result has a value for each."""
    missing = MISSING_LABEL if label else MISSING
    kept = [None if text.lower() in missing else text for text in distinct]

    def numbers_of(by_text: dict[str, float]) -> npt.NDArray[Any]:
        return np.array([np.nan if text is None else by_text[text] for text in kept], dtype=np.float64)

    present = [text for text in kept if text is not None]
    if {text.lower() for text in present} in ({"true", "false"}, {"true"}, {"false"}):
        values = numbers_of({text: float(text.lower() == "true") for text in present})
        return Cells("number", values, whole=True, note="booleans")
    if present and (read := read_numbers(name, present, comma)):
        made, note = read
        whole = all(WHOLE.fullmatch(text) for text in present)
        return Cells("number", numbers_of(dict(zip(present, made, strict=True))), whole, note)
    if not label:
        _refuse_nearly(name, kept, counts)
    if present and (dates := read_dates(name, present)):
        return Cells("date", numbers_of(dict(zip(present, dates[0], strict=True))), note=dates[1])
    return Cells("category", np.array([*kept, None], dtype=object)[:-1])


def read_numbers(name: str, texts: list[str], comma: str | None) -> tuple[list[float], str] | None:
    """Parse texts without missing values as numbers; return them and a note, or None if they are not numbers."""
    if any(LEADING_ZERO.fullmatch(text) for text in texts):  # codes, such as postcodes
        return None
    bare = [AFFIXES.sub(r"\1", text) for text in texts]
    note = "signs such as $ and % removed" if any(re.search("[$€£¥%]", text) for text in texts) else ""
    if not any("," in text for text in bare):
        dotted = any("." in text for text in bare) and all(DOT_THOUSANDS.fullmatch(text) for text in bare)
        if dotted and (comma == "decimal" or any(text.count(".") > 1 for text in bare)):
            return [float(text.replace(".", "")) for text in bare], "dots are thousands separators"
        return ([float(text) for text in bare], note) if all(PLAIN.fullmatch(text) for text in bare) else None
    thousands = all(THOUSANDS.fullmatch(text) for text in bare)
    decimals = all(DECIMAL_COMMA.fullmatch(text) for text in bare)
    if thousands and decimals:
        if comma is None:
            sample = next(text for text in bare if "," in text)
            raise InputError(
                f"column {name!r} holds {sample!r}, which can be {float(sample.replace(',', '')):g} or "
                f"{float(sample.replace(',', '.')):g}: write numbers with a decimal point and no commas"
            )
        thousands, decimals = comma == "thousands", comma == "decimal"
    if thousands:
        return [float(text.replace(",", "")) for text in bare], "commas are thousands separators"
    if decimals:
        return [float(text.replace(".", "").replace(",", ".")) for text in bare], "commas are decimal points"
    return None


def comma_of(frame: pd.DataFrame) -> str | None:
    """Return the meaning of a comma in this table's numbers, ``decimal`` or ``thousands``, if a column proves it."""
    return comma_in(
        {text.strip() for text in frame[column] if isinstance(text, str)}
        for column in frame.columns
        if frame[column].dtype.kind in "OUTS" or str(frame[column].dtype) in ("str", "string")
    )


def comma_in(columns: Iterable[Collection[str]]) -> str | None:
    """:func:`comma_of` for the different texts of each column."""
    proven = set()
    for texts in columns:
        bare = [AFFIXES.sub(r"\1", text) for text in texts if text.lower() not in MISSING]
        if any("," in text for text in bare):
            ways = [all(way.fullmatch(text) for text in bare) for way in (DECIMAL_COMMA, THOUSANDS)]
            proven |= {"decimal"} if ways == [True, False] else {"thousands"} if ways == [False, True] else set()
    return proven.pop() if len(proven) == 1 else None


def read_dates(name: str, texts: list[str]) -> tuple[list[float], str] | None:
    """Parse texts as dates; return days since 1970 and a note, or None if they are not dates."""
    pd = pandas()
    if all(ISO.fullmatch(text) for text in texts):
        form = "ISO8601" if all("-" in text for text in texts) else "mixed"
        return _converted(pd, name, texts, form), ""
    parts = [DAY_MONTH.fullmatch(text) for text in texts]
    if not all(parts):
        return None
    first, second = (max(int(part[group]) for part in parts if part) for group in (1, 3))
    dotted = all(part and part[2] == "." for part in parts)
    if first <= 12 and second <= 12 and not dotted:
        raise InputError(
            f"column {name!r} holds dates such as {texts[0]!r}, whose order of day and month is ambiguous: write them as "
            "YYYY-MM-DD, or remove the column"
        )
    day_first = dotted or first > 12
    pieces = []
    for text, part in zip(texts, parts, strict=True):
        assert part
        day, month = (part[1], part[3]) if day_first else (part[3], part[1])
        year = part[4] if len(part[4]) == 4 else f"{19 if int(part[4]) > 68 else 20}{part[4]}"
        pieces.append(f"{year}-{int(month):02}-{int(day):02}{text[part.end(4) :]}")
    return _converted(pd, name, pieces, "mixed"), f"dates are {'day, month' if day_first else 'month, day'}, year"


def _converted(pd: Any, name: str, texts: list[str], form: str) -> list[float]:
    try:
        found = pd.to_datetime(pd.Series(texts, dtype=object), format=form, utc=True)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"column {name!r} holds a date that does not exist ({' '.join(str(error).split())[:90]})"
        ) from error
    return [float(value) for value in days(found)]


def days(series: pd.Series) -> npt.NDArray[Any]:
    """Convert dates to fractional days since 1970-01-01 UTC; NaN if missing."""
    pd = pandas()
    stamps = pd.to_datetime(series, utc=True)
    return np.asarray((stamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1), dtype=np.float64)


def _refuse_nearly(name: str, texts: list[str | None], counts: npt.NDArray[Any]) -> None:
    """Raise :class:`InputError` if nearly all cells are numbers and the others have few distinct values: many distinct
    ones would be codes, such as part numbers."""
    present = [(text, int(count)) for text, count in zip(texts, counts, strict=True) if text is not None]
    odd = [(text, count) for text, count in present if not PLAIN.fullmatch(AFFIXES.sub(r"\1", text))]
    total, wrong = sum(count for _, count in present), sum(count for _, count in odd)
    zeros = any(LEADING_ZERO.fullmatch(text) for text, _ in present)
    if 0 < len(odd) <= MAX_ODD and not zeros and total and wrong <= (1 - NEARLY) * total:
        named = ", ".join(repr(text) for text, _ in odd[:3])
        raise InputError(
            f"column {name!r} holds numbers except in {wrong} cell(s) such as {named}: write a number there, or leave the "
            "cell empty if its value is missing"
        )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def _floats(objects: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array([np.nan if value is None else float(value) for value in objects], dtype=np.float64)
