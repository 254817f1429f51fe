"""Large tables: columns in an Arrow file, read by index; the same data as from memory."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import heptane as hp
from heptane.data.tables import chunks, column_file, column_kinds, load_large
from heptane.data.tables.load_table import TablePreprocess
from heptane.data.tables.table_rows import TableRows

N = 400


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of 400 rows are large, and read and written in many pieces."""
    monkeypatch.setattr(chunks, "LARGE_CELLS", 1000)
    monkeypatch.setattr(chunks, "ROWS", 37)
    monkeypatch.setattr(chunks, "TEXT_BYTES", 1500)
    monkeypatch.setattr(column_file, "PIECE_ROWS", 64)


def frame(**columns: Any) -> pd.DataFrame:
    random = np.random.default_rng(0)
    size = random.normal(5, 2, N)
    return pd.DataFrame(
        {
            "size": size,
            "count": random.integers(0, 50, N),
            "holes": np.where(random.random(N) < 0.2, np.nan, random.normal(size=N)),
            "skewed": np.exp(2 * random.normal(size=N)),
            "colour": np.array(["red", "green", "blue", "once"])[np.minimum(random.integers(0, 30, N) % 4, 3)],
            "flag": random.random(N) < 0.3,
            "when": pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 10**6, N), unit="min"),
            "name": [f"n{index}" for index in range(N)],
            "label": np.where(size > 5, "yes", "no"),
        }
        | columns
    )


def written(folder: Path, table: pd.DataFrame, kind: str) -> Path:
    """The table as a file, or as a folder of two."""
    path = folder / f"table.{kind}"
    if kind == "parquet":
        table.to_parquet(path, index=False)
    elif kind == "folder":
        path.mkdir()
        for part, rows in (("a", table[:150]), ("b", table[150:])):
            rows.to_parquet(path / f"{part}.parquet", index=False)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


def large(path: Path, cache: Path, **how: Any) -> hp.Data:
    data = hp.load_data(path, reading=hp.Reading(cache=cache), **how)
    assert isinstance(data.train[0], TableRows)
    return data


def small(path: Any, monkeypatch: pytest.MonkeyPatch, **how: Any) -> hp.Data:
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "LARGE_CELLS", 10**9)
        data = hp.load_data(path, **how)
    assert isinstance(data.train[0], torch.Tensor)
    return data


def check_equal(data: hp.Data, other: hp.Data) -> None:
    """Compare all parts bitwise, and all that is said but for where the data are."""
    for one, two in zip((data.train, data.valid, data.test), (other.train, other.valid, other.test), strict=True):
        assert one is not None
        assert two is not None
        torch.testing.assert_close(one[0][:], two[0], rtol=0, atol=0)
        torch.testing.assert_close(one[1], two[1], rtol=0, atol=0)
    assert data.class_names == other.class_names
    assert data.notes[1:] == other.notes
    assert {part: list(names) for part, names in data.files.items()} == other.files


@pytest.mark.parametrize("kind", ["parquet", "folder", "csv", "tsv", "csv.gz"])
@pytest.mark.parametrize("label", ["label", "holes0"])
def test_large_tables_give_the_same_as_in_memory(tmp_path: Path, monkeypatch: Any, kind: str, label: str) -> None:
    path = written(tmp_path, frame(holes0=np.random.default_rng(1).normal(size=N)), kind)
    data = large(path, tmp_path / "cache", label=label, seed=3, valid_fraction=0.2)
    assert data.notes[0] == f"the table has 400 rows: its columns are read from {tmp_path / 'cache'} as they are needed"
    check_equal(data, small(path, monkeypatch, label=label, seed=3, valid_fraction=0.2))


