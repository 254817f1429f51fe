"""Images that are kept as uint8: the same batches wherever the pixels are and whoever reads them."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.data import disk_cache
from heptane.data.batches import BatchTransform, TensorSource, epoch_order
from heptane.data.images import pixel_cache, pixel_store
from heptane.data.images.image_files import Names
from heptane.data.images.stored_images import Images
from heptane.distributed.workers import Worker

SIZE = 24


def photos(root: Path, count: int = 24) -> Path:
    for label, name in enumerate(("cat", "dög", "x y")):
        (root / name).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng(1000 * label + index)
            height, width = rng.integers(20, 60, 2)
            noise = rng.integers(0, 256, (height // 4, width // 4, 3), dtype="u1")
            Image.fromarray(noise).resize((int(width), int(height))).save(root / name / f"{index}.jpg", quality=95)
    return root


def tiny_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "available_memory_bytes", lambda: 1024.0)


def batches(data: Any, start: int = 0, augment: Any = None, worker: Worker | None = None) -> list[bytes]:
    """The bytes of each batch of two epochs from step ``start`` on, or of this worker's share of it."""
    source = TensorSource(*data.train, batch_size=7, seed=3, **({"worker": worker} if worker else {}))
    place = BatchTransform(torch.device("cpu"), 3, augment)
    place.fit_augment(source.inputs)
    found = []
    for _, batch in source.batches(start, 2 * source.steps_per_epoch, place):
        part = slice(None) if worker is None else worker.share(batch.size)
        inputs, targets = batch.take(part)
        assert inputs.dtype is torch.float32
        assert tuple(inputs.shape[1:]) == (3, SIZE, SIZE)
        found.append(inputs.numpy().tobytes() + targets.numpy().tobytes())
    return found


@pytest.mark.parametrize("augment", [None, hp.Warp(flip=True), hp.RandomResizedCrop()], ids=["plain", "warp", "crop"])
def test_batches_do_not_depend_on_where_pixels_are_or_who_reads_them(tmp_path, monkeypatch, augment):
    root, room = photos(tmp_path / "data"), getattr(augment, "room", 1.0)

    def load(**reading: Any) -> hp.Data:
        return hp.load_data(root, image_size=SIZE, reading=hp.Reading(room=room, **reading))

    wanted = batches(load(cache="off"), augment=augment)
    assert len(set(wanted)) == len(wanted)
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    assert batches(load(cache=tmp_path / "cache"), augment=augment) == wanted
    assert batches(load(cache=tmp_path / "cache"), augment=augment) == wanted  # of what was decoded before
    tiny_memory(monkeypatch)
    monkeypatch.setattr("heptane.data.images.load_images.AT_FIRST", 0)
    for readers in (0, 1, 2, 4):
        for cache in ("off", tmp_path / "cache", tmp_path / f"cache{readers}"):
            data = load(cache=cache, readers=readers)
            assert not data.train[0].in_memory
            assert batches(data, augment=augment) == wanted
            assert batches(data, start=5, augment=augment) == wanted[5:]


def test_a_worker_reads_its_share_only(tmp_path, monkeypatch):
    tiny_memory(monkeypatch)
    monkeypatch.setattr("heptane.data.images.load_images.AT_FIRST", 0)
    root = photos(tmp_path / "data")
    data = hp.load_data(root, image_size=SIZE, scale="imagenet", reading=hp.Reading(cache="off"))
    counted: list[int] = []
    decoded = pixel_store.PixelStore._decoded
    monkeypatch.setattr(
        pixel_store.PixelStore, "_decoded", lambda self, index: counted.append(index) or decoded(self, index)
    )
    batches(data, worker=Worker(1, 3))
    alone = len(counted)
    counted.clear()
    batches(data)
    assert alone < 0.45 * len(counted)


