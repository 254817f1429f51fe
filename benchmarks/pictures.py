"""Real pictures, pretrained weights: ``heptane train`` beside fastai's and torchvision's usual ways, in time and accuracy.

The Debian package ``openclipart-png`` has 8,121 drawings in 22 groups, of which a seed draws some per group; a file that
occurs twice is used once. All arms start from the same ImageNet weights of EfficientNet-lite0, in processes of their own
that are timed whole, and train on the same files; no arm sees the test files before its end.

- ``heptane``: the command without any flag but ``--data``;
- ``fastai``: ``ImageDataLoaders.from_folder``, ``RandomResizedCrop``, flips, ``Learner.fine_tune``: the head for an epoch,
  then everything, with discriminative rates and 1cycle;
- ``torchvision``: ``ImageFolder`` with ``RandomResizedCrop`` and flips, 2 workers, AdamW with 1cycle, everything trains;
- ``features``: features of the resized picture, computed once, and scikit-learn's logistic regression.

``python benchmarks/pictures.py [--per-class 60] [--seeds 2]`` writes ``results/pictures.json``. It needs fastai, torchvision
and ``heptane[pretrained]`` in one environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficientnet import efficientnet_lite0
from heptane.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from heptane.model.memory_format import store_channels_last
from results import save, spread

PICTURES = Path("/usr/share/openclipart/png")
MAX_BYTES = 2_000_000  # a few are drawn at hundreds of millions of pixels, which heptane refuses
SIZE, BATCH, EPOCHS, SCALE = 160, 32, 3, (0.35, 1.0)
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


def make_folder(source: Path, root: Path, per_class: int, seed: int) -> dict[str, int]:
    """Copy pictures to ``root/train``, ``valid`` and ``test``; the number of pictures per part."""
    draw, known, counts = random.Random(seed), set(), dict.fromkeys(SHARES, 0)
    for group in sorted(path for path in source.iterdir() if path.is_dir()):
        files = [f for f in sorted(group.rglob("*.png")) if not f.is_symlink() and f.stat().st_size < MAX_BYTES]
        draw.shuffle(files)
        chosen: list[Path] = []
        for file in files:
            content = hashlib.sha256(file.read_bytes()).digest()
            if content not in known and len(chosen) < per_class:
                known.add(content)
                chosen.append(file)
        if len(chosen) < 10:
            continue
        bounds = [0, round(0.8 * len(chosen)), round(0.9 * len(chosen)), len(chosen)]
        for part, start, stop in zip(SHARES, bounds, bounds[1:], strict=False):
            (root / part / group.name).mkdir(parents=True)
            for index in range(start, stop):
                (root / part / group.name / f"{index:04}.png").write_bytes(chosen[index].read_bytes())
                counts[part] += 1
    return counts


def test_accuracy(model: nn.Module, root: Path, transform: Any) -> float:
    """Of a model on ``root/test``, read by torchvision."""
    from torchvision.datasets import ImageFolder

    model.eval()
    right = count = 0
    with torch.inference_mode():
        for inputs, targets in torch.utils.data.DataLoader(ImageFolder(str(root / "test"), transform), 64):
            right += int((model(inputs).argmax(1) == targets).sum())
            count += len(targets)
    return right / count


def transforms(train: bool) -> Any:
    from torchvision import transforms as t

    shapes = [t.RandomResizedCrop(SIZE, scale=SCALE), t.RandomHorizontalFlip()] if train else [t.Resize((SIZE, SIZE))]
    return t.Compose([*shapes, t.ToTensor(), t.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def with_heptane(root: Path, out: Path) -> float:
    command = [
        sys.executable,
        "-m",
        "heptane",
        "train",
        "--data",
        str(root),
        "--out",
        str(out / "run"),
        "--data-cache",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return float(json.loads((out / "run" / "result.json").read_text())["metrics"]["test_accuracy"])


def with_fastai(root: Path, _: Path) -> float:
    from fastai.vision import all as fastai

    normalise = fastai.Normalize.from_stats(IMAGENET_MEAN, IMAGENET_STD)
    loaders = fastai.ImageDataLoaders.from_folder(
        root,
        train="train",
        valid="valid",
        item_tfms=fastai.RandomResizedCrop(SIZE, min_scale=SCALE[0]),
        batch_tfms=[fastai.Flip(), normalise],
        bs=BATCH,
        num_workers=2,
    )
    model = efficientnet_lite0(len(loaders.vocab), pretrained=True)
    head = [parameter for name, parameter in model.named_parameters() if name.startswith("_fc")]
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("_fc")]
    learner = fastai.Learner(
        loaders, model, loss_func=fastai.CrossEntropyLossFlat(), splitter=lambda _: [body, head], metrics=fastai.accuracy
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS - 1)
    files = fastai.get_image_files(root / "test")
    predictions = learner.get_preds(dl=loaders.test_dl(files, num_workers=0))[0].argmax(1)
    names = [loaders.vocab[index] for index in predictions]
    return sum(name == file.parent.name for name, file in zip(names, files, strict=True)) / len(files)


def with_torchvision(root: Path, _: Path) -> float:
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(root / "train"), transforms(train=True))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True)
    model = efficientnet_lite0(len(data.classes), pretrained=True)
    store_channels_last(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=EPOCHS * len(loader))
    for _epoch in range(EPOCHS):
        for inputs, targets in loader:
            nn.functional.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return test_accuracy(model, root, transforms(train=False))


def with_features(root: Path, _: Path) -> float:
    from sklearn.linear_model import LogisticRegression
    from torchvision.datasets import ImageFolder

    model = efficientnet_lite0(1, pretrained=True).eval()
    model._fc = nn.Identity()
    found = {}
    with torch.inference_mode():
        for part in ("train", "test"):
            batches = torch.utils.data.DataLoader(ImageFolder(str(root / part), transforms(train=False)), 64, num_workers=2)
            pairs = [(model(inputs), targets) for inputs, targets in batches]
            found[part] = [torch.cat(each).numpy() for each in zip(*pairs, strict=True)]
    return float(LogisticRegression(C=0.03, max_iter=1000).fit(*found["train"]).score(*found["test"]))


ARMS: dict[str, Callable[[Path, Path], float]] = {
    "heptane": with_heptane,
    "features": with_features,
    "fastai": with_fastai,
    "torchvision": with_torchvision,
}


def run_arm(arm: str, root: Path, out: Path, seed: int) -> None:
    """Train and write accuracy; called in a process of its own."""
    if arm != "heptane":
        from overhead import declare_torchvision

        declare_torchvision()
        random.seed(seed)
        torch.manual_seed(seed)
    (out / "accuracy.json").write_text(json.dumps(ARMS[arm](root, out)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=PICTURES, help="a folder of class folders")
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--name", default="pictures", help="of the result file")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        arm, root, out, seed = args.run
        return run_arm(arm, Path(root), Path(out), int(seed))
    found: dict[str, dict[str, list[float]]] = {arm: {"seconds": [], "accuracy": []} for arm in args.arms.split(",")}
    counts: dict[str, int] = {}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "pictures"
            counts = make_folder(args.source, root, args.per_class, seed)
            for arm, measured in found.items():
                out = Path(folder) / arm
                out.mkdir()
                began = time.perf_counter()
                command = [sys.executable, __file__, "--run", arm, str(root), str(out), str(seed)]
                subprocess.run(command, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
                measured["seconds"].append(time.perf_counter() - began)
                measured["accuracy"].append(json.loads((out / "accuracy.json").read_text()))
                print(f"seed {seed}, {arm}: {measured['accuracy'][-1]:.1%} in {measured['seconds'][-1]:.0f} s", flush=True)
    arms = {arm: {key: spread(values) for key, values in measured.items()} for arm, measured in found.items()}
    about = {"source": args.source.name, "samples": counts, "classes": "groups", "seeds": list(range(args.seeds))}
    save(args.name, "How fast and how good is training on real pictures from pretrained weights?", {**about, "arms": arms})
    return None


if __name__ == "__main__":
    main()
