"""``heptane predict`` and ``heptane evaluate`` on new files, fewer classes and other orders."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.test_load_run import interrupted, pictures

from heptane.cli import main
from heptane.data.images.stored_images import Images

NAMES = ("amber", "blue", "green")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    flags = ["--epochs", "6", "--batch-size", "6", "--image-size", "16", "--model", "resnet", "--tricks", "none"]
    assert main(["train", "--data", str(pictures(root / "data", NAMES)), *flags, "--out", str(root / "run")]) == 0
    return root


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(0)
    width, kind = random.normal(size=90), random.choice(["oak", "elm"], 90)
    found = np.where(width + (kind == "oak") > 0.5, "sick", "well")
    lines = [f"{w:.3f},{k},{f}" for w, k, f in zip(width, kind, found, strict=True)]
    (root / "trees.csv").write_text("width,kind,state\n" + "\n".join(lines) + "\n")
    flags = ["--data", str(root / "trees.csv"), "--label", "state", "--epochs", "30", "--batch-size", "16"]
    assert main(["train", *flags, "--tricks", "none", "--out", str(root / "run")]) == 0
    return root


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_pictures_to_csv_and_json(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    files = [str(root / "data" / "blue" / "0.png"), str(root / "data" / "green")]
    assert main(["predict", "--run", str(root / "run"), *files, "--batch-size", "3"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["class"] for row in found] == ["blue"] + 10 * ["green"]
    assert found[0]["name"] == files[0]
    assert 0.3 < float(found[0]["probability"]) <= 1
    out = tmp_path / "p.json"
    assert main(["predict", "--run", str(root / "run"), *files, "--out", str(out), "--top", "2"]) == 0
    record = json.loads(out.read_text())[0]
    assert record["class"] == "blue"
    assert len(record["probabilities"]) == 2
    out.write_text("mine")
    assert main(["predict", "--run", str(root / "run"), *files, "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    assert main(["predict", "--run", str(root / "run"), *files, "--out", str(out), "--force"]) == 0
    printed = capsys.readouterr().err
    assert printed.count("exists: choose another file") == 1
    assert printed.count(f"{out}: 11 predictions\n") == 2


def test_a_bad_picture_ends_it_and_leaves_no_half_file(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    shutil.copy(root / "data" / "blue" / "0.png", tmp_path / "in" / "b.png")
    ask = ["predict", "--run", str(root / "run"), str(tmp_path / "in"), "--out", str(tmp_path / "p.csv"), "--top", "2"]
    assert main(ask) == 2
    assert "a.png" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()
    assert main([*ask, "--skip-bad"]) == 0
    (row,) = rows((tmp_path / "p.csv").read_text())
    assert (row["class"], set(row)) == ("blue", {"name", "class", "probability", "class_2", "probability_2"})
    assert "skipped 1 unreadable file(s)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["manifest", "shards", "hub"])
def test_what_train_takes_is_predicted_without_labels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    files = [root / "data" / name / f"{index}.png" for index in range(3) for name in ("green", "amber")]
    if kind == "manifest":
        source = tmp_path / "list.csv"
        (tmp_path / "sub").mkdir()
        shutil.copy(files[0], tmp_path / "sub" / "a b.png")
        names = ["./sub/a b.png", *map(str, files[1:]), str(files[1])]
        source.write_text("path,note\n" + "".join(f'"{name}",x\n' for name in names))
        files.append(files[1])
    elif kind == "shards":
        source = tmp_path / "{0..1}.tar"
        names = []
        for shard in range(2):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
                for index in range(3):
                    archive.add(files[3 * shard + index], f"{index}.png")
                    names.append(f"{shard}.tar/{index}.png")
    else:
        datasets = pytest.importorskip("datasets")
        source = tmp_path / "set"
        rows_of = [{"bytes": file.read_bytes(), "path": None} for file in files]
        made = datasets.Dataset.from_dict({"picture": rows_of}, datasets.Features({"picture": datasets.Image()}))
        datasets.DatasetDict({"train": made}).save_to_disk(source)
        names = [f"train/{index}" for index in range(6)]
    capsys.readouterr()
    assert main(["predict", "--run", str(root / "run"), str(source), "--batch-size", "4"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["name"] for row in found] == names
    assert [row["class"] for row in found] == [file.parent.name for file in files]
    if kind == "manifest":
        files[2].rename(tmp_path / "aside.png")
        try:
            assert main(["predict", "--run", str(root / "run"), str(source)]) == 2
            assert f"image '{files[2]}' cannot be read" in capsys.readouterr().err
            assert main(["predict", "--run", str(root / "run"), str(source), "--skip-bad"]) == 0
            assert [row["name"] for row in rows(capsys.readouterr().out)] == names[:2] + names[3:]
        finally:
            (tmp_path / "aside.png").rename(files[2])


def test_rows_of_a_table_with_columns_in_another_order_and_without_the_label(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (table / "trees.csv").read_text().splitlines()[1:]
    other = [",".join([kind, width, "x"]) for width, kind, _ in (line.split(",") for line in lines)]
    (tmp_path / "new.csv").write_text("kind,width,more\n" + "\n".join(other) + "\n")
    capsys.readouterr()
    assert main(["predict", "--run", str(table / "run"), str(tmp_path / "new.csv")]) == 0
    found = [row["class"] for row in rows(capsys.readouterr().out)]
    assert np.mean([a == b.rsplit(",", 1)[1] for a, b in zip(found, lines, strict=True)]) > 0.9
    (tmp_path / "less.csv").write_text("kind\noak\n")
    assert main(["predict", "--run", str(table / "run"), str(tmp_path / "less.csv")]) == 2
    assert "width" in capsys.readouterr().err


BAD = {
    "no file": (["nowhere.png"], "nowhere.png: no such file"),
    "ending": (["{data}", "--out", "p.txt"], "--out p.txt"),
    "folder": (["{data}", "--out", "no/p.csv"], "the folder no does not exist"),
    "top": (["{data}", "--top", "0"], "top=0"),
    "batch": (["{data}", "--batch-size", "0"], "batch_size=0"),
    "a table for images": (
        ["{table}"],
        "trees.csv: {run} was trained on images data: pass images, folders, manifests or shards of them",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str, root: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, message = BAD[name]
    filled = [flag.format(data=root / "data", table=table / "trees.csv") for flag in flags]
    capsys.readouterr()
    assert main(["predict", "--run", str(root / "run"), *filled]) == 2
    printed = capsys.readouterr().err.strip()
    assert message.format(run=root / "run") in printed
    assert printed.count("\n") == 0


@pytest.mark.parametrize("given", ["{data}", "{data}/blue/0.png", "{array}"])
def test_a_run_on_a_table_is_given_tables(
    given: str, root: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3)))
    capsys.readouterr()
    name = given.format(data=root / "data", array=tmp_path / "x.npz")
    assert main(["predict", "--run", str(table / "run"), name]) == 2
    printed = capsys.readouterr().err
    assert f"{name}: {table / 'run'} was trained on table data: pass a .csv, .tsv or .parquet file" in printed


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_evaluate_skips_unreadable_images_with_their_labels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for name in ("amber", "green"):
        shutil.copytree(root / "data" / name, tmp_path / "new" / name)
    (tmp_path / "new" / "amber" / "0.png").write_bytes(b"no picture")
    source = tmp_path / "new"
    if kind == "manifest":
        files = [file.relative_to(source) for file in sorted(source.rglob("*.png"))]
        source = source / "list.csv"
        source.write_text("path,label\n" + "".join(f"{file},{file.parent}\n" for file in files))
    capsys.readouterr()
    ask = ["evaluate", "--run", str(root / "run"), "--data", str(source), "--part", "all"]
    assert main([*ask, "--skip-bad", "1"]) == 0
    printed = capsys.readouterr()
    assert "19 samples" in printed.out
    assert "accuracy  100.00%" in printed.out
    assert "skipped 1 unreadable file(s)" in printed.err
    assert main(ask) == 2


def test_evaluate_reads_the_runs_own_images_a_batch_at_a_time(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    ask = ["evaluate", "--run", str(root / "run"), "--part", "all", "--batch-size"]
    assert main([*ask, "99"]) == 0
    whole = capsys.readouterr().out
    sizes, get = list[int](), Images.__getitem__

    def counted(self: Images, positions: object) -> torch.Tensor:
        found = get(self, positions)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Images, "__getitem__", counted)
    assert main([*ask, "4"]) == 0
    assert (capsys.readouterr().out, sum(sizes), max(sizes)) == (whole, 30, 4)


def test_evaluate_on_fewer_classes_in_a_folder_of_their_own(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "two", ("green", "blue"), each=6)
    shutil.rmtree(data / "blue")
    shutil.copytree(root / "data" / "blue", data / "blue")
    capsys.readouterr()
    assert main(["evaluate", "--run", str(root / "run"), "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "16 samples (all)" in printed
    assert "balanced accuracy" in printed
    assert "blue   100.0%  10 of 10" in printed
    shutil.copytree(root / "data" / "amber", data / "mauve")
    assert main(["evaluate", "--run", str(root / "run"), "--data", str(data)]) == 2
    assert "classes that the run does not know: mauve" in capsys.readouterr().err


def test_evaluate_a_table_an_npz_and_the_runs_own_parts(
    table: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((table / "run" / "result.json").read_text())["metrics"]
    assert main(["evaluate", "--run", str(table / "run")]) == 0
    assert f"{100 * metrics['test_accuracy']:.2f}%" in capsys.readouterr().out
    lines = [line for line in (table / "trees.csv").read_text().splitlines() if not line.endswith("well")]
    (tmp_path / "sick.csv").write_text("\n".join(lines))
    assert main(["evaluate", "--run", str(table / "run"), "--data", str(tmp_path / "sick.csv")]) == 0
    assert f"{len(lines) - 1} samples (all)" in capsys.readouterr().out
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    pixels[:2, ..., 2], pixels[2:, ..., 1] = 220, 200
    np.savez(tmp_path / "x.npz", x=pixels, y=np.array(["blue", "blue", "green", "green"]))
    assert main(["evaluate", "--run", str(root / "run"), "--data", str(tmp_path / "x.npz")]) == 0
    assert "4 samples (all)" in capsys.readouterr().out
    np.savez(tmp_path / "y.npz", x=pixels, y=np.array([0, 1, 2, 3]))
    assert main(["evaluate", "--run", str(root / "run"), "--data", str(tmp_path / "y.npz")]) == 2
    assert main(["evaluate", "--run", str(root / "run"), "--data", str(table / "trees.csv")]) == 2
    assert "was trained on a folder of images" in capsys.readouterr().err


def test_a_run_on_data_without_a_test_part_is_evaluated_on_its_validation_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(80, 3))
    np.savez(tmp_path / "x.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
    out = str(tmp_path / "run")
    assert main(["train", "--data", str(tmp_path / "x.npz"), "--epochs", "2", "--out", out]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", out]) == 0
    printed = capsys.readouterr()
    assert "8 samples (valid)" in printed.out
    assert "has no test data: evaluated on validation data" in printed.err
    assert main(["evaluate", "--run", out, "--part", "train"]) == 0
    assert "72 samples (train)" in capsys.readouterr().out
    assert main(["evaluate", "--run", out, "--part", "test"]) == 2


def test_a_run_from_python_is_predicted_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers import mlp

    interrupted(mlp(), tmp_path / "run")
    (tmp_path / "x.png").write_bytes(b"")
    assert main(["predict", "--run", str(tmp_path / "run"), str(tmp_path / "x.png")]) == 2
    assert "model=..." in capsys.readouterr().err
