"""Encode a table's columns as features, with parameters learned on the training rows.

Numbers: missing values become the median (with an indicator feature, if any was missing in training), skewed ones are
transformed, then all are standardized and clipped. Dates: days since 1970, and, if they vary, the time of year, week and day
as sines and cosines. Categories: one-hot over the frequent values; the others share one feature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np
from heptane.data.tables.cells import Cells
from heptane.data.tables.read_table import INSTALL

if TYPE_CHECKING:
    import numpy.typing as npt

CLIP = 10.0  # standard deviations
SKEWED = 2.0  # skewness above which a power transform is learned
MIN_ROWS, MAX_VALUES = 3, 40  # rows of a category with its own feature, and number of such features
DISTINCT = 0.9  # a text column with a larger fraction of distinct values holds names or identifiers
PARTS = ("days", "year_sin", "year_cos", "week_sin", "week_cos", "day_sin", "day_cos")
PERIODS = {"year": 365.2425, "week": 7.0, "day": 1.0}  # days
IDENTIFIER = re.compile(r"(id|index|row|rowid|row_?num(ber)?|unnamed: 0|)|.*[_ .-]id|.*[a-z](Id|ID)", re.ASCII)


@dataclass(frozen=True)
class Number:
    """The encoding of one numeric series, with an optional indicator of missing values."""

    part: str
    """for a date, one of ``PARTS``; "" for a number"""
    median: float
    mean: float
    std: float
    power: float | None = None
    """lambda of the Yeo-Johnson transform, applied before mean and std"""
    missing: bool = False

    def encode(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Encode numbers (N,), NaN if missing, as one or two features (N,)."""
        absent = np.isnan(values)
        filled = np.where(absent, self.median, values)
        made = (filled if self.power is None else yeo_johnson(filled, self.power)) - self.mean
        features = [np.clip(made / self.std, -CLIP, CLIP)]
        return [*features, absent.astype(np.float64)] if self.missing else features


@dataclass(frozen=True)
class Column:
    """A column of the table and its encoding as features."""

    name: str
    kind: str
    """number, date or category"""
    numbers: tuple[Number, ...] = ()
    values: tuple[str, ...] = ()
    """categories with a feature each"""
    other: bool = False
    """whether rare and unknown categories share a feature; else all their features are 0"""
    missing: bool = False
    """whether missing categories have a feature"""

    @property
    def features(self) -> list[str]:
        """A name for each feature."""
        if self.kind == "category":
            extra = ["(other)"] * self.other + ["(missing)"] * self.missing
            return [f"{self.name}={value}" for value in (*self.values, *extra)]
        names = []
        for number in self.numbers:
            own = f"{self.name}.{number.part}" if number.part else self.name
            names += [own, f"{own} missing"] if number.missing else [own]
        return names

    def encode(self, cells: Cells) -> list[npt.NDArray[Any]]:
        """The features, each (N,)."""
        if self.kind != "category":
            return [made for number in self.numbers for made in number.encode(part_of(cells.values, number.part))]
        codes_of = {value: index for index, value in enumerate(self.values)}
        width = len(self.values) + self.other + self.missing
        unknown = len(self.values) if self.other else width
        absent = width - 1 if self.missing else unknown
        codes = np.array(
            [absent if value is None else codes_of.get(value, unknown) for value in cells.values], dtype=np.int64
        )
        return list((codes[:, None] == np.arange(width)).astype(np.float64).T)

    def record(self) -> dict[str, Any]:
        """The encoding as JSON values."""
        return asdict(self)

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Column:
        """Rebuild from :meth:`record`."""
        kept = {**record, "values": tuple(map(str, record["values"]))}
        return cls(**{**kept, "numbers": tuple(Number(**number) for number in record["numbers"])})


def yeo_johnson(values: npt.NDArray[Any], power: float) -> npt.NDArray[Any]:
    """Yeo-Johnson power transform, which reduces skewness.

    Source: Yeo and Johnson 2000, "A new family of power transformations", Biometrika 87(4).
    """
    positive, negative = np.maximum(values, 0), np.maximum(-values, 0)
    up = np.log1p(positive) if abs(power) < 1e-12 else np.expm1(power * np.log1p(positive)) / power
    rest = 2 - power
    down = np.log1p(negative) if abs(rest) < 1e-12 else np.expm1(rest * np.log1p(negative)) / rest
    return np.asarray(np.where(values >= 0, up, -down))


def part_of(values: npt.NDArray[Any], part: str) -> npt.NDArray[Any]:
    """Return numbers unchanged, or one of ``PARTS`` of dates."""
    if part in ("", "days"):
        return values
    period, _, kind = part.partition("_")
    angle = 2 * np.pi * values / PERIODS[period]
    return np.sin(angle) if kind == "sin" else np.cos(angle)


