"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747; MIT licence): 70,000 grey images, 10 classes.

Sources, in this order: the cache, an installed Debian package, ``apt-get download`` of it, a public download. Checksums are
of the uncompressed content, since Debian's gzip headers differ from the publisher's.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from heptane.base.cache import default_cache
from heptane.base.download import STALL_SECONDS, TooLong, download
from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.data.arrays.idx import read_idx
from heptane.data.dataset import Data, DataUnavailable
from heptane.data.images.image_preprocess import ImagePreprocess
from heptane.data.normalise import normalise
from heptane.data.splits import split

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FILES = {  # SHA-256 of the uncompressed content
    TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ADDRESSES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
MAX_DOWNLOAD_BYTES = 32 << 20


def load_fashion_mnist(*, seed: int, valid_fraction: float | None, cache_dir: str | os.PathLike[str] | None) -> Data:
    """Load Fashion-MNIST: 5,000 of the 60,000 training images (or ``valid_fraction``) for validation; 10,000 test images.

    Raises:
        DataUnavailable: no source worked; the message lists what was tried.
    """
    cache = (Path(cache_dir).expanduser() if cache_dir else default_cache()) / "fashion-mnist"
    (pixels, labels, test_pixels, test_labels), source, notes = find(cache)
    train, valid = split([len(labels)], [1 / 12 if valid_fraction is None else valid_fraction], seed)
    images = [part.unsqueeze(1) for part in (pixels[train], pixels[valid], test_pixels)]
    inputs, mean, std = normalise(images)
    targets = (labels[train].long(), labels[valid].long(), test_labels.long())
    train_part, valid_part, test_part = zip(inputs, targets, strict=True)
    note = f"{len(valid)} of the {len(labels)} training images were set aside for validation by the split seed {seed}"
    all_notes = (*notes, note)
    about = (10, CLASSES, all_notes, source, mean, std)
    preprocess = ImagePreprocess((28, 28), 1, mean, std)
    return Data("fashion-mnist", train_part, valid_part, test_part, *about, kind="images", preprocess=preprocess)


def find(cache: Path) -> tuple[list[torch.Tensor], str, list[str]]:
    """Return the content of ``FILES`` in order, its source, and notes; downloaded files are added to ``cache``."""
    sources: list[tuple[str, Callable[[Path, Path], Path]]] = [
        (f"the cache {cache}", lambda cache, _: cache),
        (f"the Debian package in {DEBIAN_FOLDER}", lambda *_: DEBIAN_FOLDER),
        ("apt-get download dataset-fashion-mnist", fetch_by_apt),
        ("public download", fetch_by_http),
    ]
    tried = []
    with tempfile.TemporaryDirectory(prefix="heptane-") as scratch:
        for name, fetch in sources:
            try:
                with working(f"fetching Fashion-MNIST from {name}"):
                    folder = fetch(cache, Path(scratch))
                contents = [torch.from_numpy(read_idx(folder / file, sha256=sha256)) for file, sha256 in FILES.items()]
            except (InputError, OSError, subprocess.SubprocessError) as error:
                tried.append(f"{name}: {' '.join(str(error).split())}")
                continue
            return contents, name, [] if folder in (cache, DEBIAN_FOLDER) else copy_to_cache(folder, cache)
    remedy = f"use --data digits, which needs no network, or put the four .gz files in {cache}"
    raise DataUnavailable(f"Fashion-MNIST is not available ({'; '.join(tried)}): {remedy}")


def copy_to_cache(folder: Path, cache: Path) -> list[str]:
    """Copy the four files into the cache atomically; return a note if that fails."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            copy = cache / f"{name}.{os.getpid()}"
            try:
                shutil.copyfile(folder / name, copy)
                copy.replace(cache / name)
            finally:
                copy.unlink(missing_ok=True)
    except OSError as error:
        return [f"the cache {cache} is not writable ({error.strerror}), so the data will be downloaded again next time"]
    return []


def fetch_by_apt(_cache: Path, scratch: Path) -> Path:
    """Download and unpack Debian's package."""
    return unpack_package("dataset-fashion-mnist", scratch) / DEBIAN_FOLDER.relative_to("/")


def unpack_package(name: str, scratch: Path) -> Path:
    """Download a Debian package and unpack it in ``scratch``, without root and without installing it."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise OSError("this system has no apt-get and dpkg")
    options = ["-o", f"Acquire::http::Timeout={STALL_SECONDS:.0f}", "-o", "Acquire::Retries=1"]
    run(["apt-get", "download", *options, name], scratch, timeout_seconds=300)
    for package in scratch.glob(f"{name}_*.deb"):
        run(["dpkg", "-x", package.name, "unpacked"], scratch, timeout_seconds=60)
    return scratch / "unpacked"


def run(command: list[str], folder: Path, timeout_seconds: float) -> None:
    """Run a command in ``folder``; raise ``OSError`` with its last line of stderr if it fails."""
    env = {**os.environ, "LC_ALL": "C"}
    null = subprocess.DEVNULL
    done = subprocess.run(command, cwd=folder, env=env, stdin=null, capture_output=True, timeout=timeout_seconds)
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(errors[-1])


def fetch_by_http(cache: Path, scratch: Path) -> Path:
    """Download the four files, into the cache if it is writable, so that a later call can resume a partial download."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache if os.access(cache, os.W_OK) else scratch
    except OSError:
        folder = scratch
    for name in FILES:
        try:
            read_idx(folder / name, sha256=FILES[name])
        except InputError:
            fetch_file(name, folder)
    return folder


def fetch_file(name: str, folder: Path) -> None:
    """Download one of ``FILES`` from the first address with the right content; raise ``OSError`` if there is none."""
    part = folder / f"{name}.part"
    addresses = ADDRESSES[:1] + ADDRESSES if part.exists() else ADDRESSES  # retry in case an old partial file is damaged
    failures = []
    for address in addresses:
        try:
            download(address + name, part, MAX_DOWNLOAD_BYTES)
            read_idx(part, sha256=FILES[name])
        except TooLong as error:
            part.unlink(missing_ok=True)
            failures.append(f"{address}: {error}, which no file of Fashion-MNIST has")
        except InputError as error:
            part.unlink(missing_ok=True)
            failures.append(f"{address}: {error}")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{address}: {error!r}")
        else:
            part.replace(folder / name)
            return
    raise OSError("; ".join(failures))