def test_training_resumes_bitwise_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    tiny_memory(monkeypatch)
    monkeypatch.setattr("heptane.data.images.load_images.AT_FIRST", 0)
    root = photos(tmp_path / "data")

    def fit(**more: Any) -> hp.Result:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 3))
        data = hp.load_data(root, image_size=SIZE, scale="imagenet", reading=hp.Reading(cache="off"))
        return hp.fit(model, data.train, valid=data.valid, optimizer="sgd", lr=0.01, batch_size=5, epochs=2, **more)

    whole = fit()
    extras = hp.Extras(checkpoint_every=3)

    class Stop(Exception):
        pass

    counted: list[int] = []
    decoded = pixel_store.PixelStore._decoded

    def count(self, index):
        counted.append(index)
        if stop_after and len(counted) > stop_after:
            raise Stop
        return decoded(self, index)

    monkeypatch.setattr(pixel_store.PixelStore, "_decoded", count)
    stop_after = 150
    with pytest.raises(Stop):
        fit(run_dir=tmp_path / "run", extras=extras)
    stop_after = 0
    counted.clear()
    again = fit(run_dir=tmp_path / "run", extras=extras, resume=True)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("readers", [0, 2])
def test_a_start_in_the_middle_of_an_epoch_decodes_nothing_before(tmp_path, monkeypatch, readers):
    tiny_memory(monkeypatch)
    monkeypatch.setattr("heptane.data.images.load_images.AT_FIRST", 0)
    reading = hp.Reading(cache="off", readers=readers)
    data = hp.load_data(photos(tmp_path / "data"), image_size=SIZE, scale="imagenet", reading=reading)
    counted: list[int] = []
    decoded = pixel_store.PixelStore._decoded
    monkeypatch.setattr(
        pixel_store.PixelStore, "_decoded", lambda self, index: counted.append(index) or decoded(self, index)
    )
    batches(data, start=5)
    orders = [hp.epoch_order(len(data.train[1]), 3, epoch)[7 * skip :] for epoch, skip in ((0, 5), (1, 0))]
    assert sorted(counted) == sorted(data.train[0].rows[torch.cat(orders)].tolist())


KILLED = """
import sys, os
from heptane.data.images import pixel_cache, load_images
import heptane as hp
pixel_cache.SMALL = 0
print("ready", flush=True)
data = hp.load_data(sys.argv[1], image_size=48, reading=hp.Reading(cache=sys.argv[2], readers=2))
"""


def test_a_process_killed_while_it_caches_leaves_no_wrong_pixel(tmp_path, monkeypatch):
    root, cache = photos(tmp_path / "data", 200), tmp_path / "cache"
    wanted = hp.load_data(root, image_size=48, reading=hp.Reading(cache="off")).train[0][:]
    for delay in (0.01, 0.05, 0.1, 0.02):
        process = subprocess.Popen([sys.executable, "-c", KILLED, root, cache], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    assert torch.equal(hp.load_data(root, image_size=48, reading=hp.Reading(cache=cache)).train[0][:], wanted)


def entry(cache: Path) -> Path:
    (found,) = (path for path in cache.iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize("damage", ["pixels", "checksums", "short", "gone"])
def test_what_was_altered_in_the_cache_is_decoded_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root, cache = photos(tmp_path / "data"), tmp_path / "cache"
    wanted = hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=cache)).train[0][:]
    if damage == "gone":
        (entry(cache) / "pixels").unlink()
    elif damage == "short":
        os.truncate(entry(cache) / "pixels", 1000)
    else:
        content = bytearray((entry(cache) / damage).read_bytes())
        content[5:40] = bytes(35)
        (entry(cache) / damage).write_bytes(content)
    assert torch.equal(hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=cache)).train[0][:], wanted)


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_what_is_altered_in_the_cache_while_it_is_read_is_decoded_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root, cache = photos(tmp_path / "data"), tmp_path / "cache"
    data = hp.load_data(root, image_size=SIZE, scale="imagenet", reading=hp.Reading(cache=cache, first=0))
    wanted = data.train[0][:]
    if damage == "short":
        os.truncate(entry(cache) / "pixels", 1000)
    else:
        shutil.rmtree(cache)
    assert torch.equal(data.train[0][:], wanted)


