"""Tables: column types, values learned on the training rows, and what is refused by name."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import heptane as hp
from heptane.data.load_preprocess import load_preprocess
from heptane.data.preprocess import Preprocess
from heptane.data.tables.load_table import TablePreprocess

N = 60
KINDS = np.array(["red", "green", "blue"])[np.arange(N) % 3]


def frame(**columns: object) -> pd.DataFrame:
    """A table of 60 rows with two classes; ``columns`` replace or are added."""
    random = np.random.default_rng(0)
    plain = {"size": random.normal(5, 2, N), "colour": KINDS, "label": np.where(np.arange(N) % 2, "yes", "no")}
    return pd.DataFrame(plain | columns)


def csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def again(data: hp.Data) -> TablePreprocess:
    """The preprocessing as another process finds it, in a run's result.json."""
    assert data.preprocess is not None
    made = load_preprocess(json.loads(json.dumps(data.preprocess.record())))
    assert isinstance(made, TablePreprocess)
    return made


def every(data: hp.Data) -> torch.Tensor:
    return torch.cat([part[0] for part in (data.train, data.valid, data.test) if part])


def said(data: hp.Data, text: str) -> bool:
    return any(text in note for note in data.notes)


# --- what is learned, and from which rows


def test_numbers_are_standardized_by_the_training_rows_and_categories_are_one_hot() -> None:
    data = hp.load_data(frame())
    assert (data.kind, data.num_classes, data.class_names, data.class_counts) == ("table", 2, ("no", "yes"), (24, 24))
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [48, 6, 6]
    assert again(data).features == ["size", "colour=blue", "colour=green", "colour=red"]
    size, *colours = data.train[0].T
    assert abs(float(size.mean())) < 1e-6
    assert float(size.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert torch.equal(sum(colours), torch.ones(48))
    assert said(data, "column 'label' is the label, by its name")


def test_validation_rows_teach_nothing() -> None:
    table = frame()
    data = hp.load_data(table)
    _, inputs = again(data).inputs(table)
    rows = {row.numpy().tobytes() for row in data.train[0]}
    others = [index for index, row in enumerate(inputs) if row.numpy().tobytes() not in rows]
    table.loc[others, "size"] = 1e6
    table.loc[others, "colour"] = "unseen"
    other = hp.load_data(table)
    assert again(other).columns == again(data).columns
    assert torch.equal(other.train[0], data.train[0])
    assert float(other.valid[0].max()) == 10  # clipped


def test_the_same_seed_splits_alike_and_classes_evenly() -> None:
    rare = np.where(np.arange(N) < 50, "common", np.where(np.arange(N) < 58, "some", "pair"))
    rare[-1] = "single"
    data = hp.load_data(frame(label=rare), seed=3)
    train, valid = (torch.bincount(part[1], minlength=4).tolist() for part in (data.train, data.valid))
    by_name = dict(zip(data.class_names, zip(train, valid, strict=True), strict=True))
    assert by_name["single"] == (1, 0)
    assert all(number > 0 for name in ("common", "some", "pair") if name != "pair" for number in by_name[name])
    assert said(data, "classes are imbalanced: 'common' has 50 samples")
    assert said(data, "'pair', 'single': only one sample, used for training")
    assert torch.equal(hp.load_data(frame(label=rare), seed=3).train[0], data.train[0])


@pytest.mark.parametrize(
    "make", ["csv", "tsv", "semicolons", "gz", "bom", "utf-16", "latin", "parquet", "polars", "lazy", "dicts"]
)
def test_every_form_of_a_table_gives_the_same_inputs(tmp_path: Path, make: str) -> None:
    table = frame(colour=np.array(["r\u00f4uge", "vert", "bleu"])[np.arange(N) % 3])
    table["size"] = table["size"].round(3)
    text = table.to_csv(index=False)
    source: object = tmp_path / f"a.{make}"
    if make == "tsv":
        source.write_text(table.to_csv(index=False, sep="\t"))
    elif make == "semicolons":
        source = csv(tmp_path / "a.csv", table.to_csv(index=False, sep=";", decimal=","))
    elif make == "gz":
        source = tmp_path / "a.csv.gz"
        source.write_bytes(gzip.compress(text.encode()))
    elif make in ("csv", "bom", "utf-16", "latin"):
        source = tmp_path / "a.csv"
        encoding = {"csv": "utf-8", "bom": "utf-8-sig", "utf-16": "utf-16", "latin": "latin-1"}[make]
        source.write_bytes(text.encode(encoding))
    elif make == "parquet":
        table.to_parquet(source)
    else:
        polars = pl.DataFrame(table.to_dict("list"))
        source = {"polars": polars, "lazy": polars.lazy(), "dicts": table.to_dict("records")}[make]
    want, data = hp.load_data(table), hp.load_data(source)
    assert torch.equal(data.train[0], want.train[0])
    assert torch.equal(data.valid[1], want.valid[1])
    names, inputs = again(want).inputs(source)
    assert torch.equal(inputs, again(want).inputs(table)[1])
    assert names == [str(index) for index in range(N)]
    assert said(data, "Windows-1252") == (make == "latin")


def test_new_rows_are_found_by_name_and_need_no_label() -> None:
    table = frame(extra=1.0)
    preprocess = again(hp.load_data(table))
    whole = preprocess.inputs(table)[1]
    assert torch.equal(preprocess.inputs(table[["colour", "size"]].tail(3))[1], whole[-3:])
    assert preprocess.inputs(table.tail(2))[0] == ["58", "59"]
    assert torch.equal(preprocess.inputs({"size": table["size"][7], "colour": table["colour"][7]})[1], whole[7:8])
    assert torch.equal(preprocess.inputs(table.iloc[7])[1], whole[7:8])
    with pytest.raises(hp.InputError, match=r"the table has no column 'colour'.*did you mean color"):
        preprocess.inputs(table.rename(columns={"colour": "color"}))
    with pytest.raises(hp.InputError, match="column 'size' holds 'big': expected numbers, as in training"):
        preprocess.inputs([{"size": "big", "colour": "red"}])
    with pytest.raises(hp.InputError, match="column 'size' is infinite in row 0"):
        preprocess.inputs([{"size": float("inf"), "colour": "red"}])


# --- missing, rare, constant


def test_missing_numbers_are_the_median_and_marked() -> None:
    size = np.arange(N) % 7 * 1.0
    size[::5] = np.nan
    data = hp.load_data(frame(size=size))
    assert again(data).features[:2] == ["size", "size missing"]
    column = again(data).columns[0]
    assert torch.equal(every(data)[:, 1].sort().values, torch.tensor([0.0] * 48 + [1.0] * 12))
    absent = data.train[0][:, 1] == 1
    filled = (column.numbers[0].median - column.numbers[0].mean) / column.numbers[0].std
    assert torch.allclose(data.train[0][absent, 0], torch.tensor(filled, dtype=torch.float32))
    assert said(data, "missing numbers replaced by the median, with an indicator: 'size'")
    assert torch.isfinite(again(data).inputs({"size": None, "colour": "red"})[1]).all()


def test_missing_rare_and_unknown_categories_have_a_place() -> None:
    colour = np.array([*KINDS[:50], *["mauve", "teal"], *[None] * 8], dtype=object)
    data = hp.load_data(frame(colour=colour), seed=1)
    preprocess = again(data)
    assert preprocess.features[1:] == [f"colour={name}" for name in ("blue", "green", "red", "(other)", "(missing)")]
    rows = [{"size": 1, "colour": colour} for colour in ("red", "never seen", None, "NA", " blue ")]
    assert preprocess.inputs(rows)[1][:, 1:].argmax(1).tolist() == [2, 3, 4, 4, 0]
    assert said(data, "missing categories are a category: 'colour'")
    assert said(data, "rare categories share one input: 'colour'")
    plain = again(hp.load_data(frame()))
    assert plain.inputs({"size": 1, "colour": "never seen"})[1][0, 1:].tolist() == [0, 0, 0]


def test_what_is_left_out_is_said_by_name() -> None:
    table = frame(
        id=np.arange(N) + 1,
        customer_id=np.arange(N) * 7 % 61 + 1000,
        name=[f"person {index}" for index in range(N)],
        same=3,
        empty=[None] * N,
        things=[[1, 2]] * N,
    )
    data = hp.load_data(table)
    assert again(data).features == ["size", "colour=blue", "colour=green", "colour=red"]
    for why in (
        "all values distinct: an identifier: 'id', 'customer_id'",
        "nearly all values distinct: names or identifiers: 'name'",
        "constant: 'same'",
        "empty: 'empty'",
        "holds objects: 'things'",
    ):
        assert said(data, f"ignored, {why}"), data.notes


def test_skewed_numbers_are_tamed() -> None:
    money = np.exp(np.random.default_rng(0).normal(0, 3, N))
    data = hp.load_data(frame(money=money, far=[1e30] + [1.0] * 30 + [2.0] * 29))
    assert said(data, "skewed numbers transformed (Yeo-Johnson): 'money'")
    inputs = every(data)
    assert torch.isfinite(inputs).all()
    assert float(inputs.abs().max()) <= 10


# --- how text is read


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2.5", "-3e1"], [1, 2.5, -30]),
        (["$1,234.50", "$5.00", "$1,000,000"], [1234.5, 5, 1e6]),
        (["1,5", "2,25", "1.234,0"], [1.5, 2.25, 1234]),
        (["12%", "3 %", "0.5%"], [12, 3, 0.5]),
        (["1'000", "2 500", "7"], [1000, 2500, 7]),
        (["1.234.567", "12.000", "5"], [1234567, 12000, 5]),
        (["true", "False", "TRUE"], [1, 0, 1]),
        (["2024-01-02", "1970-01-01", "1970-01-01T12:00:00Z"], [19724, 0, 0.5]),
        (["31/12/1970", "1/2/1970", "02/01/1970"], [364, 31, 1]),
        (["12/31/1970", "2/1/1970", "01/02/1970"], [364, 31, 1]),
        (["2.1.1970", "1.1.70", "01.02.1970"], [1, 0, 31]),
    ],
)
def test_text_is_read_as_numbers_and_dates(cells: list[str], values: list[float]) -> None:
    from heptane.data.tables.cells import read_cells

    found = read_cells(pd.Series([*cells, "NA", "?", ""], name="a"))
    assert found.values[:3].tolist() == pytest.approx(values)
    assert np.isnan(found.values[3:]).all()


