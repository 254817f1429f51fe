"""Folders of images: layouts, pixels, and files that are refused or skipped by name."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.data.images import pixel_cache


def picture(width: int = 6, height: int = 5, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype="u1"))


def fill(folder: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog"), **kind: object) -> Path:
    """``count`` images per class; the seed of each is class number * 1000 + its own."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(seed=label * 1000 + index, **kind).save(folder / name / f"{index:03}.png")
    return folder


def parts(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        fill(root / name, count)
    return root


def pixels_of(data: hp.Data, part: str = "train") -> np.ndarray:
    """The pixels before normalisation: uint8 (N, C, H, W)."""
    inputs = getattr(data, part)[0][:].double()
    std, mean = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (data.std, data.mean))
    return torch.round((inputs * std + mean) * 255).to(torch.uint8).numpy()


def chw(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array.transpose(2, 0, 1) if array.ndim == 3 else array[None]


def load_one(
    root: Path, image: Image.Image | bytes, name: str = "0.png", image_size: int | None = None, **save
) -> np.ndarray:
    """The pixels of ``image`` as the first of a data set in which all others are noise in ``fill``'s form."""
    parts(root, train=2, valid=1)
    (root / "train" / "cat" / "000.png").unlink()
    path = root / "train" / "cat" / name
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path, **save)
    return pixels_of(hp.load_data(root, image_size=image_size))[0]


# --- layouts


def test_a_flat_folder_is_split_80_10_10_evenly_by_the_seed(tmp_path):
    fill(tmp_path / "pets", 20)
    data, same, other = (hp.load_data(tmp_path / "pets", seed=seed) for seed in (1, 1, 2))
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [32, 4, 4]
    assert (data.name, data.num_classes, data.class_names) == ("pets", 2, ("cat", "dog"))
    assert data.notes == ("the images were split by seed 1: 32 train, 4 test, 4 valid",)
    for part in (data.train, data.valid, data.test):
        assert torch.bincount(part[1]).tolist() == [len(part[1]) // 2] * 2
    assert torch.equal(data.test[0], same.test[0])
    assert not torch.equal(data.test[0], other.test[0])
    seen = np.concatenate([pixels_of(data, part) for part in ("train", "valid", "test")])
    written = [chw(picture(seed=label * 1000 + i)) for label in (0, 1) for i in range(20)]
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in written)


@pytest.mark.parametrize("valid", ["valid", "val", "validation"])
def test_parts_that_exist_are_kept_in_order_of_class_and_name(tmp_path, valid):
    data = hp.load_data(parts(tmp_path, **{"train": 4, valid: 2, "test": 3}))
    assert data.notes == ()
    for part, count in (("train", 4), ("valid", 2), ("test", 3)):
        assert getattr(data, part)[1].tolist() == [0] * count + [1] * count
        written = [chw(picture(seed=label * 1000 + i)) for label in (0, 1) for i in range(count)]
        assert np.array_equal(pixels_of(data, part), np.stack(written))
    assert data.input_shape == (3, 5, 6)


def test_a_missing_validation_part_is_split_off_train_and_test_stays(tmp_path):
    data = hp.load_data(parts(tmp_path, train=10, test=3), seed=4, valid_fraction=0.2)
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [16, 4, 6]
    assert data.notes == ("the training images were split by seed 4: 16 train, 4 valid",)
    assert torch.bincount(data.valid[1]).tolist() == [2, 2]


def test_train_and_valid_alone_have_no_test(tmp_path):
    assert hp.load_data(parts(tmp_path, train=2, valid=1)).test is None


def test_a_class_may_be_called_train(tmp_path):
    data = hp.load_data(fill(tmp_path, 10, classes=("plane", "train")))
    assert data.class_names == ("plane", "train")


def test_hidden_files_and_folders_are_as_if_absent(tmp_path):
    fill(tmp_path)
    (tmp_path / ".git" / "x").mkdir(parents=True)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "cat" / "._000.png").write_bytes(b"x")
    (tmp_path / "cat" / ".thumbs").mkdir()
    data = hp.load_data(tmp_path)
    assert (data.class_names, len(data.notes)) == (("cat", "dog"), 1)


