"""New data is preprocessed as the training data was, from the run's record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.data.load_preprocess import load_preprocess
from heptane.data.preprocess import Preprocess

MODES = ("RGB", "L", "P", "RGBA", "CMYK", "I;16")


def again(data: hp.Data) -> Preprocess:
    """The preprocessing as another process finds it, in a run's result.json."""
    assert data.preprocess is not None
    return load_preprocess(json.loads(json.dumps(data.preprocess.record())))


def odd_pictures(root: Path, modes: tuple[str, ...] = MODES) -> Path:
    """Pictures of odd sizes and modes, one of them turned by EXIF; two classes."""
    random = np.random.default_rng(0)
    for index in range(24):
        mode, side = modes[index % len(modes)], 9 + index
        noise = random.integers(0, 256, (side, 2 * side - 5), dtype="u1")
        if mode == "I;16":
            picture = Image.fromarray(noise.astype("u2") * 200)
        else:
            picture = Image.fromarray(np.stack([noise, noise[::-1], 255 - noise], -1)).convert(mode)
        (root / "ab"[index % 2]).mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 3 else 1
        picture.save(root / "ab"[index % 2] / f"{index:02}.{'tif' if mode == 'CMYK' else 'png'}", exif=exif)
    return root


@pytest.mark.parametrize("modes", [MODES, ("L", "I;16")])
def test_files_give_bitwise_the_inputs_that_training_had(tmp_path: Path, modes: tuple[str, ...]) -> None:
    data = hp.load_data(odd_pictures(tmp_path, modes), image_size=16)
    names, inputs = again(data).inputs(tmp_path)
    assert names == sorted(str(path) for path in tmp_path.glob("*/*"))
    trained = torch.cat([part[0] for part in (data.train, data.valid, data.test)])
    rows = sorted(row.numpy().tobytes() for row in inputs)
    assert rows == sorted(row.numpy().tobytes() for row in trained)
    assert data.input_shape == (1 if modes[0] == "L" else 3, 16, 16)


def test_files_pictures_and_arrays_of_the_same_image_are_the_same(tmp_path: Path) -> None:
    preprocess = again(hp.load_data(odd_pictures(tmp_path), image_size=16))
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype="u1")
    Image.fromarray(pixels).save(tmp_path / "new.png")
    names, (want,) = preprocess.inputs(str(tmp_path / "new.png"))
    assert names == [str(tmp_path / "new.png")]
    first = torch.from_numpy(pixels).permute(2, 0, 1)
    for source in (Image.fromarray(pixels), pixels, first, first[None], pixels[None], [first], pixels.astype("f8")):
        names, (found,) = preprocess.inputs(source)
        assert torch.equal(found, want)
        assert names == ["0"]
    names, both = preprocess.inputs([tmp_path / "new.png", tmp_path / "a", np.stack([pixels, pixels])])
    assert torch.equal(both[0], want)
    assert torch.equal(both[-1], want)
    assert names[0] == str(tmp_path / "new.png")
    assert names[-2:] == ["13", "14"]


def test_an_array_of_another_size_is_fitted_as_its_file_is(tmp_path: Path) -> None:
    preprocess = again(hp.load_data(odd_pictures(tmp_path), image_size=16))
    pixels = np.random.default_rng(1).integers(0, 256, (30, 21), dtype="u1")
    Image.fromarray(pixels).save(tmp_path / "new.png")
    assert torch.equal(preprocess.inputs(pixels)[1], preprocess.inputs(tmp_path / "new.png")[1])


def test_digits_have_white_at_16_in_arrays_and_at_255_in_files(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    data, images = hp.load_data("digits"), load_digits().images
    preprocess = again(data)
    _, inputs = preprocess.inputs(images)
    rows = {row.numpy().tobytes() for row in inputs}
    assert all(row.numpy().tobytes() in rows for row in data.valid[0])
    Image.fromarray(np.round(images[7] * 255 / 16).astype("u1")).save(tmp_path / "seven.png")
    assert torch.allclose(preprocess.inputs(tmp_path / "seven.png")[1][0], inputs[7], atol=0.1)  # of 2.7 for white
    with pytest.raises(hp.InputError, match="values from 0 to 255: expected pixels from 0 to 16"):
        preprocess.inputs(np.arange(64, dtype="u1").reshape(8, 8) // 63 * 255)


def test_arrays_of_8_bits_give_what_training_had(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 4), dtype="u1")
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2, x_valid=x[:5], y_valid=np.arange(5) % 2)
    data = hp.load_data(tmp_path / "a.npz")
    assert data.kind == "images"
    for source in (x, torch.from_numpy(x), tmp_path / "a.npz", x.transpose(0, 3, 1, 2)):
        assert torch.equal(again(data).inputs(source)[1], data.train[0])


def test_numbers_give_what_training_had(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(5, 3, (20, 4))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2, x_valid=x[:5], y_valid=np.arange(5) % 2)
    np.save(tmp_path / "x.npy", x.astype("f4"))
    data = hp.load_data(tmp_path / "a.npz")
    assert (data.kind, data.class_counts) == ("arrays", (10, 10))
    for source in (x, torch.from_numpy(x), tmp_path / "a.npz", x.tolist(), tmp_path / "x.npy"):
        names, inputs = again(data).inputs(source)
        assert torch.equal(inputs, data.train[0])
        assert names == [str(index) for index in range(20)]
    assert torch.equal(again(data).inputs(x[3])[1], data.train[0][3:4])


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    preprocess = again(hp.load_data("digits"))
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert preprocess.inputs(tmp_path)[0] == [str(tmp_path / "one.png")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "'nowhere.png' does not exist"),
        ([], "no images to predict"),
        (3.5, "a float is not an image"),
        (np.zeros((2, 2, 8, 8, 1), "u1"), r"an array of shape \(2, 2, 8, 8, 1\) is not images"),
        (
            np.linspace(-2, 2, 64).reshape(8, 8),
            "values from -2 to 2: expected pixels from 0 to 16, before any normalisation",
        ),
        (np.full((8, 8), np.nan), "values that are not finite numbers"),
        (np.zeros((9, 8)), r"an image of shape \(1, 9, 8\) and dtype float64: expected \(1, 8, 8\)"),
    ],
)
def test_what_is_no_image_is_refused(source: object, message: str) -> None:
    with pytest.raises(hp.InputError, match=message) as caught:
        again(hp.load_data("digits")).inputs(source)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    preprocess = again(hp.load_data("digits"))
    with pytest.raises(hp.InputError, match="and its subfolders have no image"):
        preprocess.inputs(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(hp.InputError, match=r"bad\.png' cannot be read"):
        preprocess.inputs(tmp_path)


def test_normalised_images_are_not_taken_for_pixels(tmp_path: Path) -> None:
    preprocess = again(hp.load_data(odd_pictures(tmp_path), image_size=16))
    with pytest.raises(hp.InputError, match=r"values from 0\.5 to 0\.5: expected pixels from 0 to 255"):
        preprocess.inputs(np.full((3, 16, 16), 0.5))


@pytest.mark.parametrize("record", [{}, {"kind": "sounds"}, {"kind": "images"}, {"kind": "arrays", "shape": 3}, None])
def test_a_damaged_record_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(hp.InputError, match="preprocess "):
        load_preprocess(record)
