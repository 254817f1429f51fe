"""What a folder of images is taken to be, from headers and a few pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from heptane.data.images.folder import list_folder
from heptane.data.images.survey import are_characters, survey


def made(root: Path, names: tuple[str, ...], draw: object, count: int = 6) -> Path:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            draw(label, i).save(root / name / f"{i}.png")  # type: ignore[operator]
    return root


def photo(label: int, i: int) -> Image.Image:
    smooth = Image.fromarray(np.random.default_rng(10 * label + i).integers(0, 256, (6, 8, 3), dtype="u1"))
    return smooth.resize((80, 60), Image.Resampling.BICUBIC)


def writing(label: int, i: int) -> Image.Image:
    image = Image.new("RGB", (40, 50), "white")
    ImageDraw.Draw(image).line((5, 5 + i, 35, 45 - 20 * label), fill="navy", width=3)
    return image


def test_pictures_are_told_from_writing(tmp_path: Path) -> None:
    seen = survey(list_folder(made(tmp_path / "a", ("cat", "dog"), photo)))
    assert seen is not None
    assert (seen.is_writing, seen.height, seen.width, seen.counts) == (False, 60, 80, (6, 6))
    assert (seen.num_train, seen.sided) == (10, ())
    seen = survey(list_folder(made(tmp_path / "b", ("alpha", "turn-left"), writing)))
    assert seen is not None
    assert (seen.is_writing, seen.sided) == (True, ("turn-left",))


@pytest.mark.parametrize(("names", "are"), [(("A", "B"), True), (("0", "10", "x"), True), (("cat", "b", "dog"), False)])
def test_classes_named_like_characters_are_writing(names: tuple[str, ...], are: bool) -> None:
    assert are_characters(names) is are


def test_a_folder_of_which_nothing_can_be_read_has_no_look(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no picture")
    assert survey(list_folder(tmp_path)) is None