def test_other_files_and_folders_are_left_out_and_said(tmp_path):
    parts(tmp_path, train=4, valid=1)
    (tmp_path / "train" / "README.md").write_text("x")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    fill(tmp_path / "extra", 1)
    data = hp.load_data(tmp_path)
    assert len(data.train[1]) == 8
    assert data.notes == (
        "2 file(s) were ignored: not images, or not in a class folder",
        "folders beside train/ that are not a part were ignored: extra",
    )


def test_images_in_folders_of_a_class_folder_are_of_that_class_and_links_in_a_circle_end(tmp_path):
    fill(tmp_path)
    fill(tmp_path / "dog" / "puppies", 3, classes=("brown", "black"))
    (tmp_path / "dog" / "puppies" / ".hidden").mkdir()
    (tmp_path / "dog" / "puppies" / "circle").symlink_to(tmp_path / "dog")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)  # would make cats of the dogs
    data = hp.load_data(tmp_path)
    assert torch.bincount(torch.cat([part[1] for part in (data.train, data.valid, data.test)])).tolist() == [10, 16]
    assert "6 image(s) in subfolders of a class folder belong to that class" in data.notes


def test_rare_classes_are_trained_and_validated_on_and_said(tmp_path):
    for label, (name, count) in enumerate((("A", 40), ("B", 12), ("C", 2), ("D", 1))):
        (tmp_path / name).mkdir()
        for index in range(count):
            picture(seed=label * 1000 + index).save(tmp_path / name / f"{index}.png")
    data = hp.load_data(tmp_path)
    assert all(data.class_counts)
    assert torch.bincount(data.valid[1], minlength=4)[:3].min() >= 1
    assert 2 not in data.test[1].tolist()
    imbalanced = "classes are imbalanced: 'A' has 40 samples, 'D' 1; balanced accuracy is shown beside accuracy; --sampling "
    assert any(note.startswith(imbalanced) for note in data.notes)
    assert any(note.startswith("'D': only one sample, used for training") for note in data.notes)


def test_symlinks_to_files_and_folders_are_followed(tmp_path):
    store, root = fill(tmp_path / "store"), tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(store / "cat")
    (root / "dog").mkdir()
    for path in (store / "dog").iterdir():
        (root / "dog" / path.name).symlink_to(os.path.relpath(path, root / "dog"))
    (tmp_path / "link").symlink_to(root)
    assert torch.equal(hp.load_data(tmp_path / "link").train[0], hp.load_data(store).train[0])


@pytest.mark.parametrize("target", ["nowhere.png", "000.png", "/dev/zero", "pipe"])
def test_links_that_lead_to_no_file_are_named(tmp_path, target):
    fill(tmp_path)
    link = tmp_path / "cat" / "000.png"
    link.unlink()
    if target == "pipe":
        os.mkfifo(link)
    else:
        link.symlink_to(target)
    with pytest.raises(hp.InputError, match=r"image '.*cat/000\.png' cannot be read .*--skip-bad"):
        hp.load_data(tmp_path)
    assert "1 unreadable file(s) were skipped: 'cat/000.png'" in hp.load_data(tmp_path, skip_bad=7).notes


# --- pixels


def test_grey_images_stay_grey_only_if_all_are(tmp_path):
    data = hp.load_data(fill(tmp_path / "grey", mode="L"))
    assert data.input_shape == (1, 5, 6)
    fill(tmp_path / "both", mode="L")
    picture(mode="RGB").save(tmp_path / "both" / "dog" / "005.png")
    data = hp.load_data(tmp_path / "both")
    assert data.input_shape == (3, 5, 6)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3)]
)
def test_every_mode_of_image_is_understood(tmp_path, mode, channels):
    for label, first in (("a", 0), ("b", 5)):
        (tmp_path / label).mkdir()
        for index in range(first, first + 5):
            source = picture(mode="RGB" if channels == 3 else "L", seed=index)
            if mode == "I;16":
                source = Image.fromarray(np.asarray(source).astype("u2") * 256 + 77)
            elif mode == "P":
                source = source.quantize(256)
            else:
                source = source.convert(mode)
            source.save(tmp_path / label / f"{index}.{'tif' if mode == 'CMYK' else 'png'}")
    data = hp.load_data(tmp_path)
    assert data.input_shape == (channels, 5, 6)
    want = {
        "1": [chw(picture(mode="L", seed=i).convert("1").convert("L")) for i in range(10)],
        "P": [chw(picture(seed=i).quantize(256).convert("RGB")) for i in range(10)],
        "CMYK": [chw(picture(seed=i).convert("CMYK").convert("RGB")) for i in range(10)],
    }.get(mode, [chw(picture(mode="RGB" if channels == 3 else "L", seed=i)) for i in range(10)])
    seen = {image.tobytes() for part in ("train", "valid", "test") for image in pixels_of(data, part)}
    assert seen == {image.tobytes() for image in want}


