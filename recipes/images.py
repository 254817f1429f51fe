"""Images: EfficientNet-lite0 from ImageNet to Fashion-MNIST, with 10, 100 and 1,000 labels per class.

How much do pretrained weights help, by the number of labels? There are four arms. "scratch" starts from random
weights. "head" starts from ImageNet weights and trains only the head. "last block" also trains the last block and the
layers after it. Both cache the features of the frozen layers. "all" trains every layer, with lower learning rates for
layers nearer the input.

The images are enlarged to 64x64 with three channels. All arms use 1cycle, label smoothing, AdamW and channels last.
"scratch" has up to two and a half times as many epochs as "all". The result is the time to the best accuracy of
"scratch" on 500 validation images, and the accuracy on 1,000 test images, which are read once at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import heptane as hp
from record import Record, flags, run

# isort: split
from efficientnet import balanced, efficientnet_lite0, prepared  # of benchmarks/, which record puts on the path

IMAGE_SIZE, BATCH_SIZE, LR, RATE_FACTOR = 64, 50, 4e-3, 1.1
VALID_IMAGES, TEST_IMAGES, EVALUATIONS = 500, 1000, 6
LABELS = {10: None, 100: None, 1000: 1}  # per class, and how many seeds at most
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Arm:
    """A way to train, and its epochs for each number of labels per class."""

    name: str
    epochs: tuple[float, float, float]
    transfer: hp.Transfer | None


SCRATCH = Arm("scratch", (30, 10, 1), None)
ARMS = (
    SCRATCH,
    Arm("head", (60, 30, 2), hp.Transfer(freeze=-1, rate_factor=1.0)),
    Arm("last block", (60, 10, 2), hp.Transfer(freeze=16, rate_factor=1.0)),  # of 19 groups
    Arm("all", (20, 4, 0.5), hp.Transfer(rate_factor=RATE_FACTOR)),
)


@functools.cache
def data() -> hp.Data:
    """Fashion-MNIST."""
    return hp.load_data("fashion-mnist")


def images(per_class: int) -> Pair:
    """A number of training images of each class."""
    return prepared(data(), balanced(*data().train, per_class), IMAGE_SIZE)


def first(part: Pair | None, count: int) -> Pair:
    """The first images of the validation or test part, whose order is random."""
    assert part is not None
    return prepared(data(), (part[0][:count], part[1][:count]), IMAGE_SIZE)


def train_arm(arm: Arm, epochs: float, train: Pair, valid: Pair, test: Pair, seed: int) -> hp.Result:
    """Train one network."""
    torch.manual_seed(seed)
    return hp.fit(
        efficientnet_lite0(10, pretrained=arm.transfer is not None),
        train,
        valid,
        test=test,
        optimizer=functools.partial(torch.optim.AdamW, lr=LR),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        tricks=hp.Tricks(
            cyclical=hp.Cyclical(),
            label_smoothing=hp.LabelSmoothing(),
            transfer=arm.transfer,
            mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"),
        ),
        seed=seed,
        extras=hp.Extras(evaluate_every_epochs=epochs / EVALUATIONS),
    )


def measured(result: hp.Result, goal: float) -> dict[str, float]:
    """Test accuracy, and training seconds until the validation accuracy ``goal``; infinite if never reached."""
    reached = (record["train_seconds"] for record in result.history if record["valid_accuracy"] >= goal)
    return {
        "test accuracy": result.metrics["test_accuracy"],
        "seconds to scratch's best": next(reached, float("inf")),
        "training seconds": result.seconds["train"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    chosen = flags(__doc__, 2, argv)
    record = Record(
        "images",
        "what are ImageNet's weights worth on Fashion-MNIST with few labels, in accuracy and in time?",
        {"test accuracy": True, "seconds to scratch's best": False, "training seconds": False},
    )
    valid, test = first(data().valid, VALID_IMAGES), first(data().test, TEST_IMAGES)
    faster: dict[str, Any] = {}
    for at, (count, most) in enumerate(list(LABELS.items())[: 1 if chosen.quick else None]):
        train = images(count)
        for seed in range(min(chosen.seeds, most or chosen.seeds)):
            goal = 0.0
            for arm in ARMS:
                result = train_arm(arm, 2 if chosen.quick else arm.epochs[at], train, valid, test, seed)
                if arm is SCRATCH:
                    goal = max(entry["valid_accuracy"] for entry in result.history)
                record.add(f"{count} labels, {arm.name}", measured(result, goal))
        for arm in ARMS[1:]:
            record.compare(f"{count} labels, {arm.name}", f"{count} labels, {SCRATCH.name}")
            faster[f"{count} labels, {arm.name}"] = times_faster(record, count, arm)
        record.finish(  # what there is so far
            chosen.out,
            data="Fashion-MNIST",
            image_size=IMAGE_SIZE,
            batch_size=BATCH_SIZE,
            rate=LR,
            epochs={arm.name: arm.epochs for arm in ARMS},
            times_faster_to_scratch_best=faster,
        )


def times_faster(record: Record, count: int, arm: Arm) -> list[float]:
    """Speed-up per seed to the best accuracy of scratch."""
    mine, scratch = (record.arms[f"{count} labels, {a.name}"]["seconds to scratch's best"] for a in (arm, SCRATCH))
    return [theirs / own for own, theirs in zip(mine, scratch, strict=True)]


if __name__ == "__main__":
    run(main)