def reason_unused(name: str, cells: Cells, rows: npt.NDArray[Any]) -> str | None:
    """Return why a column is ignored, or None if it is used; ``rows`` are the training rows."""
    if cells.kind == "other":
        return "holds objects"
    present = cells.values[rows][~cells.missing[rows]]
    if not len(present):
        return "empty"
    distinct = len(np.unique(present.astype(str) if cells.kind == "category" else present))
    if distinct == 1 and len(present) == len(rows):
        return "constant"
    if cells.kind == "category":
        if len(present) > 10 and distinct > DISTINCT * len(present):
            return "nearly all values distinct: names or identifiers"
        return None if distinct == 1 or frequent(present)[0] else f"no value occurs {MIN_ROWS} times"
    everything = cells.values[~cells.missing]
    if cells.kind == "number" and cells.whole and len(everything) > 10 and len(np.unique(everything)) == len(everything):
        counts_rows = (
            len(everything) == len(cells.values) and everything.min() in (0, 1) and np.ptp(everything) == len(rows) - 1
        )
        if counts_rows or IDENTIFIER.fullmatch(name) or IDENTIFIER.fullmatch(name.lower()):
            return "all values distinct: an identifier"
    return None


def frequent(values: npt.NDArray[Any]) -> tuple[list[str], bool]:
    """Return the frequent values, and whether there are others."""
    return keep_frequent(*np.unique(values.astype(str), return_counts=True))


def keep_frequent(unique: npt.NDArray[Any], counts: npt.NDArray[Any]) -> tuple[list[str], bool]:
    """:func:`frequent` of different values and their counts."""
    order = np.lexsort((unique, -counts))[:MAX_VALUES]
    kept = sorted(str(unique[index]) for index in order if counts[index] >= MIN_ROWS)
    return kept, len(kept) < len(unique)


def learn(cells: Mapping[str, Cells], rows: npt.NDArray[Any]) -> list[Column]:
    """Learn the encoding of each column from the training ``rows``."""
    parts = {
        name: [part for part in (PARTS if one.kind == "date" else ("",)) if varies(part_of(one.values[rows], part))]
        for name, one in cells.items()
        if one.kind != "category"
    }
    table = [part_of(cells[name].values[rows], part) for name, names in parts.items() for part in names]
    learned = iter(learn_numbers([(name, part) for name, names in parts.items() for part in names], table))
    columns = []
    for name, one in cells.items():
        if one.kind == "category":
            present = one.values[rows][~one.missing[rows]]
            values, others = frequent(present)
            missing = bool(one.missing[rows].any())
            columns.append(Column(name, "category", (), tuple(values), others, missing))
        else:
            columns.append(Column(name, one.kind, tuple(next(learned) for _ in parts[name])))
    return columns


def varies(values: npt.NDArray[Any]) -> bool:
    """Whether numbers vary, or are missing in some rows only."""
    present = values[~np.isnan(values)]
    return len(present) > 0 and (len(present) < len(values) or float(np.ptp(present)) > 1e-9 * float(np.abs(present).max()))


def learn_numbers(names: list[tuple[str, str]], series: list[npt.NDArray[Any]]) -> list[Number]:
    """Learn median, power, mean and std of each series with scikit-learn."""
    if not names:
        return []
    try:
        from sklearn.impute import SimpleImputer
        from sklearn.preprocessing import PowerTransformer, StandardScaler
    except ImportError as error:
        raise InputError(f"tables need scikit-learn, which is missing: {INSTALL}") from error
    imputer = SimpleImputer(strategy="median")
    filled = imputer.fit_transform(np.stack(series, 1))
    powers: list[float | None] = [None] * len(names)
    for index, (_, part) in enumerate(names):
        two = len(np.unique(filled[:, index])) < 3  # a power transform does not help a skewed flag
        if not part and not two and skewness(filled[:, index]) > SKEWED:
            power = float(PowerTransformer(standardize=False).fit(filled[:, [index]]).lambdas_[0])
            made = yeo_johnson(filled[:, index], power)
            if np.isfinite(made).all() and np.std(made) > 1e-6:
                powers[index], filled[:, index] = power, made
    scaler = StandardScaler().fit(filled)
    numbers = []
    for index, (name, part) in enumerate(names):
        median, mean, std = (float(x) for x in (imputer.statistics_[index], scaler.mean_[index], scaler.scale_[index]))
        if not np.isfinite((median, mean, std)).all():
            raise InputError(f"column {name!r} holds numbers too large to standardize: remove it, or give its logarithm")
        numbers.append(Number(part, median, mean, std, powers[index], bool(np.isnan(series[index]).any())))
    return numbers


def skewness(values: npt.NDArray[Any]) -> float:
    """The absolute third standardized moment."""
    deviation = values - values.mean()
    spread = float(np.sqrt(np.mean(deviation**2)))
    return abs(float(np.mean((deviation / spread) ** 3))) if spread > 0 else 0.0
