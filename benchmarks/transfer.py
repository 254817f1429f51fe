"""Effect of pretrained weights on little data: EfficientNet-lite0 on 1,000 images of Fashion-MNIST.

``python benchmarks/transfer.py`` writes ``results/transfer.json``. ``--tune`` tries settings on the validation split
and writes ``results/transfer_tuning.json``. ``--try`` runs one epoch of each arm and writes nothing. The test set is
read once per run, at its end. All arms use the same other tricks.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import heptane as hp
from efficientnet import balanced, efficientnet_lite0, prepared, weight_file
from results import save, spread

IMAGES_PER_CLASS, SUBSET_SEED = 100, 0
IMAGE_SIZE, BATCH_SIZE, EPOCHS = 64, 50, 10
TUNING_SEED = 100  # not among those measured
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
RATE_FACTOR = 1.1  # 19 groups: the first has 0.18 of the head's rate


@dataclass(frozen=True)
class Arm:
    """A way to train: source of the weights, epochs, learning rate."""

    name: str
    pretrained: bool
    epochs: int = EPOCHS
    rate: float = 4e-3  # the best of four for both ways of starting: results/transfer_tuning.json


ARMS = (
    Arm("ImageNet weights", True),
    Arm("from scratch, same epochs", False),
    Arm("from scratch, 3 times the epochs", False, 3 * EPOCHS),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=3)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--tune", action="store_true", help="choose rates on the validation split")
    mode.add_argument("--try", dest="attempt", action="store_true", help="one epoch, one seed, nothing written")
    flags = parser.parse_args()
    data = hp.load_data("fashion-mnist")
    train = prepared(data, balanced(*data.train))
    if flags.tune:
        tune(train, prepared(data, data.valid))
    else:
        measure(train, prepared(data, data.test), flags.seeds, attempt=flags.attempt)


def measure(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_seeds: int, *, attempt: bool) -> None:
    """Measure all arms on all seeds."""
    arms = [replace(arm, epochs=1) for arm in ARMS] if attempt else ARMS
    runs: dict[str, list[hp.Result]] = {arm.name: [] for arm in arms}
    for seed in range(1 if attempt else num_seeds):
        for arm in arms:  # interleaved, so that a slow minute of the machine falls on all of them
            runs[arm.name].append(run(arm, train, seed, test=test))
    if not attempt:
        save(
            "transfer",
            question(),
            {**settings(), "seeds": list(range(num_seeds)), "arms": [*map(summary, arms, runs.values())]},
        )


def run(arm: Arm, train: tuple[Tensor, Tensor], seed: int, **measured: Any) -> hp.Result:
    """Train one arm once with ``hp.fit``."""
    torch.manual_seed(seed)
    tricks = hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=hp.LabelSmoothing(), mixed_precision=hp.MixedPrecision())
    if arm.pretrained:
        tricks = replace(tricks, transfer=hp.Transfer(weights=weight_file(), rate_factor=RATE_FACTOR, min_match=1.0))
    result = hp.fit(
        efficientnet_lite0(1000 if arm.pretrained else 10, pretrained=False),
        train,
        optimizer=functools.partial(torch.optim.AdamW, lr=arm.rate),
        epochs=arm.epochs,
        batch_size=BATCH_SIZE,
        tricks=tricks,
        seed=seed,
        **measured,
    )
    accuracy = {key: value for key, value in result.metrics.items() if key.endswith("accuracy")}
    print(f"{arm.name}, rate {arm.rate:g}, seed {seed}: {accuracy}, {result.seconds['train']:.1f} s", flush=True)
    return result


def tune(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> None:
    """Try the same number of settings for both starting points; the test set is not used."""
    tried = []
    for rate in RATES:
        for arm in ARMS[:2]:
            result = run(
                replace(arm, rate=rate), train, TUNING_SEED, valid=valid, extras=hp.Extras(evaluate_every_epochs=EPOCHS)
            )
            tried.append({"arm": arm.name, "rate": rate, "valid_accuracy": result.metrics["valid_accuracy"]})
    save("transfer_tuning", "which learning rate for each arm, on the validation split", {**settings(), "tried": tried})


def settings() -> dict[str, Any]:
    """Settings that all arms share."""
    return {
        "data": f"Fashion-MNIST, {10 * IMAGES_PER_CLASS} training images, {IMAGES_PER_CLASS} of each class",
        "subset_seed": SUBSET_SEED,
        "image_size": IMAGE_SIZE,
        "batch_size": BATCH_SIZE,
        "rate_factor": RATE_FACTOR,
        "optimizer": "AdamW",
    }


def summary(arm: Arm, results: list[hp.Result]) -> dict[str, Any]:
    """Results of one arm over its seeds."""
    return {
        "name": arm.name,
        "epochs": arm.epochs,
        "rate": arm.rate,
        "tricks": results[0].tricks.on,
        "precision": [result.why["mixed_precision"] for result in results],
        "test_accuracy": spread([result.metrics["test_accuracy"] for result in results]),
        "train_seconds": spread([result.seconds["train"] for result in results]),
    }


def question() -> str:
    return "what are ImageNet weights worth to EfficientNet-lite0 on 1,000 images of Fashion-MNIST?"


if __name__ == "__main__":
    main()
