"""The data path: how fast images are decoded the first time and read afterwards, in how much memory, and safe from kills.

- ``decoding``: decoding a folder into the cache, compared with a bare loop of Pillow in as many processes; interleaved.
- ``epochs``: later epochs with random resized crops and flips, compared with torchvision's ImageFolder and the same
  transforms in a DataLoader of 2 workers; and their share of a training step of EfficientNet-lite0 at 160 pixels.
- ``million``: a folder of 1,000,000 links: seconds to list it, memory over 200 steps, and over 10,000 steps.
- ``kills``: a process that fills the cache is killed 50 times at random moments; then all pixels are compared.

``python benchmarks/data.py [--folder DIR] [--only decoding,epochs,million,kills]`` writes ``results/data.json``. Without a
folder 2,000 pictures of 500x375 pixels are made. ``epochs`` needs torchvision; ``--torchvision DIR`` says where it is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import heptane as hp
from heptane.data.augment import RandomResizedCrop
from heptane.data.batches import BatchTransform, TensorSource
from results import save, spread

SIZE, BATCH, READERS = 160, 64, 2
PICTURES, LINKS, CLASSES, KILLS = 2000, 1_000_000, 100, 50


def make_pictures(root: Path, count: int) -> Path:
    """``count`` JPEG files of 500x375 pixels in 10 class folders; smooth colours, as in photographs."""
    for index in range(count):
        folder = root / f"class{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{index:06}.jpg", quality=90)
    return root


def decode_one(path: str) -> int:
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR)).size


def bare_loop(files: list[str]) -> float:
    """Seconds of a bare loop of Pillow over the files, in processes that have started already."""
    with multiprocessing.get_context("spawn").Pool(READERS) as pool:
        pool.map(decode_one, files[:READERS])
        began = time.perf_counter()
        for _ in pool.imap_unordered(decode_one, files, chunksize=16):
            pass
        return time.perf_counter() - began


def load(root: Path, cache: str, room: float = 1.0) -> hp.Data:
    reading = hp.Reading(cache=cache, readers=READERS, room=room)
    return hp.load_data(root, image_size=SIZE, scale="imagenet", skip_bad=1000, reading=reading)


def decoding(root: Path, repeats: int, **_: Any) -> dict[str, Any]:
    data = load(root, "off")
    files = [str(root / name) for part in data.files.values() for name in part]
    ours, bare = [], []
    for _repeat in range(repeats):
        bare.append(bare_loop(files))
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter()
            load(root, cache)
            ours.append(time.perf_counter() - began)
    ratio = statistics.median(bare) / statistics.median(ours)
    print(f"decoding: {ratio:.2f} of a bare loop; {len(files) / statistics.median(ours):.0f} images/s", flush=True)
    return {"images": len(files), "seconds": spread(ours), "bare_seconds": spread(bare), "speed_over_bare": ratio}


def our_epoch(source: TensorSource, place: BatchTransform, epoch: int) -> float:
    began = time.perf_counter()
    steps = source.steps_per_epoch
    for _, batch in source.batches(epoch * steps, (epoch + 1) * steps, place):
        batch.take(slice(None))
    return time.perf_counter() - began


def torchvision_loader(root: Path, names: list[str]) -> Callable[[], float]:
    from overhead import declare_torchvision

    declare_torchvision()
    from torchvision import datasets, transforms

    chain = [transforms.RandomResizedCrop(SIZE, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    chain.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    dataset = datasets.ImageFolder(str(root), transforms.Compose(chain))
    used = {str(root / name) for name in names}
    chosen = [index for index, (path, _) in enumerate(dataset.samples) if path in used]
    subset = torch.utils.data.Subset(dataset, chosen)
    loader = torch.utils.data.DataLoader(subset, BATCH, shuffle=True, num_workers=2, persistent_workers=True)

    def epoch() -> float:
        began = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - began

    epoch()
    return epoch


def epochs(root: Path, repeats: int, **_: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        data = load(root, cache, room=RandomResizedCrop.room)
        source = TensorSource(*data.train, batch_size=BATCH, seed=0)
        place = BatchTransform(
            torch.device("cpu"), 0, RandomResizedCrop(), channels_last=True
        )  # as EfficientNet trains here
        place.fit_augment(source.inputs)
        theirs_epoch = torchvision_loader(root, list(data.files["train"]))
        ours, theirs = [], []
        our_epoch(source, place, 0)
        for repeat in range(repeats):
            ours.append(our_epoch(source, place, repeat + 1))
            theirs.append(theirs_epoch())
        step = training_step(source, place)
    each = statistics.median(ours) / source.steps_per_epoch
    ratio, share = statistics.median(theirs) / statistics.median(ours), each / step
    print(f"epochs: {ratio:.1f} times torchvision; {share:.1%} of a step of EfficientNet-lite0", flush=True)
    return {
        "images": source.num_samples,
        "epoch_seconds": spread(ours),
        "torchvision_epoch_seconds": spread(theirs),
        "speed_over_torchvision": ratio,
        "batch_seconds": each,
        "step_seconds": step,
        "share_of_step": share,
    }


def training_step(source: TensorSource, place: BatchTransform) -> float:
    """Median seconds of a forward and backward pass of EfficientNet-lite0."""
    from efficientnet import efficientnet_lite0

    model = efficientnet_lite0(10, pretrained=False)
    _, batch = next(source.batches(0, 1, place))
    inputs, targets = batch.take(slice(None))
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        torch.nn.functional.cross_entropy(model(inputs), targets % 10).backward()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


LONG_RUN = """
import json, sys, time, torch
import heptane as hp

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

