"""WebDataset shards: indexed once, read by offset."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.data.images import shard_index
from heptane.data.images.sources import images_kind, list_images
from heptane.data.load_labelled import load_labelled


def picture(value: int, suffix: str = "png", mode: str = "RGB") -> bytes:
    image = Image.fromarray(np.full((6, 6, 3), value, dtype="u1"))
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 6), value * 257, dtype="u2"))
    elif mode == "P":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "JPG": "JPEG"}.get(suffix, suffix))
    return file.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def samples(first: int, last: int, label: str = "{}", kind: str = "cls") -> list[tuple[str, bytes]]:
    """Samples whose pixels are their number, and whose label is the number modulo 2."""
    return [
        member
        for n in range(first, last)
        for member in ((f"{n:04}.png", picture(n)), (f"{n:04}.{kind}", label.format(n % 2).encode()))
    ]


def everything(data: hp.Data) -> dict[int, object]:
    """The target of each image, by its number."""
    found: dict[int, object] = {}
    for part in filter(None, (data.train, data.valid, data.test)):
        pixels = part[0][:][:, 0, 0, 0].double() * data.std[0] + data.mean[0]
        found |= dict(zip(torch.round(pixels * 255).long().tolist(), part[1].tolist(), strict=True))
    return found


def test_a_folder_a_glob_and_braces_are_the_same_data(tmp_path):
    for number in range(3):
        shard(tmp_path / f"part-{number:03}.tar", samples(10 * number, 10 * number + 10))
    wanted = {n: n % 2 for n in range(30)}
    for source in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/part-{{000..002}}.tar"):
        assert images_kind(source) == "shards"
        data = hp.load_data(source)
        assert everything(data) == wanted
        assert (data.class_names, data.kind) == (("0", "1"), "images")
    assert everything(hp.load_data(tmp_path / "part-001.tar")) == {n: n % 2 for n in range(10, 20)}
    assert not list_images(tmp_path).named
    with pytest.raises(hp.InputError, match=r"shard '.*part-003.tar' cannot be read .*No such file"):
        hp.load_data(f"{tmp_path}/part-{{000..003}}.tar")


def test_names_of_shards_give_the_parts_if_all_have_one(tmp_path):
    for name, first in (("train-0", 0), ("train-1", 10), ("val-0", 20), ("test_0", 30)):
        shard(tmp_path / f"{name}.tar", samples(first, first + 10))
    data = hp.load_data(tmp_path)
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [20, 10, 10]
    assert data.files["valid"][0] == "val-0.tar/0020.png"
    shard(tmp_path / "more.tar", samples(40, 50))
    assert [len(part[1]) for part in (lambda d: (d.train, d.valid, d.test))(hp.load_data(tmp_path))] == [40, 5, 5]


@pytest.mark.parametrize(
    ("label", "kind"), [("c{}, x", "cls"), ("c{}, x", "txt"), ('{{"label": "c{}, x", "caption": "?"}}', "json")]
)
def test_text_labels_are_classes(tmp_path, label, kind):
    data = hp.load_data(shard(tmp_path / "a.tar", samples(0, 20, label, kind)))
    assert data.class_names == ("c0, x", "c1, x")
    assert everything(data) == {n: n % 2 for n in range(20)}


@pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
def test_a_file_of_classes_names_the_numbers(tmp_path, name):
    (tmp_path / name).write_text("dog\ncat\n" if name.endswith("txt") else json.dumps(["dog", "cat"]))
    path = shard(tmp_path / "a.tar", samples(0, 20))
    data = hp.load_data(path)
    assert data.class_names == ("cat", "dog")
    assert everything(data) == {n: 1 - n % 2 for n in range(20)}
    shard(path, samples(0, 20, "{}5"))
    with pytest.raises(hp.InputError, match="but the file of classes has 2 names, from 0 to 1"):
        hp.load_data(path)


def test_label_chooses_a_field_of_json_which_may_be_a_number_or_a_list(tmp_path):
    members = [(f"{n}.{kind}", body) for n in range(20) for kind, body in (("png", picture(n)), ("json", b""))]
    members = [
        (n, json.dumps({"size": int(n[:-5]) + 0.5, "tags": ["a", "b"][: int(n[:-5]) % 3]}).encode())
        if n.endswith("json")
        else (n, body)
        for n, body in members
    ]
    path = shard(tmp_path / "a.tar", members)
    data = hp.load_data(path, label="size")
    scale = data.preprocess.target
    assert data.num_classes is None
    assert {n: round(t * scale.std + scale.mean, 3) for n, t in everything(data).items()} == {n: n + 0.5 for n in range(20)}
    data = hp.load_data(path, label="tags")
    assert everything(data) == {n: [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]][n % 3] for n in range(20)}
    with pytest.raises(hp.InputError, match=r"20 of 20 images have no label in .json 'label', the first is 'a.tar/0.png'"):
        hp.load_data(path)


def test_odd_members_are_read(tmp_path):
    members = [("./deep/日本.x/0.cls", b"a")]
    for n, (name, kind, mode) in enumerate(
        (("sub/é 0", "JPG", "RGB"), ("sub/1", "png", "I;16"), ("2", "png", "P"), ("3", "webp", "RGB"))
    ):
        members += [(f"{name}.{kind}", picture(50 * n + 20, kind, mode)), (f"{name}.CLS", b"ab"[n % 2 : n % 2 + 1])]
    members += [("._4.png", b"x"), ("readme", b"x"), ("5.cls", b"a")]
    data = hp.load_data(shard(tmp_path / "train-0.tar", members + samples(1, 19, "a")), valid_fraction=0.2)
    names = {name for part in data.files.values() for name in part}
    assert {"train-0.tar/sub/é 0.jpg", "train-0.tar/sub/1.png", "train-0.tar/2.png", "train-0.tar/3.webp"} <= names
    assert len(names) == 22
    assert {20, 70, 120, 170} <= set(everything(data))
    assert any("without an image were ignored" in note for note in data.notes)


def test_a_hard_link_in_a_shard_is_the_member_that_it_names(tmp_path):
    path = shard(tmp_path / "a.tar", samples(0, 20))
    with tarfile.open(path, "a") as archive:
        for name, target in (("x.png", "0007.png"), ("x.cls", "0007.cls"), ("y.png", "none.png"), ("y.cls", "0000.cls")):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = tarfile.LNKTYPE, target
            archive.addfile(about)
    listing = list_images(path)
    assert len(listing.images) == 21
    assert listing.images.read(20) == picture(7)
    assert listing.labels[20] == 1
    assert "1 sample(s) of the shards without an image were ignored" in listing.notes


def test_an_empty_image_in_a_shard_is_named(tmp_path):
    path = shard(tmp_path / "a.tar", [*samples(0, 10), ("x.png", b""), ("x.cls", b"1"), ("y.png", b"z"), ("y.cls", b"1")])
    with pytest.raises(hp.InputError, match=r"image '.*a.tar/x.png' cannot be read \(it is empty\)"):
        hp.load_data(path)
    with pytest.raises(hp.InputError, match=r"image '.*a.tar/y.png' cannot be read \(cannot identify image file\)"):
        hp.load_data(path, skip_bad=1)


def test_a_key_of_two_images_is_refused_and_named(tmp_path):
    path = shard(tmp_path / "a.tar", [*samples(0, 10), *samples(3, 4)])
    with pytest.raises(hp.InputError, match=r"shard 'a.tar' has two members '0003.png'"):
        hp.load_data(path)


def test_missing_and_empty_labels_are_counted(tmp_path):
    path = shard(tmp_path / "a.tar", [*samples(0, 10), ("x.png", picture(1)), ("y.png", picture(1)), ("y.cls", b" ")])
    with pytest.raises(hp.InputError, match=r"2 of 12 images have no label in .cls, the first is 'a.tar/x.png'"):
        hp.load_data(path)


@pytest.mark.parametrize("damage", ["short", "header", "empty", "gzip", "text"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    shard(tmp_path / "a-0.tar", samples(0, 10))
    path = shard(tmp_path / "a-1.tar", samples(10, 20))
    content = bytearray(path.read_bytes())
    if damage == "gzip":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "a-0.tar", "x.png")
    else:
        content[4 * 512 + 148 : 4 * 512 + 156] = b"99999999"
        parts = {"short": path.read_bytes()[:700], "header": content, "empty": b"", "text": b"x" * 3000}
        path.write_bytes(parts[damage])
    with pytest.raises(hp.InputError, match=r"shard '.*a-1.tar' cannot be read .*: it is missing, damaged, truncated or"):
        hp.load_data(tmp_path)


def test_a_shard_that_changes_after_the_listing_is_not_read(tmp_path):
    path = shard(tmp_path / "a.tar", samples(0, 20))
    listing = list_images(path)
    assert Image.open(io.BytesIO(listing.images.read(3))).getpixel((0, 0)) == (3, 3, 3)
    before = listing.images.fingerprint()
    shard(path, samples(0, 21))
    with pytest.raises(OSError, match=r"shard a.tar changed after it was listed"):
        listing.images.read(3)
    assert list_images(path).images.fingerprint() != before


def test_the_index_of_a_shard_is_kept_until_the_shard_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_index, "SMALL", 0)
    (tmp_path / "set").mkdir()
    odd = [("é\n/x.cls", b"1"), ("é\n/x.PNG", picture(77)), ("alone.cls", b"0"), ("r.png", picture(78)), ("r.cls", b"")]
    shard(tmp_path / "set" / "train-0.tar", [*samples(0, 10), *odd[:3]])
    shard(tmp_path / "set" / "train-1.tar", samples(10, 20))
    opened = list[str]()
    read_headers = shard_index._read
    monkeypatch.setattr(shard_index, "_read", lambda file, name: opened.append(file.name) or read_headers(file, name))

    def listed() -> tuple[object, ...]:
        opened.clear()
        found = list_images(tmp_path / "set")
        read = tuple(found.images.read(index) for index in range(len(found.images)))
        return list(found.images.names), found.labels.tolist(), found.notes, found.images.fingerprint(), read

    first = listed()
    assert len(opened) == 2
    assert listed() == first
    assert opened == []
    kept = sorted((tmp_path / "cache" / "shard-index").iterdir(), key=lambda path: path.stat().st_size)
    assert len(kept) == 2
    for damage in (b"", kept[0].read_bytes()[:-9], b"x" * 99, kept[0].read_bytes().replace(b"1.png", b"2.png", 1)):
        kept[0].write_bytes(damage)
        assert listed() == first
        assert len(opened) == 1
    shard(tmp_path / "set" / "train-1.tar", samples(10, 22))
    assert len(listed()[0]) == 23
    assert opened == ["train-1.tar"]
    monkeypatch.setattr(shard_index, "MAX_KEPT", 1)
    shard(tmp_path / "set" / "train-1.tar", samples(10, 24))
    assert len(listed()[0]) == 25
    assert len(list((tmp_path / "cache" / "shard-index").iterdir())) == 1
    monkeypatch.setenv("HEPTANE_CACHE", "/proc/none")
    assert len(listed()[0]) == 25


def test_a_folder_of_class_folders_with_a_tar_beside_them_stays_a_folder(tmp_path):
    shard(tmp_path / "a.tar", samples(0, 4))
    (tmp_path / "cat").mkdir()
    assert images_kind(tmp_path) == "folder"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves ``tmp_path/www`` with ranges; ``cut`` answers end early; ``asked`` lists the requests."""
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("heptane.base.download.PAUSE_SECONDS", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file, wanted = tmp_path / "www" / self.path.rsplit("/", 1)[-1], self.headers.get("Range")
            asked.append((file.name, wanted))
            if not file.is_file():
                self.send_error(404)
                return
            body, start = file.read_bytes(), int(wanted[6:-1]) if wanted else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : start + cut.pop() if cut else None])

        def log_message(self, *_: object) -> None:
            pass

    asked: list[tuple[str, str | None]] = []
    cut: list[int] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/set", asked, cut
        http.shutdown()
        thread.join()