def test_codes_with_leading_zeros_and_pandas_categories_are_categories() -> None:
    codes = np.array(["02139", "10001", "94103"])[np.arange(N) % 3]
    data = hp.load_data(frame(zip=codes, grade=pd.Categorical(np.arange(N) % 2)))
    assert again(data).features[4:] == ["zip=02139", "zip=10001", "zip=94103", "grade=0", "grade=1"]


def test_the_other_columns_tell_what_a_comma_is(tmp_path: Path) -> None:
    rows = "\n".join(f'"1,{500 + index}";"{index},25";{"ab"[index % 2]}' for index in range(N))
    data = hp.load_data(csv(tmp_path / "a.csv", f"x;price;label\n{rows}"))
    assert again(data).columns[0].numbers[0].mean == pytest.approx(1.53, abs=0.01)
    assert said(data, "commas are decimal points: 'x', 'price'")
    assert again(data).inputs({"x": "1,530", "price": "29,25"})[1].abs().max() < 0.5
    with pytest.raises(hp.InputError, match=r"column 'x' holds '1,500', which can be 1500 or 1\.5: write numbers"):
        hp.load_data(csv(tmp_path / "b.csv", "x;label\n" + "\n".join(row[:8] + row[-1] for row in rows.split("\n"))))


def test_dates_are_days_and_seasons() -> None:
    data = hp.load_data(frame(when=pd.date_range("2024-01-01", periods=N, freq="31h")))
    names = ["days", "year_sin", "year_cos", "week_sin", "week_cos", "day_sin", "day_cos"]
    assert again(data).features[4:] == [f"when.{name}" for name in names]
    assert said(data, "1 date(s) as days and seasons ('when')")
    assert torch.equal(
        again(data).inputs(frame(when=pd.date_range("2024-01-01", periods=N, freq="31h").astype(str)))[1],
        again(data).inputs(frame(when=pd.date_range("2024-01-01", periods=N, freq="31h")))[1],
    )
    with pytest.raises(
        hp.InputError, match="column 'when' holds dates such as '01/02/2024', whose order of day and month is ambiguous"
    ):
        hp.load_data(frame(when=[f"0{index % 9 + 1}/02/2024" for index in range(N)]))
    with pytest.raises(hp.InputError, match="column 'when' holds a date that does not exist"):
        hp.load_data(frame(when=[f"2024-02-{index % 30 + 1}" for index in range(N)]))


