"""Splits of images: copies of one file are never on both sides."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.data.images import split_images
from heptane.data.images.sources import list_images
from heptane.data.images.split_images import find_copies
from heptane.data.splits import split_by_class


def photos(root: Path, count: int = 20, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Bitmaps of noise, all of one file size."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng(1000 * label + index).integers(0, 256, (5, 6, 3), dtype="u1")
            Image.fromarray(noise).save(root / name / f"{index:03}.bmp")
    return root


def homes(data: hp.Data) -> dict[str, str]:
    """The part of each file."""
    return {name: part for part, names in data.files.items() for name in names}


def about_copies(data: hp.Data) -> list[str]:
    return [note for note in data.notes if "cop" in note]


def test_copies_are_in_one_part_and_counted(tmp_path):
    root = photos(tmp_path / "pets")
    for index in range(20):  # under other names, also in the other class
        shutil.copy(root / "cat" / f"{index:03}.bmp", root / ("cat" if index < 10 else "dog") / f"copy{index:03}.bmp")
    data = hp.load_data(root)
    where = homes(data)
    assert len(where) == 60
    for index in range(20):
        assert where[f"cat/{index:03}.bmp"] == where[f"{'cat' if index < 10 else 'dog'}/copy{index:03}.bmp"]
    assert len(set(where.values())) == 3
    assert about_copies(data) == ["20 file(s) are copies of others: each is in the same part as the other"]
    assert all(len(part[1]) >= 4 for part in (data.valid, data.test))


def test_without_copies_the_split_is_the_same_as_ever(tmp_path):
    root = photos(tmp_path / "pets")
    data = hp.load_data(root, seed=5)
    assert about_copies(data) == []
    rest, test, valid = split_by_class(torch.tensor([0] * 20 + [1] * 20), [0.1, 0.1], 5)
    names = [f"{name}/{index:03}.bmp" for name in ("cat", "dog") for index in range(20)]
    for part, index in (("train", rest), ("valid", valid), ("test", test)):
        assert list(data.files[part]) == [names[at] for at in index.tolist()]


@pytest.mark.parametrize("kind", ["train/", "manifest", "shards"])
def test_copies_stay_together_in_every_source(tmp_path, kind):
    import tarfile

    root = photos(tmp_path / "pets" / ("train" if kind == "train/" else "."), 15)
    for path in [*root.rglob("*.bmp")]:
        shutil.copy(path, path.with_name(f"x{path.name}"))
    source = tmp_path / "pets"
    files = sorted(path.relative_to(root) for path in root.rglob("*.bmp"))
    if kind == "manifest":
        source = root / "list.csv"
        source.write_text("path,label\n" + "".join(f"{file},{file.parent}\n" for file in files))
    if kind == "shards":
        source = tmp_path / "all.tar"
        with tarfile.open(source, "w") as archive:
            for file in files:
                archive.add(root / file, str(file))
                label = tmp_path / "label"
                label.write_text(str(file.parent))
                archive.add(label, str(file.with_suffix(".cls")))
    data = hp.load_data(source)
    where = homes(data)
    assert len(where) == 60
    assert all(part == where[name.replace("/x", "/")] for name, part in where.items())
    assert len(set(where.values())) == (2 if kind == "train/" else 3)
    assert about_copies(data) == ["30 file(s) are copies of others: each is in the same part as the other"]


def test_only_files_of_equal_size_are_read_and_none_if_that_takes_too_long(tmp_path, monkeypatch):
    root = photos(tmp_path / "pets", 10)
    Image.fromarray(np.zeros((9, 9, 3), "u1")).save(root / "cat" / "large.bmp")
    images = list_images(root).images
    read = list[int]()
    digest = type(images).digest
    monkeypatch.setattr(type(images), "digest", lambda self, index: read.append(index) or digest(self, index))
    firsts, notes = find_copies(images, np.arange(len(images)))
    assert (firsts.tolist(), notes) == (list(range(21)), [])
    assert [images.name(index) for index in set(range(21)) - set(read)] == ["cat/large.bmp"]
    read.clear()
    monkeypatch.setattr(split_images, "MAX_COMPARED", 19 * split_images.OPENING)
    shutil.copy(root / "cat" / "000.bmp", root / "cat" / "copy.bmp")
    data = hp.load_data(root, image_size=4)
    assert read == []
    assert about_copies(data) == [
        "copies of the same file were not looked for, since 21 files share their size with another"
    ]


def test_a_class_of_copies_is_trained_on(tmp_path):
    for seed in range(6):
        root = photos(tmp_path / str(seed) / "pets", 10)
        (root / "eel").mkdir()
        shutil.copy(root / "dog" / "003.bmp", root / "eel" / "0.bmp")
        data = hp.load_data(root, seed=seed)
        where = homes(data)
        assert where["eel/0.bmp"] == where["dog/003.bmp"] == "train"


def test_too_few_different_images_are_refused_with_the_number_of_copies(tmp_path):
    root = photos(tmp_path / "pets", 1)
    for name in ("cat", "dog"):
        for index in range(1, 20):
            shutil.copy(root / name / "000.bmp", root / name / f"{index:03}.bmp")
    with pytest.raises(hp.InputError, match=r"of 2 samples leaves a part.*\(38 more are copies of these\)"):
        hp.load_data(root)