def test_a_changed_file_is_decoded_again_and_one_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root, cache = photos(tmp_path / "data"), tmp_path / "cache"
    first = hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=cache))
    path = root / first.files["train"][0]
    Image.new("RGB", (30, 30), (255, 0, 0)).save(path)
    second = hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=cache))
    assert not torch.equal(first.train[0][0], second.train[0][0])
    one = torch.tensor([1])
    assert torch.equal(first.train[0].pixels(one), second.train[0].pixels(one))
    tiny_memory(monkeypatch)
    third = hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache="off"))
    path.write_bytes(b"x")
    with pytest.raises(hp.InputError, match="changed or vanished after the folder was listed"):
        third.train[0][0]


def damaged(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(b"no picture " + name.encode())


def test_unreadable_training_images_are_replaced_as_they_are_reached(tmp_path, monkeypatch):
    tiny_memory(monkeypatch)
    root = photos(tmp_path / "data")

    def load(skip_bad: int = 4, **reading: Any) -> hp.Data:
        chosen = hp.Reading(**{"cache": "off", "first": 10, **reading})
        return hp.load_data(root, image_size=SIZE, scale="imagenet", skip_bad=skip_bad, reading=chosen)

    before = load()
    names, labels = list(before.files["train"]), before.train[1]
    cats = [at for at, name in enumerate(names) if name.startswith("cat/")]
    first, second, last = names[cats[3]], names[cats[4]], names[cats[-1]]
    aside = before.files["valid"][0]
    wanted = {first: before.train[0][cats[5]], second: before.train[0][cats[5]], last: before.train[0][cats[0]]}
    damaged(root, first, second, last, aside)
    data, counted = load(), count_decoded(monkeypatch)
    assert list(data.files["train"]) == names
    assert counted == []
    assert f"1 unreadable file(s) were skipped: '{aside}'" in data.notes
    assert "unreadable training images are found as they are reached, and replaced (--skip-bad 4)" in data.notes
    for name, image in wanted.items():
        assert torch.equal(data.train[0][names.index(name)], image)
        assert labels[names.index(name)] == 0
    said: list[str] = []
    data.train[0].replaced.report_to(said.append)
    assert [name in text for name, text in zip((first, second, last), said, strict=True)] == [True] * 3
    alike = batches(load())
    assert len(set(alike)) == len(alike)
    for readers in (0, 1, 4):
        for cache in ("off", tmp_path / "cache"):
            assert batches(load(readers=readers, cache=cache)) == alike
            assert batches(load(readers=readers, cache=cache), start=5) == alike[5:]
    share = Worker(1, 3)
    assert batches(load(), worker=share) == batches(pickle.loads(pickle.dumps(load())), worker=share)
    with pytest.raises(
        hp.InputError, match=rf"cannot be read \(.*\): it is one more than --skip-bad allows, after '{first}'"
    ):
        load(skip_bad=2).train[0][torch.tensor(cats)]
    damaged(root, *(names[at] for at in cats))
    with pytest.raises(hp.InputError, match=r"no training image of the class of .* can be read"):
        load(skip_bad=99).train[0][torch.tensor(cats)]


def test_a_mean_is_measured_without_unreadable_images_and_one_is_named(tmp_path, monkeypatch):
    root = photos(tmp_path / "data")
    reading = hp.Reading(cache="off", first=10)
    name = hp.load_data(root, image_size=SIZE, reading=reading).files["train"][7]
    damaged(root, name)
    with pytest.raises(hp.InputError, match=rf"image '.*{name}' cannot be read"):
        hp.load_data(root, image_size=SIZE, reading=reading)
    assert hp.load_data(root, image_size=SIZE, skip_bad=1, reading=reading).mean


def test_an_image_that_vanishes_in_training_ends_it_with_what_was_trained_saved_or_is_replaced(tmp_path, monkeypatch):
    tiny_memory(monkeypatch)
    root = photos(tmp_path / "data")

    def fit(skip_bad: int, **more: Any) -> hp.Result:
        reading = hp.Reading(cache="off", first=10, readers=0)
        data = hp.load_data(root, image_size=SIZE, scale="imagenet", skip_bad=skip_bad, reading=reading)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 3))
        name = data.files["train"][int(epoch_order(len(data.train[1]), 0, 0)[-5])]
        steps: list[int] = []

        def vanish(self: Any, positions: torch.Tensor) -> None:  # after a step
            steps.append(1)
            if len(steps) == 10:
                (root / name).rename(tmp_path / "aside")

        monkeypatch.setattr(Images, "release", vanish)
        try:
            return hp.fit(model, data.train, optimizer="sgd", lr=0.01, batch_size=2, epochs=1, **more)
        finally:
            (tmp_path / "aside").rename(root / name)

    assert any("the next one of its class is used in its place" in note for note in fit(skip_bad=1).notes)
    with pytest.raises(hp.InputError, match=r"cannot be read .*; saved at step \d+, from where resume goes on"):
        fit(skip_bad=0, run_dir=tmp_path / "run")


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    decode = pixel_store.decode
    monkeypatch.setattr(pixel_store, "decode", lambda *arguments: counted.append(1) or decode(*arguments))
    return counted


