"""Hugging Face data sets, written here by save_to_disk."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.cli import main
from heptane.data.images.sources import images_kind, list_images

datasets = pytest.importorskip("datasets")


def content(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), value, dtype="u1")).save(file, "PNG")
    return file.getvalue()


def made(first: int, last: int, names: tuple[str, ...] = ("dog", "cat"), **more: object):
    numbers = range(first, last)
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names)), "size": datasets.Value("float64")}
    )
    rows = {
        "picture": [{"bytes": content(n), "path": None} for n in numbers],
        "kind": [n % 2 for n in numbers],
        "size": [n + 0.5 for n in numbers],
    }
    return datasets.Dataset.from_dict({**rows, **more}, features=features)


def everything(data: hp.Data) -> dict[int, object]:
    found: dict[int, object] = {}
    for part in filter(None, (data.train, data.valid, data.test)):
        pixels = part[0][:][:, 0, 0, 0].double() * data.std[0] + data.mean[0]
        found |= dict(zip(torch.round(pixels * 255).long().tolist(), part[1].tolist(), strict=True))
    return found


def test_images_classes_and_splits_are_found(tmp_path):
    splits = {"train": made(0, 10), "validation": made(10, 14), "test": made(14, 20), "unsup": made(20, 24)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    assert images_kind(tmp_path / "pets") == "hub"
    data = hp.load_data(tmp_path / "pets")
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [10, 4, 6]
    assert (data.name, data.class_names) == ("pets", ("dog", "cat"))
    assert everything(data) == {n: n % 2 for n in range(20)}
    assert "column 'kind' is the label, by its type" in data.notes
    assert "splits that are not train, validation or test were ignored: unsup" in data.notes
    assert data.files["valid"][0] == "validation/0"


def test_one_split_is_split_by_the_seed_and_absent_classes_are_left_out(tmp_path):
    made(0, 20, ("dog", "cat", "eel")).save_to_disk(tmp_path / "pets")
    data = hp.load_data(tmp_path / "pets")
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [16, 2, 2]
    assert data.class_names == ("dog", "cat")
    assert "classes without an image were left out: eel" in data.notes


def test_a_saved_folder_may_have_the_prefix_of_a_data_set(tmp_path):
    made(0, 20).save_to_disk(tmp_path / "pets")
    data = hp.load_data(f"hf-data:{tmp_path / 'pets'}")
    assert (data.name, len(everything(data))) == ("pets", 20)


def test_lists_of_classes_are_several_labels_and_the_label_by_their_type(tmp_path):
    kinds = [[0], None, [], [1, 0]] * 5
    rows = {"picture": [{"bytes": content(n), "path": None} for n in range(20)], "tags": kinds}
    of_lists = datasets.Sequence(datasets.ClassLabel(names=["dog", "cat"]))
    features = datasets.Features({"picture": datasets.Image(), "tags": of_lists})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pets")
    data = hp.load_data(tmp_path / "pets")
    assert data.class_names == ("dog", "cat")
    assert everything(data) == {n: [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]][n % 4] for n in range(20)}
    assert "column 'tags' is the label, by its type" in data.notes


@pytest.mark.parametrize("label", [None, -1])
def test_a_missing_label_is_named(tmp_path, label):
    made(0, 20, kind=[0, label, *[1] * 18]).save_to_disk(tmp_path / "pets")
    with pytest.raises(hp.InputError, match=r"the label 'kind' is not a class in row 1 \(the first is 0\): remove it"):
        hp.load_data(tmp_path / "pets")


def test_images_without_another_column_are_refused(tmp_path):
    made(0, 20).select_columns(["picture"]).save_to_disk(tmp_path / "pets")
    with pytest.raises(hp.InputError, match="the data set has images, but no other column: add one with their labels"):
        hp.load_data(tmp_path / "pets")


def test_the_command_trains_resumes_evaluates_its_own_test_part_and_predicts(tmp_path, capsys):
    made(0, 40).save_to_disk(tmp_path / "pets")
    source, run = f"hf-data:{tmp_path / 'pets'}", str(tmp_path / "run")
    small = ["--epochs", "1", "--batch-size", "8", "--model", "mlp", "--tricks", "none"]
    assert main(["train", "--data", source, "--out", run, *small]) == 0
    assert main(["train", "--resume", run, "--epochs", "2"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", run, "--data", source]) == 0
    assert "4 samples (test)" in capsys.readouterr().out
    assert main(["predict", "--run", run, source]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 41


def test_copies_are_in_one_part(tmp_path):
    numbers = [n // 2 for n in range(60)]
    rows = {"picture": [{"bytes": content(n), "path": None} for n in numbers], "size": [0.5 + n for n in numbers]}
    made(0, 60, kind=[n % 2 for n in numbers], **rows).save_to_disk(tmp_path / "pets")
    data = hp.load_data(tmp_path / "pets")
    where = {int(name.split("/")[1]): part for part, names in data.files.items() for name in names}
    assert [where[row] for row in range(0, 60, 2)] == [where[row] for row in range(1, 60, 2)]
    assert "30 file(s) are copies of others: each is in the same part as the other" in data.notes


def test_label_chooses_a_number(tmp_path):
    made(0, 20).save_to_disk(tmp_path / "pets")
    data = hp.load_data(tmp_path / "pets", label="size")
    scale = data.preprocess.target
    assert {n: round(t * scale.std + scale.mean, 3) for n, t in everything(data).items()} == {n: n + 0.5 for n in range(20)}


def test_a_split_without_labels_is_ignored(tmp_path):
    splits = {"train": made(0, 20), "test": made(20, 24, kind=[-1] * 4)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    data = hp.load_data(tmp_path / "pets")
    assert data.test is None
    assert "splits without labels were ignored: test" in data.notes


def test_bytes_are_not_decoded_and_the_fingerprint_follows_the_files(tmp_path):
    made(0, 20).save_to_disk(tmp_path / "a")
    made(1, 21).save_to_disk(tmp_path / "b")
    listing = list_images(tmp_path / "a")
    assert listing.images.read(7) == content(7)
    assert listing.images.fingerprint() == list_images(tmp_path / "a").images.fingerprint()
    assert listing.images.fingerprint() != list_images(tmp_path / "b").images.fingerprint()


def test_numbers_alone_are_a_table_and_text_is_refused(tmp_path):
    made(0, 40).remove_columns("picture").save_to_disk(tmp_path / "numbers")
    data = hp.load_data(tmp_path / "numbers", label="kind")
    assert (data.kind, data.class_names) == ("table", ("cat", "dog"))
    datasets.Dataset.from_dict({"text": ["a b"] * 9, "label": [0] * 9}).save_to_disk(tmp_path / "text")
    with pytest.raises(hp.InputError, match="column 'text' holds text: to predict from it pass --text text"):
        hp.load_data(tmp_path / "text")