TEXTS = {
    "comma": [f"{n % 90},{n % 10}" if n % 7 else "1.234,5" for n in range(N)],
    "money": [f"${n % 90}" for n in range(N)],
    "codes": [f"0{n % 8}" for n in range(N)],
    "unsure": [" a ", "b", "?", "", "NA", "b", "a", "b"] * (N // 8),
    "truth": ["true", "false", "", "TRUE"] * (N // 4),
    "days": [f"{1 + n % 28}.{1 + n % 12}.2020" for n in range(N)],
    "iso": [f"2020-01-{1 + n % 28:02} 10:00" for n in range(N)],
    "empty": [""] * N,
    "plus": ["+1", "-.5", "3.", "4e1"] * (N // 4),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_texts_mean_the_same_as_in_memory(tmp_path: Path, monkeypatch: Any, kind: str, name: str) -> None:
    path = written(tmp_path, frame(**{name: TEXTS[name]}), kind)
    check_equal(large(path, tmp_path / "cache"), small(path, monkeypatch))


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("numbers", [f"{'+' if n % 3 else ' '}{n}.5" if n % 50 else "NA" for n in range(N)]),
        ("whole", [str((n * 7919) % 100_003) for n in range(N)]),
        ("stamps", [f"2020-{1 + n % 12:02}-{1 + n % 28:02} {n % 24:02}:{n % 60:02}" for n in range(N)]),
    ],
)
def test_numbers_and_dates_need_no_list_of_their_texts(
    tmp_path: Path, monkeypatch: Any, name: str, texts: list[str]
) -> None:
    monkeypatch.setattr(column_kinds, "MAX_TEXTS", 20)
    table = frame(**{name: texts})[["colour", "label", name]]
    monkeypatch.setattr(chunks, "LARGE_CELLS", 900)
    path = written(tmp_path, table, "csv")
    check_equal(large(path, tmp_path / "cache"), small(path, monkeypatch))


def test_a_column_of_too_many_texts_is_ignored_with_a_note(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(column_kinds, "MAX_TEXTS", 60)
    data = large(written(tmp_path, frame(odd=[f"{n % 70}x" for n in range(N)]), "csv"), tmp_path / "cache")
    assert any(note.startswith("ignored, more than 60 different texts: ") and "'odd'" in note for note in data.notes)


def test_one_missing_value_gives_an_indicator_also_if_it_is_in_another_row(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(load_large, "LEARNED_ROWS", 2)
    data = large(written(tmp_path, frame(size=[np.nan if n == 200 else n / 7 for n in range(N)]), "parquet"), tmp_path / "c")
    assert isinstance(data.preprocess, TablePreprocess)
    assert "size missing" in data.preprocess.features


def test_new_data_and_a_saved_record_give_the_same_inputs(tmp_path: Path) -> None:
    from heptane.data.load_preprocess import load_preprocess

    path = written(tmp_path, frame(), "parquet")
    data = large(path, tmp_path / "cache")
    assert data.preprocess is not None
    inputs = load_preprocess(data.preprocess.record()).inputs(path)[1]
    torch.testing.assert_close(inputs[data.train[0].positions], data.train[0][:], rtol=0, atol=0)


def test_rows_are_indexed_like_a_tensor_and_survive_a_pickle(tmp_path: Path, monkeypatch: Any) -> None:
    path = written(tmp_path, frame(), "parquet")
    rows, whole = large(path, tmp_path / "cache").train[0], small(path, monkeypatch).train[0]
    mask = torch.arange(len(rows)) % 3 == 0
    for at in (5, -1, slice(3, 9), slice(None, None, -7), torch.tensor([300, 2, 2]), torch.tensor([]).long(), mask):
        wanted = whole[mask] if at is mask else whole[list(range(len(whole)))[at]] if isinstance(at, slice) else whole[at]
        torch.testing.assert_close(rows[at], wanted, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(rows))[:], whole, rtol=0, atol=0)
    assert (rows.shape, rows.ndim, len(rows), rows.size(1)) == (tuple(whole.shape), 2, 320, whole.shape[1])


def fitted(data: Any, **how: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(data[0].shape[1], 2)
    hp.fit(model, data, optimizer="sgd", batch_size=32, seed=1, **how)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "how", [{}, {"extras": hp.Extras(sampling="balanced", class_weights="balanced")}, {"accumulate": 4}]
)
def test_training_is_bitwise_that_from_memory(tmp_path: Path, monkeypatch: Any, how: dict[str, Any]) -> None:
    path = written(tmp_path, frame(), "parquet")
    one = fitted(large(path, tmp_path / "cache").train, epochs=2, **how)
    two = fitted(small(path, monkeypatch).train, epochs=2, **how)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resume_in_mid_epoch_is_exact_and_reads_only_the_rows_that_follow(tmp_path: Path, monkeypatch: Any) -> None:
    data = large(written(tmp_path, frame(), "parquet"), tmp_path / "cache")
    whole = fitted(data.train, epochs=2)
    read: list[list[int]] = []
    rows, most = column_file.ColumnFile.rows, [14]

    def watched(self: Any, names: list[str], at: Any) -> Any:
        if len(at) == 32:
            read.append(at.tolist())
            if len(read) > most[0]:
                raise KeyboardInterrupt
        return rows(self, names, at)

    monkeypatch.setattr(column_file.ColumnFile, "rows", watched)
    extras = hp.Extras(checkpoint_every=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(data.train, epochs=2, run_dir=tmp_path / "run", extras=extras)
    before, read[:], most[0] = list(read), [], 1000
    again = fitted(data.train, epochs=2, run_dir=tmp_path / "run", extras=extras, resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    order = data.train[0].positions[hp.epoch_order(320, 1, 1).numpy()].reshape(10, 32).tolist()
    assert len(before) > 13
    assert read[-8:] == order[-8:]
    assert [batch for batch in read if batch in order[:2]] == []


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path, monkeypatch: Any) -> None:
    path, cache = written(tmp_path, frame(), "parquet"), tmp_path / "cache"
    large(path, cache)
    before = path.stat()
    with monkeypatch.context() as patch:
        patch.setattr(column_file, "_write_pieces", None)  # not needed again
        large(path, cache)
    frame(size=np.arange(N) / 7).to_parquet(path, index=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    check_equal(large(path, cache), small(path, monkeypatch))


def test_a_truncated_or_half_written_file_is_written_again(tmp_path: Path, monkeypatch: Any) -> None:
    path, cache = written(tmp_path, frame(), "parquet"), tmp_path / "cache"
    large(path, cache)
    (columns,) = cache.glob("*/columns.arrow")
    for kept in (0, 100, columns.stat().st_size - 20):
        columns.write_bytes(columns.read_bytes()[:kept])
        check_equal(large(path, cache), small(path, monkeypatch))


def test_without_room_in_the_cache_the_table_stays_in_memory_with_a_note(tmp_path: Path) -> None:
    path = written(tmp_path, frame(), "parquet")
    for reading, why in (
        (hp.Reading(cache="off"), "the cache is off"),
        (
            hp.Reading(cache=tmp_path / "cache", cache_gb=1e-6),
            "its columns take up to 2.88e-05 GB, and the cache may take 1e-06",
        ),
    ):
        data = hp.load_data(path, reading=reading)
        assert isinstance(data.train[0], torch.Tensor)
        assert data.notes[0].startswith(f"the whole table is in memory, since {why}")


def test_the_table_used_longest_ago_leaves_the_cache_first(tmp_path: Path) -> None:
    cache, paths = tmp_path / "cache", []
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        paths.append(written(tmp_path / str(index), frame(), "parquet"))
    large(paths[0], cache)
    (first,) = [entry for entry in cache.iterdir() if entry.is_dir()]
    size = sum(file.stat().st_blocks * 512 for file in first.iterdir())
    limit = (size + 28_800 + 100) / 1e9  # what is there, and the most that a second one may take
    hp.load_data(paths[1], reading=hp.Reading(cache=cache, cache_gb=limit))
    os.utime(first / "facts.json", (1, 1))
    hp.load_data(paths[2], reading=hp.Reading(cache=cache, cache_gb=limit))
    assert not first.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [np.inf if n == 250 else 1.5 * n for n in range(N)]}, "column 'size' is infinite in row 250"),
        ({"label": ["yes", "no", None, "no"] * (N // 4)}, "the label 'label' is missing in 100 of 400 rows, first in row 2"),
        ({"label": ["yes"] * N}, "the label 'label' is yes in every row"),
        ({"label": [f"c{n}" for n in range(N)]}, "the label 'label' has 400 different values in 400 rows"),
        ({"size": ["x" if n == 9 else str(n) for n in range(N)]}, "column 'size' holds numbers except in 1 cell"),
    ],
)
def test_what_is_refused_in_memory_is_refused_by_the_same_name(
    tmp_path: Path, monkeypatch: Any, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, frame(**change), "parquet")
    for load in (lambda: large(path, tmp_path / "cache"), lambda: small(path, monkeypatch)):
        with pytest.raises(hp.InputError, match=message):
            load()


def test_a_line_with_too_many_cells_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, frame(), "csv")
    path.write_text(path.read_text() + "1,2\n")
    with pytest.raises(hp.InputError, match=r"cannot be read as a table .*correct that line"):
        large(path, tmp_path / "cache")


def test_lines_that_repeat_the_header_are_ignored_with_a_note(tmp_path: Path, monkeypatch: Any) -> None:
    path = written(tmp_path, frame(), "csv")
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *lines[:200], head, *lines[200:]]) + "\n")
    data = large(path, tmp_path / "cache")
    assert sum(len(part[1]) for part in (data.train, data.valid, data.test) if part) == N
    assert "1 row(s) that repeat the header were ignored" in data.notes


def test_other_encodings_are_read_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(frame(colour=["grün", "blau"] * (N // 2)).to_csv(index=False).encode("cp1252")))
    data = large(path, tmp_path / "cache")
    assert isinstance(data.preprocess, TablePreprocess)
    assert "colour=grün" in data.preprocess.features
    assert any("not UTF-8" in note for note in data.notes)
