"""``heptane data inspect``: what it finds in tiny data sets with known faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heptane.cli import loading, main
from heptane.data.images import inspect_images, load_images, pixel_store


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))


def picture(seed: int, side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three parts of two classes, 12 different pictures in each class folder of training, and 4 elsewhere."""
    root = tmp_path / "photos"
    for part, count in (("train", 12), ("valid", 4), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            for at in range(count):
                seed = 1000 * label + 100 * len(part) + 10_000 * (part == "train") + at
                save(picture(seed), root / part / name / f"{at:02}.png")
    return root


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["data", "inspect", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def names(group: dict[str, Any]) -> list[str]:
    return [sample["name"] for sample in group["samples"]]


def test_counts_sizes_classes_and_the_plan(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(picture(1, 80), photos / "train" / "cat" / "large.jpg")
    found = inspected(capsys, str(photos), "--out", str(tmp_path / "out"))
    assert found["parts"] == {"train": 25, "valid": 8, "test": 8}
    assert found["classes"] == [
        {"name": "cat", "train": 13, "valid": 4, "test": 4},
        {"name": "dog", "train": 12, "valid": 4, "test": 4},
    ]
    assert (found["samples"], found["tried"], found["formats"]) == (41, 41, {"PNG": 40, "JPEG": 1})
    assert found["sizes"]["width"] == found["sizes"]["height"] == [40, 40, 80]
    assert found["sizes"]["largest"] == {"name": "train/cat/large.jpg", "width": 80, "height": 80}
    assert found["colours"] == {"colour": 41}
    assert (found["unreadable"], found["duplicates"]["groups"], found["stops"]) == ([], [], None)
    assert found["plan"][0].startswith("data     photos: 25 training, 8 validation, 8 test samples of 2 classes")
    assert json.loads((tmp_path / "out" / "inspect.json").read_text()) == found


def test_the_same_picture_is_found_across_parts_labels_and_formats(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = photos / "train", photos / "test"
    (test / "cat" / "copy.png").write_bytes((train / "cat" / "00.png").read_bytes())
    save(Image.open(train / "cat" / "01.png"), test / "cat" / "again.bmp")
    (train / "dog" / "cat.png").write_bytes((train / "cat" / "02.png").read_bytes())
    (train / "dog" / "twice.png").write_bytes((train / "dog" / "03.png").read_bytes())
    same = inspected(capsys, str(photos), "--out", str(tmp_path / "out"))["duplicates"]
    assert [(group["kinds"], sorted(names(group))) for group in same["groups"]] == [
        (["across parts"], ["test/cat/copy.png", "train/cat/00.png"]),
        (["across parts"], ["test/cat/again.bmp", "train/cat/01.png"]),
        (["different labels", "within a part"], ["train/cat/02.png", "train/dog/cat.png"]),
        (["within a part"], ["train/dog/03.png", "train/dog/twice.png"]),
    ]
    assert same["in_training"] == {"valid": 0, "test": 2}
    assert same["samples"] == 8


def test_pictures_with_equal_thumbnails_but_other_pixels_are_not_the_same(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Image.new("RGB", (640, 640), "white")
    save(page, photos / "train" / "cat" / "page.png")
    page.putpixel((3, 3), (254, 255, 255))
    save(page, photos / "test" / "cat" / "page.png")
    looks = inspect_images._look(page), inspect_images._look(Image.new("RGB", (640, 640), "white"))
    assert looks[0].key == looks[1].key  # else this would not test the comparison of all pixels
    assert inspected(capsys, str(photos), "--out", str(tmp_path / "out"))["duplicates"]["groups"] == []


def test_unreadable_images_are_named_with_reasons_and_a_remedy(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "train" / "cat" / "00.png").read_bytes()
    (photos / "train" / "cat" / "half.png").write_bytes(whole[: len(whole) // 2])
    (photos / "valid" / "dog" / "text.jpg").write_text("not a picture")
    out = tmp_path / "out"
    assert main(["data", "inspect", str(photos), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "inspect.json").read_text())
    assert [(one["name"], one["part"], one["label"]) for one in found["unreadable"]] == [
        ("train/cat/half.png", "train", "cat"),
        ("valid/dog/text.jpg", "valid", "dog"),
    ]
    assert "cannot identify image file" in found["unreadable"][1]["reason"]
    assert "2 of 42 images cannot be read" in said
    assert all(f"  {one['name']}: {one['reason']}" in said for one in found["unreadable"])
    assert "leave them out with --skip-bad 2" in said
    assert found["command"].endswith("--skip-bad 2")
    assert found["plan"][0].startswith("data     photos: 24 training, 8 validation, 8 test samples")


def test_the_contact_sheet_shows_each_class(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for at in range(12):
        save(Image.new("RGB", (40, 40), (255, 0, at)), photos / "train" / "cat" / f"{at:02}.png")
        save(Image.new("RGB", (40, 40), (0, 0, 255 - at)), photos / "train" / "dog" / f"{at:02}.png")
    inspected(capsys, str(photos), "--out", str(tmp_path / "out"))
    with Image.open(tmp_path / "out" / "contact.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] == 255) & (pixels[..., 1] == 0) & (pixels[..., 2] < 12)
    blue = (pixels[..., 0] == 0) & (pixels[..., 1] == 0) & (pixels[..., 2] > 243)
    tile = (inspect_images.TILE - 2) ** 2
    assert (red.sum(), blue.sum()) == (12 * tile, 12 * tile)
    assert np.flatnonzero(red.any(1)).max() < np.flatnonzero(blue.any(1)).min()


def test_a_very_large_folder_is_sampled_unless_all_is_given(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_images, "LARGE", 40)
    monkeypatch.setattr(inspect_images, "SAMPLE", 10)
    assert main(["data", "inspect", str(photos), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "10 of 40 images, evenly spaced; --all reads all of them" in said
    assert "all that were tried can be read" in said
    assert inspected(capsys, str(photos), "--out", str(tmp_path / "out"), "--force", "--all")["tried"] == 40


@pytest.mark.parametrize("damaged", [0, 2])
def test_a_plan_decodes_a_few_images_only(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    monkeypatch.setattr(load_images, "PLANNED", 5)
    monkeypatch.setattr(loading, "PLANNED", 39)
    for index in range(damaged):
        (photos / "train" / "cat" / f"{index:02}.png").write_bytes(b"no picture")
    counted: list[int] = []
    decode = pixel_store.decode
    monkeypatch.setattr(pixel_store, "decode", lambda *arguments: counted.append(1) or decode(*arguments))
    skip = ["--skip-bad", str(damaged)] if damaged else []
    assert main(["train", "--data", str(photos), "--dry-run", "--no-transfer", *skip]) == 0
    assert "decoded" not in capsys.readouterr().out
    assert 1 <= len(counted) <= 5
    counted.clear()
    found = inspected(capsys, str(photos), "--out", str(tmp_path / "out"))
    assert found["stops"] is None
    assert len(found["unreadable"]) == damaged
    assert len(counted) <= 5


def test_files_are_not_overwritten_and_not_written_into_the_data(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    inspected(capsys, str(photos), "--out", str(out))
    assert main(["data", "inspect", str(photos), "--out", str(out)]) == 2
    assert "already holds inspect.json and contact.png: choose another folder, or overwrite with --force" in (
        capsys.readouterr().err
    )
    assert main(["data", "inspect", str(photos), "--out", str(photos / "out")]) == 2
    assert "is in the data folder" in capsys.readouterr().err


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["data"], "COMMAND"),
        (["data", "inpsect"], "did you mean inspect?"),
        (["data", "inspect", "x", "--lable", "y"], "did you mean --label?"),
        (["data", "inspect", str(tmp_path / "none")], "is not a known name or an existing path"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_table_shows_columns_classes_and_equal_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    lines = ["size,colour,same,sold"]
    lines += [f"{n if n != 5 else ''},{'red' if n % 3 else 'blue'},1,{'yes' if n % 2 else 'no'}" for n in range(60)]
    lines += ["7,red,1,no"]  # as row 7, but sold
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found = inspected(capsys, str(tmp_path / "t.csv"), "--label", "sold", "--out", str(tmp_path / "out"))
    assert sum(found["parts"].values()) == found["samples"] == 61
    assert {one["name"]: sum(one[part] for part in found["parts"]) for one in found["classes"]} == {"no": 31, "yes": 30}
    size, colour, same = found["columns"]
    assert (size["kind"], size["missing"], size["distinct"], size["values"]) == ("number", 1, 59, "0 to 59")
    assert (colour["kind"], colour["values"], colour["unused"]) == ("category", "red, blue", None)
    assert same["unused"] == "constant"
    (group,) = found["duplicates"]["groups"]
    assert names(group) == ["row 7", "row 60"]
    assert "different labels" in group["kinds"]
    assert found["plan"][0].startswith("data     t: ")


def test_arrays_show_classes_and_equal_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x, x_test = (random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8) for count in (40, 10))
    x_test[3] = x[0]
    pairs = {"x": x, "y": np.arange(40) % 2, "x_test": x_test, "y_test": np.arange(10) % 2}
    np.savez(tmp_path / "a.npz", **pairs)
    found = inspected(capsys, str(tmp_path / "a.npz"), "--out", str(tmp_path / "out"))
    assert (found["samples"], found["parts"]["test"], found["shape"]) == (50, 10, [1, 8, 8])
    (group,) = found["duplicates"]["groups"]
    assert "test 3" in names(group)
    assert group["kinds"] == ["across parts", "different labels"]
    assert (tmp_path / "out" / "contact.png").stat().st_size > 0