def test_the_transparent_colour_of_a_palette_is_white(tmp_path):
    image = picture().quantize(200)
    seen = load_one(tmp_path, image, transparency=3)
    expected = chw(image.convert("RGB")).copy()
    expected[:, np.asarray(image) == 3] = 255
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (128, 255), (255, 0)])
def test_what_is_transparent_is_white_or_black_behind_a_white_picture(tmp_path, ink, ground):
    pixels = np.zeros((5, 6, 4), dtype="u1")  # transparent black, as drawing programs write it
    pixels[2:4, 1:3] = (ink, ink, ink, 255)
    pixels[0, 0] = pixels[4, 5] = (ink, ink, ink, 51)
    seen = load_one(tmp_path, Image.fromarray(pixels))
    assert np.unique(seen[:, 2:4, 1:3]) == ink
    assert np.unique(seen[:, 1]) == ground
    assert np.unique(seen[:, 0, 0]) == round(0.2 * ink + 0.8 * ground)


@pytest.mark.parametrize(
    ("suffix", "fmt"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("jpeg", "MPO")]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_before_sizes_are_compared(tmp_path, suffix, fmt, orientation):
    upright = Image.fromarray(np.kron(np.random.default_rng(0).integers(0, 256, (5, 6)), np.ones((8, 8))).astype("u1"))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.convert("RGB")
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for part in ("train", "valid"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            more = {"JPEG": {"quality": 100}, "MPO": {"quality": 100, "save_all": True, "append_images": [stored.copy()]}}
            more["WEBP"] = {"lossless": True}
            stored.save(tmp_path / part / label / f"0.{suffix}", fmt, exif=exif, **more.get(fmt, {}))
    data = hp.load_data(tmp_path)
    assert data.input_shape == (3, 40, 48)
    difference = np.abs(pixels_of(data)[0].astype(int) - chw(upright.convert("RGB")))
    assert difference.max() <= (6 if fmt in ("JPEG", "MPO") else 0)


def test_of_a_transparent_picture_what_can_be_seen_is_shown_whole(tmp_path):
    page = np.zeros((300, 200, 4), dtype="u1")
    page[20:60, 10:90] = (200, 30, 30, 255)
    page[200, 150] = (0, 0, 0, 10)  # too faint to be seen
    seen = load_one(tmp_path, Image.fromarray(page), image_size=40)
    red = (seen[0] > 150) & (seen[1] < 100)
    assert np.flatnonzero(red.any(0)).tolist() == list(range(40))
    assert np.flatnonzero(red.any(1)).tolist() == list(range(10, 30))


def test_a_palette_with_transparency_per_colour_is_blended_with_white(tmp_path):
    palette = picture(6, 5).quantize(200)
    alpha = tmp_path / "alpha.png"
    palette.save(alpha, transparency=bytes(range(200)))
    seen = load_one(tmp_path / "root", alpha.read_bytes())
    shares = np.asarray(palette)[None] / 255
    expected = chw(palette.convert("RGB")) * shares + 255 * (1 - shares)
    assert np.abs(seen - expected).max() <= 1


def test_pictures_that_are_read_by_threads_keep_their_order_and_their_names(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(90):
            Image.new("L", (5, 5), i + 100 * (label == "b")).save(tmp_path / label / f"{i:03}.png")
    for i in (7, 70):
        (tmp_path / "a" / f"{i:03}.png").write_bytes(b"no picture")
    with pytest.raises(hp.InputError, match=r"a/007\.png.*cannot be read"):
        hp.load_data(tmp_path)
    data = hp.load_data(tmp_path, skip_bad=2)
    assert "a/007.png', '" in "".join(data.notes)
    levels = [(x.mean() * data.std[0] + data.mean[0]) * 255 for x in data.train[0]]
    assert [round(float(level)) // 100 for level in levels] == data.train[1].tolist()


def test_images_for_a_pretrained_network_have_three_channels_in_imagenets_units(tmp_path):
    fill(tmp_path, mode="L")
    data = hp.load_data(tmp_path, scale="imagenet", image_size=12)
    assert data.input_shape == (3, 12, 12)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    files = sorted(path for path in tmp_path.rglob("*.png"))
    again = data.preprocess.inputs(files)[1]
    assert all((again == image).flatten(1).all(1).any() for image in data.test[0])


def test_the_first_picture_of_an_animation_is_used(tmp_path):
    frames = [picture(seed=i).quantize(256) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    seen = load_one(tmp_path / "root", (tmp_path / "a.gif").read_bytes(), "0.GIF")
    assert np.array_equal(seen, chw(frames[0].convert("RGB")))


def test_images_of_one_size_keep_it_and_others_become_64_by_64(tmp_path):
    assert hp.load_data(fill(tmp_path / "same", 5, width=256, height=1)).input_shape == (3, 1, 256)
    assert hp.load_data(fill(tmp_path / "large", 5, width=257, height=4)).input_shape == (3, 64, 64)
    fill(tmp_path / "odd", 5, width=7, height=300)
    picture(1, 1).save(tmp_path / "odd" / "cat" / "001.png")
    picture(400, 3).save(tmp_path / "odd" / "cat" / "002.png")
    assert hp.load_data(tmp_path / "odd").input_shape == (3, 64, 64)
    assert hp.load_data(tmp_path / "same", image_size=16).input_shape == (3, 16, 16)
    assert hp.load_data(tmp_path / "odd", image_size=1).input_shape == (3, 1, 1)
    assert hp.load_data(tmp_path / "odd", image_size=(10, 12)).input_shape == (3, 10, 12)


@pytest.mark.parametrize(("width", "height", "box"), [(40, 20, (10, 0, 30, 20)), (20, 40, (0, 10, 20, 30))])
def test_a_larger_image_is_scaled_by_its_shorter_side_and_cropped_to_the_centre(tmp_path, width, height, box):
    image = picture(width, height)
    assert np.array_equal(load_one(tmp_path, image, image_size=20), chw(image.crop(box)))


# --- damage


def damaged(root: Path, count: int = 1) -> Path:
    fill(root, 20, width=40, height=40)
    for index in range(count):
        path = root / "dog" / f"{index:03}.png"
        path.write_bytes(path.read_bytes()[:-200])
    return root


def test_a_truncated_image_is_named_with_the_way_out(tmp_path):
    with pytest.raises(
        hp.InputError, match=r"image '.*dog/000\.png' cannot be read \(.*\): repair or remove it.*--skip-bad"
    ):
        hp.load_data(damaged(tmp_path))


def test_skip_bad_leaves_them_out_and_says_how_many(tmp_path):
    data = hp.load_data(damaged(tmp_path, 7), skip_bad=7)
    assert sum(len(part[1]) for part in (data.train, data.valid, data.test)) == 33
    names = ", ".join(f"'dog/{i:03}.png'" for i in range(7))
    assert data.notes[0] == f"7 unreadable file(s) were skipped: {names}"
    with pytest.raises(
        hp.InputError, match=r"dog/006\.png' cannot be read .*: it is one more than --skip-bad 6 allows, after 'd"
    ):
        hp.load_data(tmp_path, skip_bad=6)
    labels = torch.cat([part[1] for part in (data.train, data.valid, data.test)])
    assert torch.bincount(labels).tolist() == [20, 13]
    seen = {image.tobytes() for part in ("train", "valid", "test") for image in pixels_of(data, part)}
    assert seen == {chw(picture(40, 40, seed=s)).tobytes() for s in [*range(20), *range(1007, 1020)]}


def test_skip_bad_without_bad_files_changes_nothing(tmp_path):
    fill(tmp_path)
    one, two = hp.load_data(tmp_path), hp.load_data(tmp_path, skip_bad=7)
    assert torch.equal(one.train[0], two.train[0])
    assert one.notes == two.notes


def bytes_of(image: Image.Image, fmt: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        bytes_of(Image.new("RGB", (4, 4)), "PNG")[:40],
        bytes_of(Image.new("RGB", (4, 4)), "EPS"),
        bytes_of(Image.new("F", (4, 4)), "TIFF"),
        bytes_of(Image.new("I", (4, 4), 65536), "TIFF"),
        bytes_of(Image.new("I", (4, 4), -1), "TIFF"),
        bytes_of(Image.new("1", (20_000, 20_000)), "PNG"),
    ],
    ids=["empty", "text", "truncated", "another format", "floats", "32 bits", "signed", "bomb"],
)
def test_bad_content_is_named_or_skipped(tmp_path, content):
    fill(tmp_path)
    (tmp_path / "cat" / "003.png").write_bytes(content)
    with pytest.raises(hp.InputError, match=r"image '.*cat/003\.png' cannot be read") as caught:
        hp.load_data(tmp_path)
    assert "\n" not in str(caught.value)
    assert "1 unreadable file(s) were skipped: 'cat/003.png'" in hp.load_data(tmp_path, skip_bad=7).notes


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *between: bytes) -> bytes:
    """A PNG of 4 by 4 pixels that claims another size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(4 * (1 + 3 * 4))))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *between, pixels, chunk(b"IEND", b"")])


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    content = bytearray(bytes_of(picture(4, 4).quantize(4), "GIF"))
    content[6:10] = struct.pack("<HH", *screen)
    at = content.index(b",\0\0\0\0")
    content[at + 5 : at + 9] = struct.pack("<HH", *frame)
    return bytes(content)


def tiff(width: int, height: int, num_bytes: int, compression: int = 1) -> bytes:
    """One strip that claims ``num_bytes``, of which twelve are there."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, num_bytes)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 20) + bytes(12) + struct.pack("<H", len(tags)) + entries + bytes(4)


HOSTILE = {
    "a bomb": ("png", png(50_000, 50_000)),
    "a size that Pillow only warns of": ("png", png(13_000, 13_000)),
    "a size just below a bomb's": ("png", png(9_000, 9_000)),
    "a size of nothing": ("png", png(0, 4)),
    "text that grows": ("png", png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20))))),
    "a screen of 65,535 by 65,535": ("gif", gif((65_535, 65_535), (4, 4))),
    "a frame larger than its screen": ("gif", gif((4, 4), (65_535, 65_535))),
    "a bitmap": (
        "bmp",
        bytes_of(picture(4, 4), "BMP").replace(struct.pack("<II", 4, 4), struct.pack("<II", 50_000, 50_000)),
    ),
    "numbers in text": ("ppm", b"P6 50000 50000 255\n" + bytes(48)),
    "a strip that is not there": ("tif", tiff(5_000, 5_000, 25_000_000)),
    "a compressed strip of 4 GiB": ("tif", tiff(4, 4, 2**32 - 1, compression=5)),
    "a TIFF bomb": ("tif", tiff(2**31 - 1, 2**31 - 1, 12)),
    "half a JPEG": ("jpg", bytes_of(picture(64, 64), "JPEG")[:1500]),
    "SVG": ("png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
}


