"""Images: EfficientNet-lite0 from ImageNet to Fashion-MNIST, with 10, 100 and 1,000 labels per class, against scratch.

The clothes are enlarged to 64x64 and given three channels, as the network wants them. Four arms at each number of labels:
the network as it is drawn (scratch); ImageNet's weights, of which all but the head are frozen, or all but the last block
and what follows it, so that the rest is computed once (head, last block); and all of them trained, with a lower rate the
deeper a layer lies (all). All have 1cycle, label smoothing, AdamW and weights in channels_last. Scratch is given more
epochs than "all", up to two and a half times as many; how soon do the others reach the best accuracy that it comes to on
500 validation images? The accuracy is that on 1,000 test images, read once at the end.
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
    """A way to train, and for how many epochs with each number of labels per class."""

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
    """So many training images of each class."""
    return prepared(data(), balanced(*data().train, per_class), IMAGE_SIZE)


def first(part: Pair | None, count: int) -> Pair:
    """The first images of the validation or test part, which are in random order."""
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
        evaluate_every_epochs=epochs / EVALUATIONS,
        seed=seed,
    )


def measured(result: hp.Result, goal: float) -> dict[str, float]:
    """Test accuracy, and when the validation accuracy ``goal`` was reached, on the training clock; infinite if never."""
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
    """Per seed: scratch's seconds to its own best, over this arm's."""
    mine, scratch = (record.arms[f"{count} labels, {a.name}"]["seconds to scratch's best"] for a in (arm, SCRATCH))
    return [theirs / own for own, theirs in zip(mine, scratch, strict=True)]


if __name__ == "__main__":
    run(main)