@pytest.mark.parametrize("first", [10_000, 0], ids=["before training", "when needed"])
def test_of_a_changed_folder_only_the_changed_files_are_decoded_again(tmp_path, monkeypatch, first):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    monkeypatch.setattr("heptane.data.images.load_images.AT_FIRST", first)
    root, cache, counted = photos(tmp_path / "data"), tmp_path / "cache", count_decoded(monkeypatch)

    def everything(**reading: Any) -> dict[str, bytes]:
        counted.clear()
        data = hp.load_data(root, image_size=SIZE, scale="imagenet", reading=hp.Reading(**reading))
        parts = [(data.files[part], getattr(data, part)[0][:]) for part in ("train", "valid", "test")]
        return {name: image.numpy().tobytes() for names, images in parts for name, image in zip(names, images, strict=True)}

    assert everything(cache=cache) == everything(cache="off")
    Image.new("RGB", (30, 30), (255, 0, 0)).save(root / "cat" / "7.jpg")
    Image.new("RGB", (30, 30), (0, 255, 0)).save(root / "cat" / "00.jpg")
    (root / "dög" / "3.jpg").unlink()
    wanted = everything(cache="off")
    assert len(wanted) == len(counted) == 72
    before = entry(cache)
    for name, facts in (("table", "{}"), ("odd", "[]"), ("damaged", "x"), ("other", json.dumps({"data": str(root)}))):
        (cache / name).mkdir()
        (cache / name / "facts.json").write_text(facts)
    damaged = bytearray((before / "pixels").read_bytes())
    damaged[5 * 3 * SIZE * SIZE] ^= 1  # cat/13.jpg
    (before / "pixels").write_bytes(damaged)
    assert everything(cache=cache) == wanted
    assert len(counted) == 3
    assert everything(cache=cache) == wanted
    assert counted == []
    everything(cache=cache, background="black")
    assert len(counted) == 72


def test_rows_are_copied_from_what_is_removed_to_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root, cache, counted = photos(tmp_path / "data"), tmp_path / "cache", count_decoded(monkeypatch)
    reading = hp.Reading(cache=cache, cache_gb=1.5 * 72 * 3 * SIZE * SIZE / 1e9)
    hp.load_data(root, image_size=SIZE, reading=reading)
    assert len(counted) == 72
    Image.new("RGB", (30, 30), (255, 0, 0)).save(root / "cat" / "7.jpg")
    before = entry(cache)
    assert hp.load_data(root, image_size=SIZE, reading=reading).train[0].in_memory
    assert len(counted) == 73
    assert entry(cache) != before


