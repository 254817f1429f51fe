"""Manifests: tables whose rows name an image file, a label and perhaps a part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.data.images.sources import images_kind, list_images
from heptane.data.load_labelled import load_labelled


def picture(path: Path, value: int, side: int = 6) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, dtype="u1")).save(path)
    return path.name


def write(folder: Path, labels: list[object], column: str = "path", name: str = "list.csv", **more: list[object]) -> Path:
    """A manifest of images 0.png, 1.png, ..., whose pixels are their number, with these labels."""
    names = [picture(folder / f"{index}.png", index) for index in range(len(labels))]
    frame = pd.DataFrame({column: names, "label": labels, **more})
    path = folder / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return path


def values(data: hp.Data, part: str = "train") -> list[int]:
    """The numbers of a part's images."""
    found = getattr(data, part)[0][:][:, 0, 0, 0].double() * data.std[0] + data.mean[0]
    return torch.round(found * 255).long().tolist()


def everything(data: hp.Data) -> dict[int, object]:
    """The target of each image, by its number."""
    there = [part for part in ("train", "valid", "test") if getattr(data, part)]
    return {
        number: target
        for part in there
        for number, target in zip(values(data, part), getattr(data, part)[1].tolist(), strict=True)
    }


@pytest.mark.parametrize("column", ["path", "file", "filename", "image", "image_path", "Path"])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
def test_each_row_is_an_image_and_its_class(tmp_path, column, name):
    path = write(tmp_path, ["dog" if n % 3 else "cat" for n in range(30)], column, name)
    data = hp.load_data(path)
    assert (data.kind, data.name, data.class_names, data.num_classes) == ("images", "list", ("cat", "dog"), 2)
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [24, 3, 3]
    assert everything(data) == {n: int(n % 3 > 0) for n in range(30)}
    assert "column 'label' is the label, by its name" in data.notes
    assert sorted(name for names in data.files.values() for name in names) == sorted(f"{n}.png" for n in range(30))


def test_the_split_column_gives_the_parts(tmp_path):
    splits = ["train"] * 6 + ["val"] * 2 + ["Validation"] * 2 + ["test"] * 2
    data = hp.load_data(write(tmp_path, ["a", "b"] * 6, Split=splits))
    assert (values(data), values(data, "valid"), values(data, "test")) == ([*range(6)], [6, 7, 8, 9], [10, 11])
    with pytest.raises(hp.InputError, match=r"column 'split' holds 'dev' in row 1 .*: expected train, valid \(or"):
        hp.load_data(write(tmp_path, ["a", "b"], split=["train", "dev"]))
    with pytest.raises(hp.InputError, match="column 'split' has no row of the part train"):
        hp.load_data(write(tmp_path, ["a", "b"], split=["test", "valid"]))


def test_a_class_may_be_absent_from_a_given_part_but_not_from_training(tmp_path):
    data = hp.load_data(write(tmp_path, ["a", "b", "a"], split=["train", "train", "valid"]))
    assert (data.class_names, data.valid[1].tolist()) == (("a", "b"), [0])
    with pytest.raises(hp.InputError, match=r"class 'b' of '.*list.csv' has no readable image in the train part"):
        hp.load_data(write(tmp_path, ["a", "a", "b"], split=["train", "train", "valid"]))


