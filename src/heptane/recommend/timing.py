"""Estimate how long things take on a machine from their operations; nothing is measured."""

from __future__ import annotations

from math import ceil, sqrt

from heptane.recommend.facts import Choices, DataFacts, Machine

# per pixel of a forward pass, in equivalent plain convolutions
PIXEL_FLOPS = {"resnet": 42e3, "resnet-wide": 165e3, "efficientnet-lite0": 64e3}
TRAIN_COST = 3.0  # cost of a training step, in forward passes
STEP_SECONDS = 2e-3  # overhead of a step
LAST_BLOCK_COST = 0.14  # cost of training last block and head on cached features, in forward passes of the network
START_SECONDS, READ_SECONDS = 6.0, 0.008  # for imports and the report; for reading an image


def forward_seconds(model: str, size: int, machine: Machine) -> float | None:
    """Approximate time of the forward pass of one image; None for an unknown model."""
    flops = PIXEL_FLOPS.get(model)
    return None if flops is None else flops * size * size / (machine.gflops * 1e9)


def time_limit_seconds(num_train: int, machine: Machine) -> float:
    """How long training may take: the budget, or else half a minute for hundreds of samples and minutes for thousands.

    Example:
        >>> [round(time_limit_seconds(n, Machine())) for n in (40, 300, 3000, 50000)]
        [20, 38, 98, 360]
    """
    if machine.seconds is not None:
        return machine.seconds
    return min(360.0, 10 + 1.6 * sqrt(num_train) * max(1.0, num_train / 9000))


def epoch_seconds(facts: DataFacts, machine: Machine, model: str, steps_per_epoch: int) -> float:
    """Approximate time of one epoch of training from scratch."""
    side = min(facts.shape[1:]) if facts.kind == "images" and len(facts.shape) == 3 else 0
    each = forward_seconds(model, side, machine) or 0.0
    return facts.num_train * TRAIN_COST * each + steps_per_epoch * STEP_SECONDS


def expected_seconds(facts: DataFacts, machine: Machine, made: Choices) -> float | None:
    """Approximate time of the whole run, from start to report; None for an unknown model."""
    model, start = str(made["model"]), made["start"]
    if facts.kind == "images" and model not in PIXEL_FLOPS:
        return None
    batch = min(int(made["batch_size"]), facts.num_train)
    steps_per_epoch = ceil(facts.num_train / batch)
    total = facts.survey.total if facts.survey else facts.num_train
    seconds = START_SECONDS + (total * READ_SECONDS if facts.survey else 0.0)
    if facts.kind == "text" and (start is not None or model != "text"):
        return None
    if start is not None and made.given.get("computed_once", True):
        side = min(facts.shape[1:])
        once = total * (forward_seconds(model, side, machine) or 0.0)
        tail = LAST_BLOCK_COST * once / total * facts.num_train if made["frozen_groups"] else 0.0
        return seconds + once + float(made["epochs"]) * (tail + steps_per_epoch * STEP_SECONDS)
    each = epoch_seconds(facts, machine, model, steps_per_epoch)
    evaluation = float(made["epochs"]) / float(made["evaluate_every_epochs"]) * each * 0.04
    return seconds + float(made["epochs"]) * each + evaluation
