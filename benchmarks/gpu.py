"""GPU results: step time compared with hand-written loops, and accuracy and time of whole runs.

``python benchmarks/gpu.py OUT``. In the first part all arms stay in memory and run in random order, sixty steps at a
time; the GPU is synchronized before and after each measurement. In the second part whole runs are trained in turn,
seed by seed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp
from heptane.pretrained.models import resnet, resnet_wide
from results import save, spread

BATCH, STEPS, ROUNDS, WARM_UP = 256, 60, 5, 30
EPOCHS, SEEDS = 4, 3
Arm = Iterator[None]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def tutorial(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor]) -> Arm:
    """A tutorial's loop: a DataLoader and fp32."""
    model = make().cuda()
    optimizer, loss_function = sgd(model.parameters()), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*data), batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss_function(model(x.cuda()), y.cuda()).backward()
            optimizer.step()
            yield


def careful(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], mode: str | None = None) -> Arm:
    """An expert's loop: data on the GPU, bf16, channels last; ``mode`` is the compile mode."""
    model = make().cuda().to(memory_format=torch.channels_last)
    forward = model if mode is None else torch.compile(model, mode=mode)
    optimizer, (images, labels) = sgd(model.parameters()), (part.cuda() for part in data)
    while True:
        for rows in torch.randperm(len(images), device="cuda").split(BATCH):
            if len(rows) < BATCH:
                continue
            optimizer.zero_grad()
            x = images[rows].contiguous(memory_format=torch.channels_last)
            with torch.autocast("cuda", torch.bfloat16):
                output = forward(x)
            nn.functional.cross_entropy(output.float(), labels[rows]).backward()
            optimizer.step()
            yield


def heptane(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], dtype: str, compile: bool | str = False) -> Arm:
    """heptane's loop."""
    precision = hp.MixedPrecision(dtype=dtype, channels_last="off" if dtype == "fp32" else "on")
    whole = tuple(part[: len(part) // BATCH * BATCH] for part in data)
    tricks, extras = hp.Tricks(mixed_precision=precision), hp.Extras(compile=compile)
    for _ in hp.train(make(), whole, optimizer=sgd, epochs=1000, batch_size=BATCH, tricks=tricks, extras=extras):
        yield


def arms(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor]) -> dict[str, Arm]:
    return {
        "tutorial, fp32": tutorial(make, data),
        "careful, bf16": careful(make, data),
        "careful, bf16, graphs": careful(make, data, "reduce-overhead"),
        "heptane, fp32": heptane(make, data, "fp32"),
        "heptane, bf16": heptane(make, data, "bf16"),
        "heptane, fp16": heptane(make, data, "fp16"),
        "heptane, bf16, graphs": heptane(make, data, "bf16", "reduce-overhead"),
    }


def milliseconds_per_step(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Step times of all arms, one value per round."""
    runs = arms(make, data)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for arm in runs.values():
        for _ in range(WARM_UP):
            next(arm)
    for number in range(ROUNDS):
        for name in random.Random(number).sample(sorted(runs), len(runs)):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                next(runs[name])
            torch.cuda.synchronize()
            found[name].append(1000 * (time.perf_counter() - start) / STEPS)
    for name, values in found.items():
        print(f"{make.__name__:12} {name:26} {spread(values)['median']:.3f} ms", flush=True)
    return {name: spread(values) for name, values in found.items()}


def trainings(data: Any) -> dict[str, Any]:
    """Accuracy and seconds of whole runs: plain, and with the applicable tricks in each precision."""
    cycle = {"cyclical": hp.Cyclical(), "label_smoothing": hp.LabelSmoothing()}
    chosen: dict[str, tuple[hp.Tricks, bool | str]] = {"plain, fp32": (hp.Tricks(), False)}
    for dtype in ("bf16", "fp16"):
        chosen[f"tricks, {dtype}"] = hp.Tricks(**cycle, mixed_precision=hp.MixedPrecision(dtype=dtype)), False
    chosen["tricks, bf16, graphs"] = hp.Tricks(**cycle, mixed_precision=hp.MixedPrecision(dtype="bf16")), "reduce-overhead"
    found: dict[str, list[hp.Result]] = {name: [] for name in chosen}
    for seed in range(SEEDS):
        for name, (tricks, mode) in chosen.items():
            torch.manual_seed(seed)
            settings: dict[str, Any] = {"optimizer": sgd if name == "plain, fp32" else fast, "epochs": EPOCHS, "seed": seed}
            extras = hp.Extras(augment=hp.CropFlip(padding=0), compile=mode)
            settings |= {"batch_size": BATCH, "tricks": tricks, "extras": extras}
            result = hp.fit(resnet_wide(), data.train, data.valid, test=data.test, **settings)
            found[name].append(result)
            accuracy, seconds = result.metrics["test_accuracy"], result.seconds["train"]
            print(f"{name:22} seed {seed} {accuracy:.4f} in {seconds:.1f} s", flush=True)
    return {
        name: {
            "test_accuracy": spread([r.metrics["test_accuracy"] for r in results]),
            "train_seconds": spread([r.seconds["train"] for r in results]),
            "wall_seconds": spread([r.seconds["wall"] for r in results]),
            "steps_skipped": [r.steps["skipped"] for r in results],
        }
        for name, results in found.items()
    }


def fast(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.4, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    flags = parser.parse_args()
    data = hp.load_data("fashion-mnist")
    content: dict[str, Any] = {"batch_size": BATCH, "steps_a_round": STEPS, "epochs": EPOCHS, "seeds": list(range(SEEDS))}
    content["milliseconds_per_step"] = {f.__name__: milliseconds_per_step(f, data.train) for f in (resnet, resnet_wide)}
    save("gpu", "a step's time and a training's accuracy on one GPU", content, flags.out)
    content["trainings of resnet_wide"] = trainings(data)
    save("gpu", "a step's time and a training's accuracy on one GPU", content, flags.out)


if __name__ == "__main__":
    main()