def test_shards_of_a_server_are_downloaded_once_and_resumed(tmp_path, server):
    address, asked, cut = server
    for number in range(2):
        shard(tmp_path / "www" / f"train-{number}.tar", samples(10 * number, 10 * number + 10))
    source = f"{address}/train-{{0..1}}.tar"
    cut += [700] * 3
    with pytest.raises(hp.InputError, match=r"shard 'http://.*/train-0.tar' cannot be downloaded .*ended after 2100 of"):
        hp.load_data(source)
    missing = [("classes.txt", None), ("classes.json", None)]
    assert asked == [*missing, ("train-0.tar", None), ("train-0.tar", "bytes=700-"), ("train-0.tar", "bytes=1400-")]
    asked.clear()
    assert everything(hp.load_data(source)) == {n: n % 2 for n in range(20)}
    assert asked == [("train-0.tar", "bytes=2100-"), ("train-1.tar", None)]
    asked.clear()
    assert len(everything(hp.load_data(source))) == 20
    assert asked == []
    with pytest.raises(hp.InputError, match=r"shard 'http://.*/none.tar' cannot be downloaded .*404"):
        hp.load_data(f"{address}/none.tar")


def test_the_classes_beside_the_shards_of_a_server_are_used(tmp_path, server):
    shard(tmp_path / "www" / "a.tar", samples(0, 20))
    (tmp_path / "www" / "classes.json").write_text('["dog", "cat"]')
    data = hp.load_data(f"{server[0]}/a.tar")
    assert data.class_names == ("cat", "dog")
    images, targets, _ = load_labelled(f"{server[0]}/a.tar", "all", ("dog", "cat"), data.preprocess)
    assert (len(images), targets.tolist()) == (20, [0, 1] * 10)