def test_of_changed_shards_only_the_changed_ones_are_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root, cache, counted = photos(tmp_path / "data"), tmp_path / "cache", count_decoded(monkeypatch)
    (tmp_path / "set").mkdir()

    def shard(number: int, count: int) -> None:
        with tarfile.open(tmp_path / "set" / f"{number}.tar", "w") as archive:
            for label, folder in enumerate(sorted(root.iterdir())):
                for file in sorted(folder.iterdir())[8 * number : 8 * number + count]:
                    archive.add(file, f"{label}{file.name}")
                    about = tarfile.TarInfo(f"{label}{file.stem}.cls")
                    about.size = 1
                    archive.addfile(about, io.BytesIO(str(label).encode()))

    for number in range(3):
        shard(number, 8)
    hp.load_data(tmp_path / "set", image_size=SIZE, reading=hp.Reading(cache=cache))
    shard(1, 7)
    counted.clear()
    found = hp.load_data(tmp_path / "set", image_size=SIZE, reading=hp.Reading(cache=cache)).train[0][:]
    assert len(counted) == 21
    assert torch.equal(found, hp.load_data(tmp_path / "set", image_size=SIZE, reading=hp.Reading(cache="off")).train[0][:])


def test_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root = photos(tmp_path / "data")
    wanted = batches(hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache="off")))
    written, left = pixel_store._write, [30]

    def write(descriptor: int, content: Any, at: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        written(descriptor, content, at)

    monkeypatch.setattr(pixel_store, "_write", write)
    assert batches(hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=tmp_path / "cache"))) == wanted


def test_the_cache_is_bounded_and_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    roots, cache = [photos(tmp_path / name) for name in "abc"], tmp_path / "cache"
    each = 72 * 3 * SIZE * SIZE / 1e9

    def known() -> list[str]:
        import json

        return sorted(Path(json.loads((path / "facts.json").read_text())["data"]).name for path in cache.iterdir())

    reading = hp.Reading(cache=cache, cache_gb=2.6 * each)
    for at, root in enumerate((roots[0], roots[1], roots[0])):
        hp.load_data(root, image_size=SIZE, reading=reading)
        for path in cache.iterdir():
            about = path / "facts.json"
            if time.time() - about.stat().st_mtime < 1000:
                os.utime(about, (at + 1000.0, at + 1000.0))
    assert known() == ["a", "b"]
    hp.load_data(roots[2], image_size=SIZE, reading=reading)
    assert known() == ["a", "c"]
    data = hp.load_data(roots[1], image_size=SIZE, reading=hp.Reading(cache=cache, cache_gb=0.5 * each))
    assert data.train[0].in_memory  # too large for the cache: in memory
    assert known() == ["a", "c"]


@pytest.mark.parametrize("last", [1, 2], ids=["looking for rows", "making room"])
def test_entries_that_another_process_removes_meanwhile_do_not_matter(tmp_path, monkeypatch, last):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root, other, cache = photos(tmp_path / "data"), photos(tmp_path / "other"), tmp_path / "cache"
    hp.load_data(other, image_size=SIZE, reading=hp.Reading(cache=cache))
    gone, is_file, looks = entry(cache), Path.is_file, list[Path]()

    def vanish(path: Path) -> bool:
        there = is_file(path)
        looks.extend([path] * (path == gone / "facts.json"))
        if len(looks) == last:
            shutil.rmtree(gone, ignore_errors=True)
        return there

    monkeypatch.setattr(Path, "is_file", vanish)
    assert hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=cache)).train[0].in_memory
    assert entry(cache) != gone


def test_an_entry_whose_removal_was_killed_is_still_known(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    roots, cache = [photos(tmp_path / name) for name in "ab"], tmp_path / "cache"
    reading = hp.Reading(cache=cache, cache_gb=1.5 * 72 * 3 * SIZE * SIZE / 1e9)
    hp.load_data(roots[0], image_size=SIZE, reading=reading)
    first, real = entry(cache), shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        hp.load_data(roots[1], image_size=SIZE, reading=reading)
    assert [path.name for path in first.iterdir()] == ["facts.json"]
    monkeypatch.setattr(shutil, "rmtree", real)
    assert hp.load_data(roots[1], image_size=SIZE, reading=reading).train[0].in_memory
    assert disk_cache.entries(cache, cache)[0] == first


def test_a_cache_that_cannot_be_written_is_an_error_if_given_and_no_matter_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "SMALL", 0)
    root = photos(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    with pytest.raises(hp.InputError, match=r"data_cache='.*file' cannot be used .*choose another"):
        hp.load_data(root, image_size=SIZE, reading=hp.Reading(cache=tmp_path / "file"))
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "file"))
    assert hp.load_data(root, image_size=SIZE).train[0].in_memory