def test_paths_may_be_in_subfolders_upper_case_absolute_and_unicode(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    names = [f"häuser/日本 {n}.PNG" for n in range(10)] + [f"deep/er/{n}.JPEG" for n in range(9)]
    for n, name in enumerate(names):
        picture(tmp_path / "data" / name, n)
    picture(elsewhere / "x.png", 19)
    names.append(str(elsewhere / "x.png"))
    table = tmp_path / "data" / "list.csv"
    pd.DataFrame({"file": names, "class": ["naïve", "日"] * 10}).to_csv(table, index=False)
    data = hp.load_data(table)
    assert sum(map(len, data.files.values())) == 20
    assert data.class_names == ("naïve", "日")
    assert "../elsewhere/x.png" in {name for part in data.files.values() for name in part}


def test_a_label_with_a_comma_is_one_class(tmp_path):
    data = hp.load_data(write(tmp_path, ["cat, small", "dog"] * 10))
    assert data.class_names == ("cat, small", "dog")


def test_label_chooses_the_column_and_task_a_number_or_classes(tmp_path):
    path = write(tmp_path, ["a", "b"] * 20, age=[n / 8 for n in range(40)], stars=[n % 4 for n in range(40)])
    data = hp.load_data(path, label="age")
    assert data.num_classes is None
    assert data.class_names == ()
    assert abs(float(data.train[1].mean())) < 1e-6
    assert data.train[1].dtype is torch.float32
    scale = data.preprocess.target
    assert all(round((target * scale.std + scale.mean) * 8) == number for number, target in everything(data).items())
    assert data.preprocess.parse(data.preprocess.record()).target == scale
    assert hp.load_data(path, label="stars").class_names == ("0", "1", "2", "3")
    assert hp.load_data(path, label="stars", task="regression").num_classes is None
    with pytest.raises(hp.InputError, match="label='sex' is not a column"):
        hp.load_data(path, label="sex")


@pytest.mark.parametrize("mark", ["|", ";"])
def test_several_classes_per_image(tmp_path, mark):
    labels = [f"cat{mark} dog", "dog", "", f"eel{mark}cat"] * 5
    data = hp.load_data(write(tmp_path, labels))
    assert (data.class_names, data.num_classes) == (("cat", "dog", "eel"), 3)
    assert data.train[1].dtype is torch.float32
    wanted = [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    assert everything(data) == {n: wanted[n % 4] for n in range(20)}
    assert "5 image(s) have no class in 'label': none applies to them" in data.notes


def test_lists_in_parquet_are_several_classes(tmp_path):
    data = hp.load_data(write(tmp_path, [["a"], ["b", "a|b"], [], None] * 5, name="list.parquet"))
    assert data.class_names == ("a", "a|b", "b")
    wanted = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert everything(data) == {n: wanted[n % 4] for n in range(20)}


def test_task_classification_takes_a_separator_as_part_of_the_name(tmp_path):
    path = write(tmp_path, ["a|b", "c"] * 10)
    assert hp.load_data(path).num_classes == 3
    assert hp.load_data(path, task="classification").class_names == ("a|b", "c")


def test_an_empty_label_among_single_classes_is_refused(tmp_path):
    with pytest.raises(hp.InputError, match=r"the label 'label' is missing in 1 of 12 rows, first in row 2"):
        hp.load_data(write(tmp_path, ["a", "b", "", *["a", "b", "b"] * 3]))


def test_missing_files_are_counted_and_skipped_only_on_demand(tmp_path):
    path = write(tmp_path, ["a", "b"] * 10)
    for gone in (3, 5):
        (tmp_path / f"{gone}.png").unlink()
    wanted = r"2 of the 20 files in column 'path' of '.*list.csv' do not exist, the first is '3.png': paths are relative to"
    for allowed in (0, 1):
        with pytest.raises(hp.InputError, match=wanted):
            hp.load_data(path, skip_bad=allowed)
    data = hp.load_data(path, skip_bad=2)
    assert "2 unreadable file(s) were skipped: '3.png', '5.png'" in data.notes
    assert sorted(everything(data)) == [n for n in range(20) if n not in (3, 5)]


def test_rows_that_repeat_an_image_are_ignored_and_contradictions_refused(tmp_path):
    path = write(tmp_path, ["a", "b"] * 10)
    table = pd.read_csv(path)
    pd.concat([table, table[:3].assign(path="./" + table["path"][:3])]).to_csv(path, index=False)
    data = hp.load_data(path)
    assert "3 row(s) that repeat an image were ignored" in data.notes
    assert len(everything(data)) == 20
    pd.concat([table, table[:1].assign(label="b")]).to_csv(path, index=False)
    with pytest.raises(hp.InputError, match=r"'0.png' is in several rows with different labels or parts: give each"):
        hp.load_data(path)


@pytest.mark.parametrize("column", ["path", "Image_ID", "file_name"])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_names_of_images_that_do_not_exist_are_refused(tmp_path, column, name):
    frame = pd.DataFrame({column: ["", "a.png", "b.JPG"] * 20, "size": range(60), "label": ["x", "y"] * 30})
    frame.to_parquet(tmp_path / name) if name.endswith("parquet") else frame.to_csv(tmp_path / name, index=False)
    wanted = f"column '{column}' of '{tmp_path / name}' names images, but the first 13 do not exist, such as "
    for load in (hp.load_data, images_kind):
        with pytest.raises(hp.InputError) as found:
            load(tmp_path / name)
        assert str(found.value).startswith(f"{wanted}'{tmp_path / 'a.png'}': paths are relative to the table's folder; ")
    picture(tmp_path / "b.JPG", 3)
    assert images_kind(tmp_path / name) == "manifest"


def test_names_with_spaces_around_them_are_refused_and_a_manifest_without_labels_too(tmp_path):
    path = write(tmp_path, ["a", "b"] * 10)
    path.write_text(path.read_text().replace(".png,", ".png ,"))
    with pytest.raises(
        hp.InputError, match=r"column 'path' of .* names images, but the first 20 do not exist, such as '.*0.png '"
    ):
        hp.load_data(path)
    pd.read_csv(write(tmp_path, ["a", "b"] * 10))[["path"]].to_csv(path, index=False)
    with pytest.raises(hp.InputError, match=r"list.csv' has no column but 'path': add one with the labels"):
        hp.load_data(path)


def test_a_table_without_names_of_images_stays_a_table(tmp_path):
    frame = pd.DataFrame({"path": ["a.txt", "b.png", "c"] * 20, "size": range(60), "label": ["x", "y"] * 30})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert images_kind(tmp_path / "t.csv") is None
    assert hp.load_data(tmp_path / "t.csv").kind == "table"
    (tmp_path / "notes.txt").write_text("x")
    frame.assign(path="notes.txt").to_csv(tmp_path / "t.csv", index=False)
    assert images_kind(tmp_path / "t.csv") is None
    (tmp_path / "empty.csv").write_text("")
    assert images_kind(tmp_path / "empty.csv") is None


def test_labelled_images_to_evaluate_are_matched_by_name(tmp_path):
    run = hp.load_data(write(tmp_path / "run", ["cat", "dog", "eel"] * 10))
    path = write(tmp_path / "new", ["eel", "dog", "eel", "dog"], split=["train", "train", "test", "test"])
    images, targets, part = load_labelled(path, "test", run.class_names, run.preprocess)
    assert (targets.tolist(), part) == ([2, 1], "test")
    names, inputs = run.preprocess.inputs(images)
    assert [Path(name).name for name in names] == ["2.png", "3.png"]
    pixels = inputs[:, 0, 0, 0].double() * run.std[0] + run.mean[0]
    assert torch.round(pixels * 255).tolist() == [2, 3]
    several = load_labelled(write(tmp_path / "more", ["eel|cat", "", "cat"]), "test", run.class_names, run.preprocess)
    assert several[1:][0].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert several[2] == "all"
    with pytest.raises(hp.InputError, match="has classes that the run does not know: fox; known: cat, dog, eel"):
        load_labelled(write(tmp_path / "odd", ["fox", "cat"]), "test", run.class_names, run.preprocess)
    with pytest.raises(hp.InputError, match="has no valid part, but train, test: choose one with --part"):
        load_labelled(path, "valid", run.class_names, run.preprocess)
    with pytest.raises(hp.InputError, match="the label 'label' holds text"):
        load_labelled(path, "test", (), run.preprocess)


def test_an_empty_path_is_refused(tmp_path):
    path = write(tmp_path, ["a", "b"] * 5)
    path.write_text(path.read_text().replace("4.png", ""))
    with pytest.raises(hp.InputError, match=r"column 'path' is empty in row 4 \(the first is 0\)"):
        hp.load_data(path)


def test_numbers_as_classes_say_nothing_about_the_pictures(tmp_path):
    assert not list_images(write(tmp_path, [0, 1] * 10)).named
    assert list_images(write(tmp_path, ["a", "b"] * 10)).named
