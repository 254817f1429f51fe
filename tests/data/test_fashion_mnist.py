"""Fashion-MNIST's four sources, with a small data set in its format and no network."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import heptane as hp
from heptane.data.arrays import fashion_mnist
from heptane.data.arrays.fashion_mnist import FILES as REAL_FILES
from heptane.data.dataset import DataUnavailable


def idx_gz(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(gzip.decompress(content)).hexdigest()


RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (36, 28, 28), dtype="u1"), RANDOM.integers(0, 256, (12, 28, 28), dtype="u1")
LABELS = (np.arange(36) % 10).astype("u1"), (np.arange(12) % 10).astype("u1")
CONTENT = dict(zip(REAL_FILES, map(idx_gz, (PIXELS[0], LABELS[0], PIXELS[1], LABELS[1])), strict=True))
FIRST = fashion_mnist.TRAIN_IMAGES


@dataclass
class Server:
    """What the next requests get, and what they were."""

    address: str
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=lambda: dict(CONTENT))
    statuses: list[int] = field(default_factory=list)
    """statuses of the next answers; then 200"""
    cut_after: list[int] = field(default_factory=list)
    """the next answers end after so many bytes"""
    knows_ranges: bool = True


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
            told.requests.append((name, wanted))
            if told.statuses and (status := told.statuses.pop(0)) != 200:
                self.send_error(status)
                return
            body = told.content.get(name)
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and told.knows_ranges else 0
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = start + told.cut_after.pop(0) if told.cut_after else None
            self.wfile.write(body[start:end])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        told = Server(f"http://127.0.0.1:{http.server_port}/")
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield told
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_and_offline(monkeypatch, tmp_path):
    """The small set's checksums, no pauses, and none of the places where the real one could come from."""
    monkeypatch.setattr(fashion_mnist, "FILES", {name: sha256(content) for name, content in CONTENT.items()})
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "ADDRESSES", ("http://127.0.0.1:9/",))  # nothing listens there
    monkeypatch.setattr("heptane.base.download.PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no apt-get


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "fashion-mnist"


def put(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in content.items():
        (folder / name).write_bytes(body)
    return folder


def load(**settings) -> hp.Data:
    return hp.load_data("fashion-mnist", **settings)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def from_server(monkeypatch, *servers: Server) -> None:
    monkeypatch.setattr(fashion_mnist, "ADDRESSES", tuple(server.address for server in servers))


# --- what is loaded


def test_the_real_files_are_the_published_ones():
    assert list(REAL_FILES) == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    assert all(len(digest) == 64 for digest in REAL_FILES.values())


def test_a_twelfth_is_set_aside_and_the_test_part_is_the_publishers(cache):
    put(cache)
    data = load(seed=3)
    assert [len(part[1]) for part in (data.train, data.valid, data.test)] == [33, 3, 12]
    assert (data.num_classes, data.input_shape, len(data.class_names)) == (10, (1, 28, 28), 10)
    assert data.source == f"the cache {cache}"
    assert data.notes == ("3 of the 36 training images were set aside for validation by the split seed 3",)
    assert data.test[1].tolist() == LABELS[1].tolist()
    pixels = [
        torch.round((part[0].double() * data.std[0] + data.mean[0]) * 255) for part in (data.train, data.valid, data.test)
    ]
    assert np.array_equal(pixels[2][:, 0].numpy(), PIXELS[1])
    seen = sorted(
        (image.numpy().tobytes(), int(label))
        for image, label in zip(torch.cat(pixels[:2])[:, 0].byte(), torch.cat([data.train[1], data.valid[1]]), strict=True)
    )
    assert seen == sorted((image.tobytes(), int(label)) for image, label in zip(PIXELS[0], LABELS[0], strict=True))
    assert len(load(valid_fraction=0.25).valid[1]) == 9


def test_the_cache_folder_is_the_argument_then_the_variables(cache, tmp_path, monkeypatch):
    default = fashion_mnist.default_cache
    assert default() == tmp_path / "cache"
    monkeypatch.delenv("HEPTANE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default() == tmp_path / "xdg" / "heptane"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default() == tmp_path / "home" / ".cache" / "heptane"
    put(tmp_path / "other" / "fashion-mnist")
    assert load(cache_dir=tmp_path / "other").source == f"the cache {tmp_path / 'other' / 'fashion-mnist'}"


def test_gzip_headers_may_differ_from_the_publishers(cache):
    put(cache, {name: gzip.compress(gzip.decompress(body), 1, mtime=99) for name, body in CONTENT.items()})
    assert load().source.startswith("the cache")


# --- Debian


def test_an_installed_package_is_used_and_not_copied(cache, tmp_path):
    put(tmp_path / "debian")
    assert load().source == f"the Debian package in {tmp_path / 'debian'}"
    assert not cache.exists()


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
    path.chmod(0o755)


def fake_apt(tmp_path: Path, apt: str = "", dpkg: str = "") -> None:
    put(tmp_path / "package")
    script(tmp_path / "bin" / "apt-get", apt or 'echo "$@" > args; echo x > dataset-fashion-mnist_1_all.deb')
    unpack = f'mkdir -p "$3{tmp_path}/debian" && cp {tmp_path}/package/* "$3{tmp_path}/debian"'
    script(tmp_path / "bin" / "dpkg", dpkg or f'test "$1 $2" = "-x dataset-fashion-mnist_1_all.deb" && {unpack}')


def test_the_package_is_downloaded_without_root_and_kept(cache, tmp_path):
    fake_apt(tmp_path)
    data = load()
    assert data.source == "apt-get download dataset-fashion-mnist"
    assert names(cache) == set(CONTENT)
    assert all((cache / name).read_bytes() == body for name, body in CONTENT.items())
    again = load()
    assert again.source == f"the cache {cache}"
    assert torch.equal(again.train[0], data.train[0])


def test_a_cache_that_cannot_be_written_is_said_and_does_not_stop(cache, tmp_path):
    fake_apt(tmp_path)
    (tmp_path / "cache").write_text("a file, where a folder should be")
    data = load()
    assert (
        data.notes[0]
        == f"the cache {cache} is not writable (Not a directory), so the data will be downloaded again next time"
    )
    assert len(data.notes) == 2


def test_a_copy_that_fails_leaves_nothing_behind(cache, tmp_path, monkeypatch):
    fake_apt(tmp_path)

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fashion_mnist.shutil, "copyfile", full)
    assert "No space left on device" in load().notes[0]
    assert names(cache) == set()


@pytest.mark.parametrize(
    ("apt", "dpkg", "message"),
    [
        ("echo first >&2; echo 'E: Unable to locate package' >&2; exit 100", "", "E: Unable to locate package"),
        ("exit 7", "", "exit status 7"),
        ("", "exit 2", "exit status 2"),
        ("true", "", "No such file"),
    ],
)
def test_a_failing_apt_is_named_and_the_next_source_is_tried(cache, tmp_path, server, monkeypatch, apt, dpkg, message):
    fake_apt(tmp_path, apt, dpkg)
    with pytest.raises(DataUnavailable, match=f"apt-get download dataset-fashion-mnist: .*{message}.*public download: "):
        load()
    from_server(monkeypatch, server)
    assert load().source == "public download"


def test_a_package_with_other_content_is_not_believed(tmp_path):
    fake_apt(tmp_path)
    put(tmp_path / "package", {FIRST: idx_gz(PIXELS[0] + 1)})
    with pytest.raises(DataUnavailable, match=r"apt-get download .* has the wrong checksum"):
        load()


# --- public download


def test_a_download_is_kept_and_not_repeated(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    data = load()
    assert data.source == "public download"
    assert server.requests == [(name, None) for name in CONTENT]
    assert names(cache) == set(CONTENT)
    assert len(data.notes) == 1
    assert load().source == f"the cache {cache}"
    assert len(server.requests) == 4


def test_only_what_is_missing_or_wrong_in_the_cache_is_downloaded(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    put(cache)
    (cache / FIRST).unlink()
    (cache / fashion_mnist.TEST_LABELS).write_bytes(b"damaged")
    assert load().source == "public download"
    assert [name for name, _ in server.requests] == [FIRST, fashion_mnist.TEST_LABELS]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_goes_on_after_the_part_that_is_there(cache, server, monkeypatch, knows_ranges):
    from_server(monkeypatch, server)
    server.knows_ranges = knows_ranges
    put(cache, {f"{FIRST}.part": CONTENT[FIRST][:1000]})
    load()
    assert server.requests[0] == (FIRST, "bytes=1000-")
    assert len(server.requests) == 4
    assert (cache / FIRST).read_bytes() == CONTENT[FIRST]
    assert names(cache) == set(CONTENT)


def test_a_connection_that_ends_early_is_taken_up_where_it_ended(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    server.cut_after = [500, 700]
    load()
    assert [wanted for _, wanted in server.requests[:3]] == [None, "bytes=500-", "bytes=1200-"]
    assert (cache / FIRST).read_bytes() == CONTENT[FIRST]


def test_what_was_fetched_before_giving_up_is_kept_for_the_next_call(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    server.cut_after = [100, 100, 100]
    with pytest.raises(DataUnavailable, match="the connection ended after 300 of"):
        load()
    assert (cache / f"{FIRST}.part").read_bytes() == CONTENT[FIRST][:300]
    load()
    assert server.requests[3] == (FIRST, "bytes=300-")
    assert names(cache) == set(CONTENT)


def test_a_part_that_is_whole_already_is_accepted(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    put(cache, {f"{FIRST}.part": CONTENT[FIRST]})
    load()
    assert server.requests[:2] == [(FIRST, f"bytes={len(CONTENT[FIRST])}-"), (fashion_mnist.TRAIN_LABELS, None)]


@pytest.mark.parametrize("stale", [b"x" * 1000, CONTENT[FIRST] + b"more"])
def test_a_part_that_proves_wrong_is_fetched_anew(cache, server, monkeypatch, stale):
    from_server(monkeypatch, server)
    put(cache, {f"{FIRST}.part": stale})
    load()
    assert server.requests[:2] == [(FIRST, f"bytes={len(stale)}-"), (FIRST, None)]
    assert (cache / FIRST).read_bytes() == CONTENT[FIRST]


def test_a_server_that_fails_for_a_while_is_asked_again(server, monkeypatch):
    from_server(monkeypatch, server)
    server.statuses = [503, 500]
    assert load().source == "public download"
    assert len(server.requests) == 6


def test_a_file_that_is_not_there_is_asked_for_once_per_address(server, monkeypatch):
    from_server(monkeypatch, server, server)
    del server.content[FIRST]
    with pytest.raises(DataUnavailable, match="HTTPError 404"):
        load()
    assert server.requests == [(FIRST, None)] * 2


def test_wrong_content_is_never_kept_and_the_next_address_is_tried(cache, server, monkeypatch):
    wrong = Server(server.address + "wrong/")
    monkeypatch.setattr(fashion_mnist, "ADDRESSES", (wrong.address, server.address))
    right, answers = dict(server.content), [idx_gz(PIXELS[0] + 1)]
    server.content = right

    class Once(dict):
        def get(self, name, default=None):
            return answers.pop() if name == FIRST and answers else right.get(name, default)

    server.content = Once()
    assert load().source == "public download"
    assert [name for name, _ in server.requests[:3]] == [FIRST, FIRST, fashion_mnist.TRAIN_LABELS]
    assert (cache / FIRST).read_bytes() == CONTENT[FIRST]
    assert names(cache) == set(CONTENT)


def test_a_checksum_that_is_wrong_everywhere_is_said_and_leaves_no_part(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    server.content[FIRST] = idx_gz(PIXELS[0] + 1)
    with pytest.raises(DataUnavailable, match="has the wrong checksum: download it again"):
        load()
    assert names(cache) == set()


def test_an_endless_answer_is_cut_off(cache, server, monkeypatch):
    from_server(monkeypatch, server)
    monkeypatch.setattr(fashion_mnist, "MAX_DOWNLOAD_BYTES", 5000)
    with pytest.raises(DataUnavailable, match="more than 5000 bytes, which no file of Fashion-MNIST has"):
        load()
    assert names(cache) == set()


def test_a_download_without_a_cache_still_gives_the_data(tmp_path, server, monkeypatch):
    from_server(monkeypatch, server)
    (tmp_path / "cache").write_text("a file")
    data = load()
    assert data.source == "public download"
    assert "is not writable" in data.notes[0]


# --- nothing works


def test_when_no_source_works_all_are_named_with_the_way_out(cache, tmp_path):
    with pytest.raises(DataUnavailable) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"the cache {cache}: ",
        f"the Debian package in {tmp_path / 'debian'}: ",
        "this system has no apt-get and dpkg",
    ):
        assert part in message
    assert "public download: http://127.0.0.1:9/" in message
    assert message.endswith(f"use --data digits, which needs no network, or put the four .gz files in {cache}")


def test_the_fallback_is_digits_with_a_note():
    data = load(fallback="digits", seed=2)
    plain = hp.load_data("digits", seed=2)
    assert (data.name, data.num_classes) == ("digits", 10)
    assert torch.equal(data.train[0], plain.train[0])
    start = "fashion-mnist is not available, so digits was loaded instead: Fashion-MNIST is not available"
    assert data.notes[0].startswith(start)
    assert data.notes[1:] == plain.notes


def test_the_fallback_is_not_used_where_the_set_is_there_or_the_argument_is_wrong(cache):
    put(cache)
    assert load(fallback="digits").name == "fashion-mnist"
    with pytest.raises(hp.InputError, match=r"setting aside 0\.01 of 36 samples leaves a part"):
        load(fallback="digits", valid_fraction=0.01)


def test_temporary_files_are_gone_afterwards(cache, tmp_path, monkeypatch):
    fake_apt(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(fashion_mnist.tempfile, "tempdir", str(tmp_path / "tmp"))
    load()
    assert os.listdir(tmp_path / "tmp") == []
