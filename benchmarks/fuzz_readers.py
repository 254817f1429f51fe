"""The kinds of file that are mutated (checkpoint, weights, arrays, image) and the reader of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import heptane as hp
from heptane.assemble import assemble
from heptane.base import storage
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.data.arrays.idx import read_idx
from heptane.session.checkpoints import checkpoint, restore

IMAGES = ("png", "jpg", "gif", "bmp", "tiff", "webp")
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))


def run() -> Any:
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    return assemble(network(), data, Plan.of(optimizer=sgd, epochs=2, batch_size=4, device="cpu"))


def make_checkpoint(folder: Path) -> Path:
    trained = run()
    for event in steps(trained):
        if event.step == 2:
            break
    history = [dict.fromkeys(("epoch", "step", "train_seconds", "evaluate_seconds"), 1)]
    return checkpoint.write(checkpoint.take_snapshot(trained, 2, history), folder, trained)


def read_checkpoint(path: Path) -> None:
    """Read a checkpoint as a run does, also with matching checksums."""
    restore.load(run(), checkpoint.read(path))


def reseal(path: Path) -> None:
    """Give a mutated checkpoint matching checksums, as an attacker would."""
    try:
        found = json.loads((path / "facts.json").read_bytes())
        files = {part.name: storage.checksum(part) for part in path.iterdir() if part.name != "facts.json"}
        body = {"files": files, "facts": found["facts"]}
        text = json.dumps({"sha256": storage._of_body(body), **body})
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    (path / "facts.json").write_text(text)


def make_safetensors(folder: Path) -> Path:
    save_file(dict(network().state_dict()), folder / "w.safetensors")
    return folder / "w.safetensors"


def make_pth(folder: Path) -> Path:
    torch.save(network().state_dict(), folder / "w.pth")
    return folder / "w.pth"


def make_npz(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=draw.integers(0, 255, (20, 4, 4), dtype=np.uint8), y=np.arange(20) % 3)
    return folder / "d.npz"


def make_idx(folder: Path) -> Path:
    (folder / "d.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(range(80)))
    return folder / "d.idx"


def make_image(kind: str, folder: Path) -> Path:
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(5):
            pixels = np.random.default_rng(index).integers(0, 255, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.{kind}")
    return folder / "images" / "a" / f"0.{kind}"


Kind = tuple[Callable[[Path], Path], Callable[[Path], Any]]
READERS: dict[str, Kind] = {
    "checkpoint": (make_checkpoint, read_checkpoint),
    "safetensors": (make_safetensors, lambda path: hp.load_weights(network(), path)),
    "pth": (make_pth, lambda path: hp.load_weights(network(), path)),
    "npz": (make_npz, lambda path: hp.load_data(str(path))),
    "idx": (make_idx, lambda path: read_idx(path, max_bytes=1 << 24)),
    **{kind: (partial(make_image, kind), lambda path: hp.load_data(str(path.parents[1]), skip_bad=1)) for kind in IMAGES},
}