before, began = resident(), time.perf_counter()
data = hp.load_data(sys.argv[1], image_size=64, valid_fraction=0.001, reading=hp.Reading(cache=sys.argv[3]))
loaded, memory, steps = time.perf_counter() - began, {}, int(sys.argv[2])
body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
model = torch.nn.Sequential(body, torch.nn.Linear(8, data.num_classes))
for step in hp.train(model, data.train, optimizer="sgd", lr=0.01, batch_size=64, steps=steps):
    if step.step in (1, 100, 200) or step.step % 500 == 0:
        memory[step.step] = resident()
print(json.dumps({"before_mib": before, "load_seconds": loaded, "resident_mib": memory}))
"""


def million(root: Path, steps: int, **_: Any) -> dict[str, Any]:
    """Train on a folder of links to the pictures of ``root``."""
    from heptane.data.images.folder import list_folder

    files = sorted(path for path in root.rglob("*") if path.is_file())[:PICTURES]
    with tempfile.TemporaryDirectory(dir=root.parent) as place:
        links = Path(place) / "links"
        for label in range(CLASSES):
            folder = links / f"class{label:03}"
            folder.mkdir(parents=True)
            for index in range(LINKS // CLASSES):
                file = files[(37 * label + index) % len(files)]
                os.link(file, folder / f"{index:06}{file.suffix}")
        began = time.perf_counter()
        found = len(list_folder(links).images)
        seconds = time.perf_counter() - began
        command = [sys.executable, "-c", LONG_RUN, str(links), str(steps), str(Path(place) / "cache")]
        run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    print(f"million: {found:,} images listed in {seconds:.1f} s; {run}", flush=True)
    return {"images": found, "list_seconds": seconds, "steps": steps, **run}


FILL = """
import sys
import heptane as hp
print("ready", flush=True)
hp.load_data(sys.argv[1], image_size=160, scale="imagenet", skip_bad=1000, reading=hp.Reading(cache=sys.argv[2], readers=2))
print("done", flush=True)
"""


def kills(root: Path, **_: Any) -> dict[str, Any]:
    wanted, draw, finished = load(root, "off"), random.Random(0), 0
    with tempfile.TemporaryDirectory() as cache:
        for _kill in range(KILLS):
            process = subprocess.Popen([sys.executable, "-c", FILL, str(root), cache], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(draw.uniform(0.02, 1.5))
                finished += 1
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        found = load(root, cache)
    wrong = 0
    for part in ("train", "valid", "test"):
        ours, other = getattr(found, part)[0], getattr(wanted, part)[0]
        for start in range(0, len(ours), 256):
            rows = torch.arange(start, min(start + 256, len(ours)))
            wrong += int((ours.pixels(rows) != other.pixels(rows)).flatten(1).any(1).sum())
    print(f"kills: {KILLS - finished} of {KILLS} processes were killed while they ran; {wrong} images with a wrong pixel")
    return {"processes": KILLS, "killed": KILLS - finished, "wrong_images": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="decoding,epochs,million,kills")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000, help="of million")
    parser.add_argument("--torchvision", help="a folder that holds torchvision")
    parser.add_argument("--out", default="data", help="name of the result file")
    args = parser.parse_args()
    if args.torchvision:
        sys.path.append(args.torchvision)
    parts = {"decoding": decoding, "epochs": epochs, "million": million, "kills": kills}
    with tempfile.TemporaryDirectory() as place:
        root = args.folder.resolve() if args.folder else make_pictures(Path(place) / "pictures", PICTURES)
        found = {name: parts[name](root=root, repeats=args.repeats, steps=args.steps) for name in args.only.split(",")}
    about = {
        "folder": root.name if args.folder else f"{PICTURES} generated JPEG files of 500x375",
        "size": SIZE,
        "batch": BATCH,
    }
    question = "How fast are images read the first time and afterwards, in how much memory, and are kills harmless?"
    save(args.out, question, {**about, "readers": READERS, **found})


if __name__ == "__main__":
    main()
