"""Search for a small network and settings for 4 epochs of Fashion-MNIST: ``python benchmarks/tune.py NAME SEED``.

Each call trains one candidate on one thread, so two can run side by side, and appends a line to
``results/tuning-small.jsonl``. Candidates are compared on 10,000 of the 60,000 training images; the test set is not
read. ``python benchmarks/tune.py`` lists the candidates and their results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import heptane as hp
from heptane.pretrained.models import Residual, convolve

OUT = Path(__file__).parent / "results" / "tuning-small.jsonl"


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Largest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax((2, 3))


class Strided(nn.Module):
    """The block of the first design: relu(x + f(x)), halved by a stride; its last BatchNorm starts at zero."""

    def __init__(self, num_in: int, num_out: int, stride: int, zero: bool = True) -> None:
        super().__init__()
        conv1, conv2 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.inner = nn.Sequential(conv1, nn.BatchNorm2d(num_out), nn.ReLU(), conv2, nn.BatchNorm2d(num_out))
        around = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))
        self.around = around if stride > 1 or num_in != num_out else nn.Identity()
        if zero:
            nn.init.zeros_(self.inner[-1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.inner(x) + self.around(x)).relu()


def strided(zero: bool = True) -> nn.Module:
    blocks = [Strided(16, 32, 2, zero), Strided(32, 32, 1, zero), Strided(32, 72, 2, zero)]
    return nn.Sequential(convolve(1, 16), *blocks, Mean(), nn.Linear(72, 10))


def pooled(stem: int = 16, first: int = 32, second: int = 56, last: int = 0, pool: type[nn.Module] = Mean) -> nn.Module:
    halves = [convolve(stem, first, halve=True), Residual(first), convolve(first, second, halve=True), Residual(second)]
    tail = [convolve(second, last)] if last else []
    return nn.Sequential(convolve(1, stem), *halves, *tail, pool(), nn.Linear(last or second, 10))


CANDIDATES: dict[str, dict[str, Any]] = {
    "strided": {"model": strided},
    "strided, no zero": {"model": lambda: strided(zero=False)},
    "pooled 48, largest": {"model": lambda: pooled(second=48, pool=Largest)},
    "pooled 48": {"model": lambda: pooled(second=48)},
    "pooled": {"model": pooled},
    "pooled, flips": {"model": pooled, "augment": hp.CropFlip(padding=0)},
    "pooled, smoothing 0.05": {"model": pooled, "eps": 0.05},
    "pooled, batch 256, peak 0.8": {"model": pooled, "batch_size": 256, "peak": 0.8},
    "pooled, batch 64, peak 0.2": {"model": pooled, "batch_size": 64, "peak": 0.2},
    "pooled, batch 64, peak 0.1": {"model": pooled, "batch_size": 64, "peak": 0.1},
    "pooled, decay 1e-3": {"model": pooled, "decay": 1e-3},
    "pooled, peak 0.3": {"model": pooled, "peak": 0.3},
    "pooled, peak 0.2": {"model": pooled, "peak": 0.2},
    "pooled, peak 0.2, decay 1e-3": {"model": pooled, "peak": 0.2, "decay": 1e-3},
    "pooled, peak 0.2, smoothing 0.05": {"model": pooled, "peak": 0.2, "eps": 0.05},
    "pooled, peak 0.2, linear": {"model": pooled, "peak": 0.2, "anneal": "linear"},
    "pooled, peak 0.2, rising for a fifth": {"model": pooled, "peak": 0.2, "warm": 0.2},
    "pooled 64, peak 0.2": {"model": lambda: pooled(second=64), "peak": 0.2},
    "pooled 48 and 64, peak 0.2": {"model": lambda: pooled(second=48, last=64), "peak": 0.2},
    "pooled, stem 24, peak 0.2": {"model": lambda: pooled(stem=24), "peak": 0.2},
}


def run(name: str, seed: int) -> dict[str, Any]:
    wanted = {"batch_size": 128, "peak": 0.4, "decay": 5e-4, "eps": 0.1, "anneal": "cosine", "warm": 0.3} | CANDIDATES[name]
    data = hp.load_data("fashion-mnist")
    images, labels = (torch.cat([train, valid]) for train, valid in zip(data.train, data.valid, strict=True))
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(7))
    train, valid = ((images[part], labels[part]) for part in (order[10_000:], order[:10_000]))
    torch.manual_seed(seed)
    model = wanted["model"]()
    result = hp.fit(
        model,
        train,
        valid,
        optimizer=lambda params: torch.optim.SGD(
            params, lr=wanted["peak"], momentum=0.9, nesterov=True, weight_decay=wanted["decay"]
        ),
        epochs=4,
        batch_size=wanted["batch_size"],
        tricks=hp.Tricks(
            cyclical=hp.Cyclical(warm_fraction=wanted["warm"], anneal=wanted["anneal"]),
            label_smoothing=hp.LabelSmoothing(eps=wanted["eps"]),
            mixed_precision=hp.MixedPrecision(),
        ),
        augment=wanted.get("augment"),
        seed=seed,
    )
    return {
        "name": name,
        "seed": seed,
        "valid_accuracy": result.metrics["valid_accuracy"],
        "train_accuracy": result.history[-1]["train_accuracy"],
        "train_seconds": round(result.seconds["train"], 1),
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    if len(sys.argv) == 3:
        torch.set_num_threads(1)
        line = json.dumps(run(sys.argv[1], int(sys.argv[2])))
        with OUT.open("a") as file:
            file.write(line + "\n")
        print(line)
        return
    made = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    for name in CANDIDATES:
        values = [f"{100 * found['valid_accuracy']:.2f}" for found in made if found["name"] == name]
        print(f"{name:40} {', '.join(values)}")


if __name__ == "__main__":
    main()