@contextlib.contextmanager
def bounded(seconds: float, num_bytes: int) -> Iterator[None]:
    """Inside, more memory than there is now and ``num_bytes`` cannot be had."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, hard))
    began = time.process_time()
    try:
        yield
        assert time.process_time() - began < seconds
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_lies_costs_little_and_is_named_or_skipped(tmp_path: Path, kind: str) -> None:
    suffix, content = HOSTILE[kind]
    fill(tmp_path)
    (tmp_path / "cat" / f"bad.{suffix}").write_bytes(content)
    with bounded(seconds=5, num_bytes=1 << 29):
        with pytest.raises(hp.InputError, match=rf"^image '.*cat/bad\.{suffix}' cannot be read \((?!MemoryError)") as caught:
            hp.load_data(tmp_path)
        assert "\n" not in str(caught.value)
        assert f"1 unreadable file(s) were skipped: 'cat/bad.{suffix}'" in hp.load_data(tmp_path, skip_bad=1).notes


def test_a_folder_with_the_name_of_an_image_is_a_folder(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "cat" / "003.png").unlink()
    (tmp_path / "cat" / "003.png").mkdir()
    data = hp.load_data(tmp_path)
    assert sum(len(part[1]) for part in (data.train, data.valid, data.test)) == 19
    fill(tmp_path / "cat", 2, classes=("003.png",))  # with images in it, these count
    data = hp.load_data(tmp_path)
    assert sum(len(part[1]) for part in (data.train, data.valid, data.test)) == 21


def test_a_class_of_only_bad_images_is_refused_even_when_they_may_be_skipped(tmp_path):
    fill(tmp_path)
    for path in (tmp_path / "cat").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(hp.InputError, match=r"class 'cat' of '.*' has no readable image: add some, or remove it"):
        hp.load_data(tmp_path, skip_bad=100)


# --- refusals


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(hp.InputError, match=r"data='.*none' is not a known name or an existing path"):
        hp.load_data(tmp_path / "none")
    with pytest.raises(hp.InputError, match="has no subfolders: expected ROOT/CLASS/IMAGE"):
        hp.load_data(tmp_path)
    picture().save(tmp_path / "0.png")
    with pytest.raises(hp.InputError, match="has no subfolders"):
        hp.load_data(tmp_path)


def test_one_class_is_refused(tmp_path):
    with pytest.raises(hp.InputError, match="has only the class 'cat': expected ROOT/CLASS/IMAGE"):
        hp.load_data(fill(tmp_path, classes=("cat",)))


def test_a_class_without_an_image_is_refused(tmp_path):
    fill(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "readme.txt").write_text("x")
    with pytest.raises(hp.InputError, match=r"class folder '.*eel' has no readable image: add some, or remove it"):
        hp.load_data(tmp_path)


@pytest.mark.parametrize(("part", "other"), [("train", "valid"), ("valid", "train")])
def test_parts_with_different_classes_are_refused(tmp_path, part, other):
    parts(tmp_path, train=2, valid=2)
    fill(tmp_path / part, classes=("eel",))
    with pytest.raises(hp.InputError, match=f"class 'eel' is in {part}/ but not in {other}/: each part must have the same"):
        hp.load_data(tmp_path)


def test_a_part_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    picture().save(tmp_path / "train" / "0.png")
    with pytest.raises(hp.InputError, match="has train but no train/ with class folders: expected"):
        hp.load_data(tmp_path)
    fill(tmp_path / "test")
    with pytest.raises(hp.InputError, match="no train/ with class folders"):
        hp.load_data(tmp_path)


def test_two_validation_parts_are_refused(tmp_path):
    with pytest.raises(hp.InputError, match="has both valid and val: keep one of them"):
        hp.load_data(parts(tmp_path, train=1, valid=1, val=1))


def test_a_share_for_a_validation_part_that_exists_is_refused(tmp_path):
    with pytest.raises(hp.InputError, match=r"valid_fraction=0\.3: '.*' has a validation part, so leave it out"):
        hp.load_data(parts(tmp_path, train=1, val=1), valid_fraction=0.3)


def test_too_few_images_to_split_are_refused(tmp_path):
    with pytest.raises(hp.InputError, match=r"setting aside 0\.1 \+ 0\.1 of 4 samples leaves a part"):
        hp.load_data(fill(tmp_path, 2))


def test_images_larger_than_the_memory_are_read_from_the_cache_or_decoded_as_they_are_needed(tmp_path, monkeypatch):
    fill(tmp_path / "data", 20)
    usual = hp.load_data(tmp_path / "data", image_size=50)
    monkeypatch.setattr(pixel_cache, "available_memory_bytes", lambda: float(1 << 10))
    for cache in (str(tmp_path / "cache"), "off"):
        data = hp.load_data(tmp_path / "data", image_size=50, reading=hp.Reading(cache=cache))
        assert (usual.train[0].in_memory, data.train[0].in_memory) == (True, False)
        assert torch.equal(data.train[0], usual.train[0])
        assert ("decoded at each use" in data.notes[-1]) == (cache == "off")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    fill(tmp_path)
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(hp.InputError, match=r"folder '.*dog' cannot be listed \(Permission denied\): check its permissions"):
        hp.load_data(tmp_path)
