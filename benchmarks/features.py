"""Speed-up by caching the features of frozen layers: ``make features``.

EfficientNet-lite0 with ImageNet weights and a trainable head, on 1,000 images of Fashion-MNIST at 64x64. The arms run
in turn: without a cache, and with a cache in memory, in memory with 16 bits, and on disk.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch

import heptane as hp
from efficientnet import balanced, efficientnet_lite0, prepared
from results import save, spread

EPOCHS, BATCH_SIZE, IMAGE_SIZE = 30, 50, 64
ARMS = {
    "in every step": hp.Transfer(freeze=-1, cache="off"),
    "in memory": hp.Transfer(freeze=-1, cache="memory"),
    "in memory, 16 bits": hp.Transfer(freeze=-1, cache="memory", cache_dtype="bf16"),
    "on the disk": hp.Transfer(freeze=-1, cache="disk"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    data = hp.load_data("fashion-mnist")
    train = prepared(data, balanced(*data.train), IMAGE_SIZE)
    adamw = partial(torch.optim.AdamW, lr=4e-3)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name, transfer in ARMS.items():
            torch.manual_seed(seed)
            result = hp.fit(
                efficientnet_lite0(10, pretrained=True),
                train,
                optimizer=adamw,
                epochs=EPOCHS,
                batch_size=BATCH_SIZE,
                seed=seed,
                tricks=hp.Tricks(transfer=transfer, cyclical=hp.Cyclical()),
                extras=hp.Extras(evaluate_every_epochs=EPOCHS),
            )
            seconds[name].append(result.seconds["train"])
            losses[name].append(result.history[-1]["train_loss"])
            print(f"seed {seed}, {name}: {seconds[name][-1]:.1f} s, loss {losses[name][-1]:.4f}", flush=True)
    plain = statistics.median(seconds["in every step"])
    save(
        "features",
        "seconds to train a head, with the frozen part in every step and computed once",
        {
            "model": "EfficientNet-lite0",
            "images": len(train[1]),
            "image_size": IMAGE_SIZE,
            "batch_size": BATCH_SIZE,
            "epochs": EPOCHS,
            "seeds": list(range(seeds)),
            "goal": 10,
            "arms": [
                {
                    "name": name,
                    "train_seconds": spread(seconds[name]),
                    "train_loss": spread(losses[name]),
                    "times_faster": plain / statistics.median(seconds[name]),
                }
                for name in ARMS
            ],
        },
    )


if __name__ == "__main__":
    main()