def test_rows_that_repeat_the_header_and_names_of_rows_are_left_out(tmp_path: Path) -> None:
    rows = [f"{index / 2},{'ab'[index % 2]}" for index in range(N)]
    data = hp.load_data(csv(tmp_path / "a.csv", "\n".join(["x,label", *rows[:30], "x,label", *rows[30:]])))
    assert len(every(data)) == N
    assert said(data, "1 row(s) that repeat the header were ignored")
    named = csv(tmp_path / "b.csv", "\n".join(["x,label", *(f"r{index},{row}" for index, row in enumerate(rows))]))
    assert torch.equal(hp.load_data(named).train[0], data.train[0])
    assert said(hp.load_data(named), "the first cell of each row has no column name")
    trailing = csv(tmp_path / "c.csv", "\n".join(["x,label", *(f"{row}," for row in rows)]))
    assert torch.equal(hp.load_data(trailing).train[0], data.train[0])


# --- labels


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (np.arange(N) % 3, ("0", "1", "2")),
        (np.arange(N) % 3 * 5 - 5, ("-5", "0", "5")),
        (np.arange(N) % 2 > 0, ("False", "True")),
        (np.arange(N) % 2 * 1.0, ("0", "1")),
        (np.where(np.arange(N) % 2, "None", "b"), ("None", "b")),
        (pd.Categorical(np.arange(N) % 2 + 1), ("1", "2")),
    ],
)
def test_labels_of_any_kind_become_classes(label: object, names: tuple[str, ...]) -> None:
    data = hp.load_data(frame(label=label))
    assert (data.class_names, data.num_classes) == (names, len(names))
    assert data.train[1].dtype == torch.int64