@pytest.mark.parametrize("memory", [True, False])
def test_images_are_indexed_like_a_tensor_and_can_be_sent_to_another_process(tmp_path, monkeypatch, memory):
    if not memory:
        tiny_memory(monkeypatch)
    images, labels = hp.load_data(photos(tmp_path / "data"), image_size=SIZE).train
    whole = images[:]
    assert images.shape == tuple(whole.shape)
    assert torch.equal(images[-1], whole[-1])
    assert torch.equal(images[1:5], whole[1:5])
    assert torch.equal(images[torch.tensor([3, -1, 3])], whole[torch.tensor([3, -1, 3])])
    assert torch.equal(images[labels == 1], whole[labels == 1])
    assert torch.equal(torch.stack(list(images)), whole)
    assert torch.equal(pickle.loads(pickle.dumps(images))[:4], whole[:4])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 9)
    assert torch.equal(torch.cat([x for x, _ in loader]), whole)
    with pytest.raises(IndexError):
        images[len(images)]


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("#ff0000", None), ("auto", 255)])
def test_the_background_of_transparent_pixels_can_be_chosen_and_prediction_keeps_it(tmp_path, background, level):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.zeros((10, 10, 4), dtype="u1")
            pixels[2:8, 2:8] = (10, 20 + index, 100, 255)
            pixels[0, 0] = pixels[9, 9] = (0, 0, 0, 20)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    data = hp.load_data(tmp_path / "data", reading=hp.Reading(background=background))
    shown = data.train[0].pixels(torch.tensor([0]))[0, :, 5, 0].tolist()
    assert shown == ([255, 0, 0] if level is None else [level] * 3)
    assert data.preprocess is not None
    again = type(data.preprocess).parse(data.preprocess.record())
    file = tmp_path / "data" / data.files["train"][0]
    assert torch.equal(again.inputs(file)[1][0], data.train[0][0])


@pytest.mark.parametrize(
    ("field", "value"), [("room", 0.5), ("cache_gb", 0), ("readers", -1), ("background", "pink"), ("background", "#12345")]
)
def test_wrong_ways_of_reading_are_refused_by_name(field, value):
    name = {"cache_gb": "data_cache_gb"}.get(field, field)
    with pytest.raises(hp.InputError, match=name):
        hp.Reading(**{field: value})


def test_names_are_compact_and_keep_any_bytes():
    names = ["a/b.png", "", "ü/ß.jpg", os.fsdecode(b"\xff\xfe.png"), "x"]
    packed = Names(names)
    assert list(packed) == names
    assert packed[-1] == "x"
    assert packed[1:3] == names[1:3]
    assert packed.digest() != Names(names[:-1]).digest()


def test_indexing_is_that_of_a_tensor(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for index in range(12):
        (tmp_path / f"class{index % 2}").mkdir(exist_ok=True)
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"class{index % 2}" / f"{index}.png")
    images = hp.load_data(tmp_path, valid_fraction=0.2, reading=hp.Reading(cache="off")).train[0]
    whole = images[:]
    count = len(whole)
    mask = torch.arange(count) % 3 == 0
    for key in (0, -1, np.int64(2), torch.tensor(1), slice(1, 4), slice(5, 2), [2, -1, 0], np.array([1, 3]), mask):
        assert torch.equal(images[key], whole[key]), key
    assert torch.equal(images[::-1], whole.flip(0))
    for key in ((), (2, 0), (slice(1, 3), 0), (slice(None), slice(0, 1), 2), ([3, 1], 0), (torch.tensor(2), slice(None), 1)):
        assert torch.equal(images[key], whole[key]), key
    for key in (count, -count - 1, [0, count], torch.tensor([True]), ([0, 1], [0, 1])):
        with pytest.raises(IndexError):
            images[key]
