"""How long things take on a machine, roughly, by what they compute: nothing is measured here."""

from __future__ import annotations

from math import ceil, sqrt

from heptane.recommend.facts import Choices, DataFacts, Machine

PIXEL_FLOPS = {"resnet": 42e3, "resnet-wide": 165e3, "efficientnet-lite0": 64e3}  # of a forward pass, in plain convolutions'
TRAIN_COST = 3.0  # of a step, in forward passes
STEP_SECONDS = 2e-3  # that a step takes beside its arithmetic
LAST_BLOCK_COST = 0.14  # of a step of the last block and the head on features, in forward passes of the network
START_SECONDS, READ_SECONDS = 6.0, 0.008  # of imports and the report; of reading an image


def forward_seconds(model: str, size: int, machine: Machine) -> float | None:
    """Of one image in a forward pass, roughly; None for a model that is not known here."""
    flops = PIXEL_FLOPS.get(model)
    return None if flops is None else flops * size * size / (machine.gflops * 1e9)


def time_limit_seconds(num_train: int, machine: Machine) -> float:
    """How long training may take: what a budget leaves, else half a minute for some hundred samples, minutes for thousands.

    Example:
        >>> [round(patience_seconds(n, Machine())) for n in (40, 300, 3000, 50000)]
        [21, 37, 97, 360]
    """
    return (
        machine.seconds
        if machine.seconds is not None
        else min(360.0, 10 + 1.6 * sqrt(num_train) * max(1.0, num_train / 9000))
    )


def epoch_seconds(look: DataFacts, machine: Machine, model: str, steps_per_epoch: int) -> float:
    """Of training one epoch from scratch, roughly."""
    side = min(look.shape[1:]) if look.kind == "images" and len(look.shape) == 3 else 0
    each = forward_seconds(model, side, machine) or 0.0
    return look.num_train * TRAIN_COST * each + steps_per_epoch * STEP_SECONDS


def expected_seconds(look: DataFacts, machine: Machine, made: Choices) -> float | None:
    """Of the whole run, from start to report, roughly; None for a model that is not known here."""
    model, start = str(made["model"]), made["start"]
    if look.kind == "images" and model not in PIXEL_FLOPS:
        return None
    batch = min(int(made["batch_size"]), look.num_train)
    steps_per_epoch = ceil(look.num_train / batch)
    total = sum(look.survey.counts) if look.survey else look.num_train
    seconds = START_SECONDS + (total * READ_SECONDS if look.survey else 0.0)
    if start is not None and made.given.get("computed_once", True):
        side = min(look.shape[1:])
        once = total * (forward_seconds(model, side, machine) or 0.0)
        tail = LAST_BLOCK_COST * once / total * look.num_train if made["frozen_groups"] else 0.0
        return seconds + once + float(made["epochs"]) * (tail + steps_per_epoch * STEP_SECONDS)
    each = epoch_seconds(look, machine, model, steps_per_epoch)
    evaluation = float(made["epochs"]) / float(made["evaluate_every_epochs"]) * each * 0.04
    return seconds + float(made["epochs"]) * each + evaluation