def test_a_number_as_label_is_standardized_and_turned_back() -> None:
    price = 2e5 + 5e4 * np.random.default_rng(1).normal(size=N)
    data = hp.load_data(frame(label=price))
    assert (data.num_classes, data.class_names, data.class_counts) == (None, (), None)
    assert abs(float(data.train[1].mean())) < 1e-6
    assert float(data.train[1].std(correction=0)) == pytest.approx(1, abs=1e-5)
    back = torch.cat([again(data).outputs(part[1]) for part in (data.train, data.valid, data.test)])
    assert np.allclose(np.sort(back.numpy()), np.sort(price), rtol=1e-5)
    assert said(data, "is standardized for training: losses are in standardized units")


WHOLE = np.arange(N) % 3 * 1.0


def test_the_task_settles_what_has_two_readings() -> None:
    assert hp.load_data(frame(label=WHOLE), task="classification").class_names == ("0", "1", "2")
    assert hp.load_data(frame(label=WHOLE), task="regression").num_classes is None
    assert hp.load_data(frame(label=WHOLE.astype(int)), task="regression").num_classes is None


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (
            frame(label=WHOLE),
            {},
            r"'label' holds 3 different floats that are whole \(0, 1, 2\), which can be 3 classes or regression targets",
        ),
        (frame(label=WHOLE - 1), {}, "3 different floats that are whole .*--task classification or --task regression"),
        (frame(label=[None, *KINDS[1:]]), {}, "the label 'label' is missing in 1 of 60 rows, first in row 0"),
        (frame(label=["a"] * N), {}, "the label 'label' is a in every row: expected two or more classes"),
        (frame(label=[f"a{index}" for index in range(N)]), {}, "has 60 different values in 60 rows: classes need several"),
        (frame(label=[np.inf, *range(N - 1)]), {}, "the label 'label' is inf in row 0"),
        (frame(label=pd.date_range("2024", periods=N)), {}, "the label 'label' holds dates"),
        (frame(), {"task": "regression"}, "task='regression', but the label 'label' holds text such as 'no'"),
        (frame(), {"task": "ranking"}, "task='ranking' is not known"),
        (frame(), {"label": "labels"}, r"label='labels' is not a column .did you mean label\?"),
        (
            frame().rename(columns={"label": "a"}),
            {},
            "no column is called label, target, class or y: pass --label COLUMN .*'size', 'colour', 'a'",
        ),
        (frame(y=1), {}, "'label', 'y' could all be the label: pass --label"),
        (
            frame(size=[*["1"] * 58, "n.d.", "2"]),
            {},
            "column 'size' holds numbers except in 1 cell.s. such as 'n.d.': write",
        ),
        (frame(size=[np.inf, *range(N - 1)]), {}, "column 'size' is infinite in row 0"),
        (frame()[["label"]], {}, "the table has no usable column to predict 'label' from"),
        (frame()[:0], {}, "has 0 rows and 3 columns"),
        (frame()[:4], {}, "setting aside 0.1 .* of 4 samples"),
        (pd.concat([frame(), frame()], axis=1), {}, "has two columns called 'colour'"),
    ],
)
def test_what_cannot_be_understood_is_refused(table: pd.DataFrame, settings: dict[str, str], message: str) -> None:
    with pytest.raises(hp.InputError, match=message) as caught:
        hp.load_data(table, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n1,2\n", "begins with an empty line"),
        (b"5.1,3.5,1.4\n4.9,3.0,1.3\n", "begins with numbers, 5.1, 3.5, 1.4: put a line of column names first"),
        (b"a,b,a\n1,2,3\n", "has two columns called 'a'"),
        (b"a,label\n1,2\n1,2,3,4\n1,2\n", "cannot be read as a table .*line 3"),
        (b"PK\x03\x04\x00\x00", "is it a spreadsheet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(hp.InputError, match=message) as caught:
        hp.load_data(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(hp.InputError, match=r"a\.parquet' cannot be read as Parquet"):
        hp.load_data(tmp_path / "a.parquet")


@pytest.mark.parametrize(("module", "what"), [("pandas", "pandas"), ("sklearn.impute", "scikit-learn")])
def test_a_missing_library_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch, module: str, what: str) -> None:
    table = frame()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(hp.InputError, match=rf'tables need {what}, which is missing: pip install "heptane\[tables\]"'):
        hp.load_data(table)


# --- pairs


def test_a_pair_of_arrays_is_standardized_and_a_frame_with_labels_is_a_table() -> None:
    x, y = np.random.default_rng(0).normal(100, 20, (N, 3)), KINDS
    for pair in ((x, y), (torch.from_numpy(x), y), (torch.from_numpy(x).bfloat16(), y), (x.tolist(), list(y)), [x, y]):
        data = hp.load_data(pair)
        assert (data.kind, data.class_names) == ("arrays", ("blue", "green", "red"))
        assert data.train[0].mean(0).abs().max() < 1e-5
    assert hp.load_data(pd.DataFrame({0: x[:, 0], 1: KINDS}), label=1).class_names == ("blue", "green", "red")
    assert torch.equal(again_any(data).inputs(x)[1].sum(1).sort().values, every_valid(data).sum(1).sort().values)
    table = frame()
    data = hp.load_data((table[["size", "colour"]], table["label"]))
    assert torch.equal(data.train[0], hp.load_data(table).train[0])
    assert hp.load_data((pl.DataFrame(table[["size"]].to_dict("list")), list(KINDS))).kind == "table"
    with pytest.raises(hp.InputError, match=r"x has 60 rows but y has shape \(3,\)"):
        hp.load_data((table[["size"]], [1, 2, 3]))


def again_any(data: hp.Data) -> Preprocess:
    assert data.preprocess is not None
    return load_preprocess(json.loads(json.dumps(data.preprocess.record())))


def every_valid(data: hp.Data) -> torch.Tensor:
    return torch.cat([data.train[0], data.valid[0]])
