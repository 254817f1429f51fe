"""``load_data``'s arguments, the digits, the split and the normalization."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import heptane as hp
from heptane.data.dataset import DataUnavailable
from heptane.data.normalise import normalise
from heptane.data.splits import split

# --- arguments


@pytest.mark.parametrize("name", ["", None, 3, b"digits", ["digits"]])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(hp.InputError, match=r"expected a name \(fashion-mnist, digits\), a directory or an .npz file"):
        hp.load_data(name)


def test_a_name_that_is_nearly_right_is_offered():
    with pytest.raises(hp.InputError, match=r"data='digit' is not a known name.*did you mean digits\?"):
        hp.load_data("digit")
    with pytest.raises(hp.InputError, match="did you mean fashion-mnist"):
        hp.load_data("Fashion_MNIST")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.doc").write_text("1,2")
    with pytest.raises(hp.InputError, match=r"data\.doc' is not a directory, table or \.npz file: expected"):
        hp.load_data(tmp_path / "data.doc")


@pytest.mark.parametrize("name", ["nul\0byte", "~nobody-of-that-name/data", "x" * 5000])
def test_paths_that_cannot_be_opened_are_refused_in_one_line(name):
    with pytest.raises(hp.InputError, match="data=") as caught:
        hp.load_data(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, r"seed=-1 is out of range: expected a whole number in \[0"),
        ({"seed": 2**32}, "seed=4294967296 is out of range"),
        ({"seed": 0.5}, "seed=0.5: expected a whole number"),
        ({"image_size": 0}, "image_size=0 is out of range"),
        ({"image_size": 5000}, "image_size=5000 is out of range"),
        ({"image_size": (8, 0)}, "image_size=0 is out of range"),
        ({"image_size": (8, 8, 3)}, r"image_size=\(8, 8, 3\): expected a whole number or a pair \(height, width\)"),
        ({"image_size": ()}, r"image_size=\(\): expected a whole number"),
        ({"image_size": "32"}, "image_size='32': expected a whole number"),
        ({"image_size": 32}, "image_size=32: only image files can be resized; omit it for 'digits'"),
        ({"valid_fraction": 0}, "valid_fraction=0 is out of range"),
        ({"valid_fraction": 1}, "valid_fraction=1 is out of range"),
        ({"valid_fraction": float("nan")}, "valid_fraction=nan"),
        ({"valid_fraction": 0.9}, "setting aside 0.2 [+] 0.9 of 1797 samples leaves a part.*change valid_fraction"),
        ({"fallback": "mnist"}, "fallback='mnist' is not known .did you mean fashion-mnist"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(hp.InputError, match=message):
        hp.load_data("digits", **settings)


# --- digits


def test_digits_are_split_and_normalised_as_said():
    data = hp.load_data("digits")
    assert [len(part[0]) for part in (data.train, data.valid, data.test)] == [1079, 359, 359]
    assert (data.name, data.num_classes, data.input_shape, data.source) == ("digits", 10, (1, 8, 8), "scikit-learn")
    assert data.class_names == tuple("0123456789")
    assert "split 1079/359/359 into train, valid and test by the split seed 0" in data.notes[0]
    for x, y in (data.train, data.valid, data.test):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert set(y.tolist()) == set(range(10))
    assert data.mean == pytest.approx((0.30528936660,), abs=1e-9)
    assert data.std == pytest.approx((0.37642381483,), abs=1e-9)
    assert data.train[0].mean().abs() < 1e-5
    assert data.train[0].std() == pytest.approx(1, abs=1e-3)


def test_the_parts_of_digits_are_the_whole_set_each_image_once():
    from sklearn.datasets import load_digits

    data = hp.load_data("digits", seed=4)
    x, y = (torch.cat([part[i] for part in (data.train, data.valid, data.test)]) for i in (0, 1))
    pixels = torch.round((x * data.std[0] + data.mean[0]) * 16).flatten(1)
    found = sorted((*row, label) for row, label in zip(pixels.tolist(), y.tolist(), strict=True))
    whole = load_digits()
    assert found == sorted((*row, label) for row, label in zip(whole.data.tolist(), whole.target.tolist(), strict=True))


def test_the_split_belongs_to_its_seed():
    one, same, other = (hp.load_data("digits", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train[0], same.train[0])
    assert torch.equal(one.test[1], same.test[1])
    assert not torch.equal(one.train[1], other.train[1])
    more = hp.load_data("digits", seed=1, valid_fraction=0.3)
    assert len(more.valid[1]) == 539
    assert torch.equal(more.test[1], one.test[1])  # the test part does not move with the validation part


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataUnavailable, match=r"digits needs scikit-learn.*pip install \"heptane\[digits\]\""):
        hp.load_data("digits")
    with pytest.raises(DataUnavailable, match="digits needs"):
        hp.load_data("digits", fallback="digits")


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 2)), y=np.arange(20) % 2)
    assert hp.load_data("~/a.npz").name == "a"
    assert hp.load_data(Path("~/a.npz")).source == str(tmp_path / "a.npz")


# --- split


def test_the_split_is_the_same_everywhere():
    assert [part.tolist() for part in split([10], [0.2], 0)] == [[0, 1, 3, 4, 5, 6, 7, 9], [2, 8]]
    assert [part.tolist() for part in split([6, 4], [0.2, 0.2], 7)] == [[0, 3, 4, 5, 6, 9], [2, 8], [1, 7]]


@pytest.mark.parametrize(
    ("groups", "shares"),
    [
        ([10], [0.1]),
        ([1797], [0.2, 0.2]),
        ([5, 5, 5], [0.2]),
        ([100, 1, 1], [0.1, 0.1]),
        ([1, 1, 100], [0.1, 0.1]),
        ([5, 1, 1, 1, 1, 1], [0.1]),
        ([3] * 40, [0.3, 0.3]),
        ([2, 50, 0, 7], [0.5]),
        ([2], [0.5]),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_split_is_a_partition_with_the_sizes_asked_for(groups, shares, seed):
    parts = split(groups, shares, seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(sum(groups)))
    wanted = [round(share * sum(groups)) for share in shares]
    wanted[-1] = max(wanted[-1], len(groups) if min(groups) > 1 < len(groups) else 0)  # one of each class
    assert [len(part) for part in parts[1:]] == wanted
    assert all(part.dtype == torch.int64 and torch.equal(part, part.sort().values) for part in parts)
    start = 0
    for size in groups:
        rest = (parts[0] >= start) & (parts[0] < start + size)
        assert rest.any() or size == 0
        if size > 1 < len(groups):
            assert ((parts[-1] >= start) & (parts[-1] < start + size)).any()
        start += size


def test_each_part_is_spread_evenly_over_the_groups():
    groups = [100, 37, 63, 100, 100]
    parts = split(groups, [0.1, 0.2], 5)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(groups))
    for part, share in zip(parts[1:], (0.1, 0.2), strict=True):
        counts = torch.bincount(labels[part], minlength=5)
        assert (counts - share * torch.tensor(groups)).abs().max() <= 1


@pytest.mark.parametrize(
    ("groups", "shares"), [([1], [0.5]), ([4], [0.1]), ([1, 1, 1], [0.4]), ([10], [0.5, 0.5]), ([], [0.1])]
)
def test_a_split_that_leaves_something_empty_is_refused(groups, shares):
    with pytest.raises(
        hp.InputError, match=f"of {sum(groups)} samples leaves a part.*change valid_fraction or give more data"
    ):
        split(groups, shares, 0)


# --- normalise


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_have_mean_0_and_std_1_by_the_first_part(channels):
    parts = [torch.randint(0, 256, (n, channels, 5, 7), dtype=torch.uint8) for n in (30, 4, 1)]
    before = [part.clone() for part in parts]
    inputs, mean, std = normalise(parts)
    scaled = parts[0].double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    for part, result, original in zip(parts, inputs, before, strict=True):
        want = (part.double() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        assert result.dtype == torch.float32
        assert torch.allclose(result.double(), want, atol=1e-5)
        assert torch.equal(part, original)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_channel_has_std_1(value):
    image = torch.full((3, 2, 4, 4), value, dtype=torch.uint8)
    image[:, 1] = torch.arange(16, dtype=torch.uint8).view(4, 4)
    (inputs,), mean, std = normalise([image])
    assert mean[0] == pytest.approx(value / 255)
    assert std[0] == 1
    assert torch.equal(inputs[:, 0], torch.zeros(3, 4, 4))
    assert inputs[:, 1].std(correction=0) == pytest.approx(1, abs=1e-6)


def test_the_mean_is_exact_however_many_pixels():
    image = torch.full((3000, 1, 40, 40), 201, dtype=torch.uint8)
    image[0, 0, 0, 0] = 200
    _, mean, std = normalise([image])
    count = image.numel()
    assert mean[0] == pytest.approx((201 - 1 / count) / 255, rel=1e-14)
    assert std[0] == pytest.approx((1 / count * (1 - 1 / count)) ** 0.5 / 255, rel=1e-6)
