""".npz files: what is read, and one clear error for each way to be wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import zipfile

import numpy as np
import pytest
import torch

import heptane as hp
from heptane.base import memory
from heptane.base.memory import available_memory_bytes, check_memory
from heptane.data.load_preprocess import load_preprocess

X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 4


@pytest.fixture
def load(tmp_path):
    def save_and_load(settings=None, **named):
        np.savez(tmp_path / "a.npz", **named)
        return hp.load_data(tmp_path / "a.npz", **(settings or {}))

    return save_and_load


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zip_of(path, **members: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


# --- what is read


SCALED = "x was standardized per feature, to mean 0 and standard deviation 1 on the training part"


def scaled(x: np.ndarray, by: np.ndarray = X) -> torch.Tensor:
    return torch.from_numpy(np.clip((x - by.mean(0)) / by.std(0), -10, 10).astype("f4"))


def test_three_parts_are_kept_and_standardized_by_the_training_part(load):
    data = load(x=X, y=Y, x_valid=X[:8] + 1, y_valid=Y[:8], x_test=X[:5] + 2, y_test=Y[:5])
    for part, x, y in ((data.train, X, Y), (data.valid, X[:8] + 1, Y[:8]), (data.test, X[:5] + 2, Y[:5])):
        assert torch.allclose(part[0], scaled(x), atol=1e-5)
        assert part[1].dtype == torch.int64
        assert torch.equal(part[1], torch.from_numpy(y))
    assert (data.name, data.num_classes, data.class_names, data.notes, data.mean) == ("a", 4, (), (SCALED,), ())
    assert data.input_shape == (3,)


def test_a_missing_validation_part_is_split_off_by_the_seed_and_said(load):
    row = {"x": np.arange(40.0)[:, None], "y": Y}
    data, same, other = (load({"seed": seed}, **row) for seed in (1, 1, 2))
    assert (len(data.train[1]), len(data.valid[1]), data.test) == (36, 4, None)
    assert data.notes == ("4 of 40 samples were set aside for validation, with split seed 1", SCALED)
    assert sorted(data.valid[1].tolist()) == [0, 1, 2, 3]  # each class has one there
    moments = data.preprocess
    rows = torch.cat([data.train[0], data.valid[0]]) * moments.std[0] + moments.mean[0]
    assert torch.allclose(rows.flatten().sort().values, torch.arange(40.0), atol=1e-5)
    assert torch.equal(torch.cat([data.train[1], data.valid[1]]), rows.flatten().round().long() % 4)
    assert torch.equal(same.valid[0], data.valid[0])
    assert not torch.equal(other.valid[0], data.valid[0])
    assert len(load({"valid_fraction": 0.5}, x=X, y=Y).valid[1]) == 20
    assert len(load(x=X, y=Y, x_test=X, y_test=Y).test[1]) == 40


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i1", "i8", ">i4", "u2", "u1", "?", "g"])
def test_numbers_of_any_kind_become_float32_and_are_standardized(load, dtype):
    x = (np.arange(40).reshape(20, 2) % 3 > 0).astype(dtype)
    data = load(x=x, y=Y[:20], x_valid=x, y_valid=Y[:20])
    assert data.train[0].dtype == torch.float32
    assert torch.allclose(data.train[0], scaled(x.astype("f8"), x.astype("f8")), atol=1e-5)
    assert (data.mean, data.std) == ((), ())


@pytest.mark.parametrize(
    ("stored", "seen"),
    [
        ((20, 8, 9), (1, 8, 9)),
        ((20, 1, 8, 9), (1, 8, 9)),
        ((20, 3, 8, 9), (3, 8, 9)),
        ((20, 8, 9, 3), (3, 8, 9)),
        ((20, 8, 9, 1), (1, 8, 9)),
        ((20, 8, 9, 4), (4, 8, 9)),
        ((20, 3, 9, 3), (3, 9, 3)),
        ((20, 7, 9, 5), (7, 9, 5)),
    ],
)
@pytest.mark.parametrize("fortran", [False, True])
def test_uint8_images_are_put_channels_first_and_normalised(load, stored, seen, fortran):
    x = np.random.default_rng(1).integers(0, 256, stored, dtype="u1")
    x = np.asfortranarray(x) if fortran else x
    data = load(x=x, y=Y[:20], x_valid=x[:7], y_valid=Y[:7], x_test=x[7:9], y_test=Y[:2])
    assert data.input_shape == seen
    assert data.train[0].is_contiguous()
    plain = torch.from_numpy(np.ascontiguousarray(x))
    if len(stored) == 4 and seen[0] == stored[3] != stored[1]:
        plain = plain.permute(0, 3, 1, 2)
    scaled = plain.reshape(20, *seen).double() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3), correction=0)
    assert data.mean == pytest.approx(mean.tolist())
    assert data.std == pytest.approx(std.tolist())
    want = (scaled - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    for part, rows in ((data.train, want), (data.valid, want[:7]), (data.test, want[7:9])):
        assert torch.allclose(part[0].double(), rows, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 6), (20, 2, 3, 4, 5)])
def test_uint8_that_is_no_image_is_numbers(load, shape):
    x = np.random.default_rng(1).integers(0, 256, shape, dtype="u1")
    data = load(x=x, y=Y[:20], x_valid=x, y_valid=Y[:20])
    mean, std = (x.mean(0), x.std(0)) if x.ndim == 2 else (x.mean(), x.std())
    assert np.allclose(data.train[0].numpy(), (x - mean) / std, atol=1e-5)
    assert data.kind == "arrays"


@pytest.mark.parametrize(
    ("y", "dtype", "num_classes"),
    [
        (Y, torch.int64, 4),
        (Y.astype("u1"), torch.int64, 4),
        (Y.astype(">i2"), torch.int64, 4),
        (Y.astype("u8"), torch.int64, 4),
        (Y > 1, torch.int64, 2),
        (X[:, 0], torch.float32, None),
        (np.arange(40) / 2, torch.float32, None),
        (Y.astype("U8"), torch.int64, 4),
        (np.eye(4, dtype="i8")[Y], torch.int64, 4),
        ((Y > 1).astype("f4"), torch.int64, 2),
        (np.eye(4)[Y], torch.float32, 4),
        (np.eye(4)[Y].astype("?"), torch.float32, 4),
        (X, torch.float32, None),
        (X[:, :1], torch.float32, None),
        (Y[:, None] / 3, torch.float32, 1),
        (Y[:, None] > 1, torch.float32, 1),
    ],
)
def test_targets_are_classes_numbers_or_rows_by_their_kind(load, y, dtype, num_classes):
    data = load(x=X, y=y, x_valid=X, y_valid=y)
    assert data.train[1].dtype == dtype
    assert data.num_classes == num_classes
    y = y.argmax(1) if y.shape == (40, 4) and dtype == torch.int64 else y
    if num_classes is None:
        known = y.astype("f8")
        assert np.allclose(data.train[1].numpy(), (known - known.mean(0)) / known.std(0), atol=1e-6)
        assert np.allclose(data.preprocess.outputs(data.train[1]).numpy(), y, atol=1e-6)
        return
    assert data.preprocess.target is None
    assert np.array_equal(data.train[1].numpy(), y.astype("i8" if dtype == torch.int64 else "f4"))


@pytest.mark.parametrize("x", [X, np.zeros((40, 8, 8), "u1")], ids=["numbers", "images"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e8])
def test_real_targets_are_standardized_by_the_training_part_and_come_back_from_the_record(load, x, scale):
    y = scale * (X[:, 0] + 5)
    data = load(x=x, y=y, x_valid=x[:10], y_valid=y[:10])
    assert float(data.train[1].std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert data.valid[1].tolist() == data.train[1][:10].tolist()
    again = load_preprocess(json.loads(json.dumps(data.preprocess.record())))
    assert again == data.preprocess
    assert np.allclose(again.outputs(data.valid[1]).numpy(), y[:10], rtol=1e-5)
    assert any("y (mean" in note and "standardized" in note for note in data.notes)


def test_real_targets_that_are_all_the_same_are_only_shifted(load):
    data = load(x=X, y=np.full((40, 2), 1234.5))
    assert not data.train[1].any()
    assert data.preprocess.target.std == [1.0, 1.0]


def test_compressed_files_and_other_arrays_are_fine_and_said(tmp_path):
    np.savez_compressed(tmp_path / "b.npz", x=X, y=Y, x_valid=X, y_valid=Y, names=np.array(["a"], dtype=object))
    data = hp.load_data(tmp_path / "b.npz")
    assert data.notes == ("arrays ignored: 'names'", SCALED)
    assert len(data.train[0]) == 40


def test_a_class_without_training_samples_is_said(load):
    data = load(x=X, y=np.where(Y == 1, 0, Y), x_valid=X, y_valid=Y)
    assert data.num_classes == 4
    assert data.notes == ("only 3 of the 4 classes have training samples", SCALED)


# --- what is refused

NAN, INF = X.copy(), X.copy()
NAN[17, 2], INF[0, 0] = np.nan, -np.inf
FAR = np.zeros((5000, 2))
FAR[4999, 1] = np.nan


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"x": NAN, "y": Y}, r"x\[17, 2\] is nan: remove or replace"),
        ({"x": INF, "y": Y}, r"x\[0, 0\] is -inf"),
        ({"x": FAR, "y": np.arange(5000) % 2}, r"x\[4999, 1\] is nan"),
        ({"x": np.full((40, 1), 1e300), "y": Y}, r"x\[0, 0\] is 1e\+300: .*overflow float32"),
        ({"x": X, "y": NAN[:, 2]}, r"y\[17\] is nan"),
        ({"x": X, "y": Y, "x_valid": X, "y_valid": Y, "x_test": NAN, "y_test": Y}, r"x_test\[17, 2\] is nan"),
        ({"x": X, "y": Y - 1}, "y has the label -1: number the classes 0 to K-1"),
        ({"x": X, "y": Y.astype("u8") + 2**63}, "y has the label 9223372036854775811"),
        ({"x": X, "y": Y * 10**6}, r"y has 4 different label\(s\), the largest 3000000: expected 0 to K-1"),
        ({"x": X, "y": np.zeros(40, "i4")}, r"y has 1 different label\(s\), the largest 0: expected 0 to K-1 with K of 2"),
        (
            {"x": X, "y": Y, "x_valid": X[:2], "y_valid": np.array([0, 4])},
            "y_valid has the label 4, but the largest in y is 3",
        ),
        ({"x": X, "y": Y, "x_test": X[:2], "y_test": np.array([0, -1])}, "y_test has the label -1"),
        ({"x": X, "y": Y[:-1]}, "x has 40 samples and y 39: give one target per sample"),
        ({"x": X, "y": Y, "x_test": X[:3], "y_test": Y[:2]}, "x_test has 3 samples and y_test 2"),
        ({"x": X[:, 0], "y": Y}, r"x has dtype float64 and shape \(40,\): expected real numbers of shape \(N, ...\)"),
        ({"x": X[:0], "y": Y[:0]}, r"x has dtype float64 and shape \(0, 3\)"),
        ({"x": X[:, :0], "y": Y}, r"x has dtype float64 and shape \(40, 0\)"),
        ({"x": np.float32(1), "y": Y}, r"x has dtype float32 and shape \(\)"),
        ({"x": X * 1j, "y": Y}, "x has dtype complex128"),
        ({"x": X.astype("U8"), "y": Y}, "x has dtype <U8"),
        ({"x": X, "y": Y.astype("U8")[:, None]}, "y has dtype <U8 and shape .*expected whole numbers or texts of shape"),
        ({"x": X, "y": Y.astype("U8"), "x_test": X[:1], "y_test": np.array(["9"])}, "y_test has the class '9'"),
        (
            {"x": X, "y": Y.astype("f8")},
            r"label y holds 4 different floats that are whole \(0, 1, 2, 3\), .* 4 classes or regression targets",
        ),
        ({"x": X, "y": 2 * (Y > 1) - 1.0}, r"floats that are whole \(-1, 1\), which can be 2 classes or regression targets"),
        ({"x": X, "y": 2 * np.eye(4, dtype="i8")[Y] - 1}, r"y of shape \(40, 4\) holds -1, 0 or 1, .*or a number"),
        ({"x": X, "y": 2.0 * (Y[:, None] > 1) - 1}, r"y of shape \(40, 1\) holds -1, 0 or 1, .*or a number"),
        ({"x": X, "y": 2 * (Y > 1) - 1}, r"y has the label -1: number the classes .* or pass task='regression'"),
        ({"x": X, "y": 2 * np.eye(4)[Y] - 1}, r"y of shape \(40, 4\) holds -1, 0 or 1, where -1 can .*or a number"),
        ({"x": X, "y": Y[:, None]}, r"y has dtype int64 and shape \(40, 1\)"),
        ({"x": X, "y": np.zeros((40, 0))}, r"y has dtype float64 and shape \(40, 0\)"),
        ({"x": X, "y": np.zeros((40, 2, 2))}, r"y has dtype float64 and shape \(40, 2, 2\)"),
        ({"x": X, "y": np.int64(3)}, r"y has dtype int64 and shape \(\)"),
        ({"x": X, "y": Y, "x_valid": X[:, :2], "y_valid": Y}, r"x_valid has.* float32, but x has \(3,\) float32"),
        ({"x": X, "y": Y, "x_valid": X, "y_valid": X[:, 0]}, r"y_valid has samples of \(\) float32, but y has \(\) int64"),
        (
            {"x": X[:, :, None], "y": Y, "x_valid": X[:, :, None].astype("u1"), "y_valid": Y},
            r"x_valid has samples of \(1, 3, 1\) uint8, but x has \(3, 1\) float32: make them equal",
        ),
        ({"x": X}, "a.npz' has no array y; it has x"),
        ({"x_train": X, "y_train": Y}, "has no array x, y; it has x_train, y_train"),
        ({"x": X, "y": Y, "x_valid": X}, "has no array y_valid; it has x, y, x_valid"),
        ({"x": X, "y": Y, "y_test": Y}, "has no array x_test"),
        ({}, "has no array x, y; it has none"),
        ({"x": X[:4], "y": Y[:4]}, "setting aside 0.1 of 4 samples leaves a part"),
    ],
)
def test_bad_arrays_are_refused_with_what_is_wrong(load, named, message):
    with pytest.raises(hp.InputError, match=message) as caught:
        load(**named)
    assert "\n" not in str(caught.value)


def test_a_validation_part_and_a_share_for_it_are_refused(load):
    with pytest.raises(hp.InputError, match=r"valid_fraction=0.2: 'a.npz' already has x_valid, so omit valid_fraction"):
        load({"valid_fraction": 0.2}, x=X, y=Y, x_valid=X, y_valid=Y)


def test_resizing_is_refused(load):
    with pytest.raises(hp.InputError, match="image_size=8: only image files can be resized"):
        load({"image_size": 8}, x=X, y=Y)


class Trap:
    """Making one from a pickle leaves a file behind."""

    def __reduce__(self):
        return os.system, ("touch unpickled",)


def test_python_objects_are_refused_and_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named in ({"x": np.array([Trap()] * 4), "y": Y[:4]}, {"x": X, "y": np.array([Trap()] * 40)}):
        np.savez(tmp_path / "a.npz", **named)
        with pytest.raises(hp.InputError, match=r"holds Python objects, which are not loaded: save numbers"):
            hp.load_data(tmp_path / "a.npz")
    sneaky = bytearray(npy(np.array([Trap()] * 4)))
    at = sneaky.index(b"'|O'")
    sneaky[at : at + 4] = b"'f8'"  # says numbers, holds a pickle
    with pytest.raises(hp.InputError):
        hp.load_data(zip_of(tmp_path / "a.npz", x=bytes(sneaky), y=npy(Y[:4])))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:  # two members that answer to the same name
        archive.writestr("x", npy(np.array([Trap()] * 40)))
        archive.writestr("x.npy", npy(X))
        archive.writestr("y.npy", npy(Y))
    with pytest.raises(hp.InputError, match="holds two arrays with the same name"):
        hp.load_data(tmp_path / "a.npz")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip", npy(X)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(hp.InputError, match=r"a\.npz' cannot be read \(.*\): write it with np\.savez"):
        hp.load_data(tmp_path / "a.npz")


def test_members_that_are_no_arrays_are_refused(tmp_path):
    for content in (b"", b"hello", npy(X)[:30]):
        with pytest.raises(hp.InputError, match="cannot be read"):
            hp.load_data(zip_of(tmp_path / "a.npz", x=content, y=npy(Y)))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(tmp_path, version):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, X, version=version)
    data = hp.load_data(zip_of(tmp_path / "a.npz", x=buffer.getvalue(), y=npy(Y), x_valid=npy(X), y_valid=npy(Y)))
    assert torch.equal(data.train[0], data.valid[0])


def test_a_header_that_lies_about_the_size_is_refused_before_the_memory_is_taken(tmp_path):
    honest = npy(X)
    lying = honest.replace(b"(40, 3), }" + b" " * 10, b"(40000000000, 3), }" + b" ")
    assert lying != honest
    with pytest.raises(hp.InputError, match=r"x\.npy claims shape \(40000000000, 3\), which does not match its size"):
        hp.load_data(zip_of(tmp_path / "a.npz", x=lying, y=npy(Y)))


def test_damage_anywhere_is_an_input_error_or_harmless(tmp_path):
    honest, random_ = npy(X), random.Random(0)
    for _ in range(400):
        damaged = bytearray(honest)
        for _ in range(random_.choice([1, 3])):
            damaged[random_.randrange(100)] = random_.choice(b"()[]{}'\"#\\,-L0 \n\xff\0")
        zip_of(tmp_path / "a.npz", x=bytes(damaged), y=npy(Y))
        with contextlib.suppress(hp.InputError):
            hp.load_data(tmp_path / "a.npz")


def test_a_flipped_byte_of_the_values_is_noticed(tmp_path):
    path = zip_of(tmp_path / "a.npz", x=npy(X), y=npy(Y))
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.raises(hp.InputError, match=r"cannot be read \(Bad CRC-32"):
        hp.load_data(path)


# --- memory


def test_data_larger_than_the_memory_is_refused_before_it_is_read(load, monkeypatch):
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 800.0)  # 60% is 480; float32 needs 40 * (3 * 4 + 8)
    with pytest.raises(hp.InputError, match=r"a\.npz' would take .* of memory, the limit is 60% of .*give a smaller file"):
        load(x=X.astype("f4"), y=Y)


def test_the_limit_includes_itself(monkeypatch):
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000.0)
    check_memory("it", 600, "less")
    with pytest.raises(hp.InputError, match=r"it would take .*: less"):
        check_memory("it", 601, "less")


def test_the_available_memory_is_below_what_the_machine_has():
    available = available_memory_bytes()
    assert 1 << 20 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_system_that_does_not_tell_has_no_limit(monkeypatch):
    def silent(*_):
        raise OSError

    monkeypatch.setattr(memory.Path, "read_text", silent)
    monkeypatch.setattr(memory.os, "sysconf", silent)
    assert available_memory_bytes() == float("inf")
