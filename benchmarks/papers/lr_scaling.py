"""Does the linear rule with gradual warm-up work for batches 16 and 32 times as large, and where does it fail?

Goyal et al. 2017, arXiv:1706.02677, table 1: top-1 error 23.60 at batch size 256; at 8192 it is 24.84 without
warm-up, 25.88 with constant and 23.74 with gradual warm-up. Their networks have BatchNorm; here one network has it
and one does not.
"""

from __future__ import annotations

import sys

from experiment import SEEDS, Outcome, accuracy, best, data, trained

from heptane import warmup
from heptane.core.schedule import Schedule, scale_schedules

BATCH, EPOCHS, WARM_EPOCHS, TUNING_SEED = 64, 12, 3, 1000
FACTORS = (16, 32, 64, 128)
ARMS = ("rate not scaled", "no warm-up", "constant warm-up", "gradual warm-up")


def drops(total_steps: int) -> Schedule:
    """Divide the learning rate by ten after two thirds of the run, and again for its last ninth."""
    return lambda step: 0.1 ** ((step >= 2 * total_steps // 3) + (step >= 8 * total_steps // 9))


def test_accuracy(arm: str, lr: float, factor: int, seed: int, batch_norm: bool) -> float:
    def schedule(total_steps: int, steps_per_epoch: int) -> Schedule:
        warm = WARM_EPOCHS * steps_per_epoch
        ramps: dict[str, Schedule] = {
            "constant warm-up": lambda step: 1 / factor if step < warm else 1.0,
            "gradual warm-up": warmup(warm, 1 / factor),
        }
        return scale_schedules(ramps.get(arm, lambda step: 1.0), drops(total_steps))

    train, _, test = data()
    scaled = lr if arm == ARMS[0] else lr * factor
    settings = {"batch": BATCH * factor, "epochs": EPOCHS, "seed": seed, "batch_norm": batch_norm}
    model = trained(train, lr=scaled, schedule=schedule, **settings)
    return accuracy(model, test)


def experiment(batch_norm: bool) -> None:
    """Tune the learning rate of one network at the small batch size, then run all arms at all factors."""
    train, valid, _ = data()

    def at(lr: float) -> float:
        settings = {"batch": BATCH, "epochs": EPOCHS, "seed": TUNING_SEED, "batch_norm": batch_norm}
        return accuracy(trained(train, lr=lr, schedule=lambda total, _: drops(total), **settings), valid)

    lr = best((0.003, 0.01, 0.03), at)
    claim = "With the rate scaled linearly and gradual warm-up, a batch 16 or 32 times as large costs no accuracy"
    claim += " (a network with BatchNorm)" if batch_norm else " (a network without BatchNorm)"
    name = "lr-scaling-norm" if batch_norm else "lr-scaling"
    found = Outcome(name, claim, "Goyal et al. 2017, arXiv:1706.02677", "test accuracy")
    reference = [test_accuracy("no warm-up", lr, 1, seed, batch_norm) for seed in SEEDS]
    for factor in FACTORS:
        batch = BATCH * factor
        found.add(batch, f"batch {BATCH}", reference)
        for arm in ARMS:
            found.add(batch, arm, [test_accuracy(arm, lr, factor, seed, batch_norm) for seed in SEEDS])
        found.compare(batch, "gradual warm-up", "rate not scaled")
        found.compare(batch, "gradual warm-up", "no warm-up")
        found.compare(batch, "gradual warm-up", "constant warm-up")
        found.compare(batch, "gradual warm-up", f"batch {BATCH}")
    found.write("batch", rate=lr, epochs=EPOCHS, warmup_epochs=WARM_EPOCHS)


def main() -> None:
    for kind in sys.argv[1:] or ("with", "without"):
        experiment(kind == "with")


if __name__ == "__main__":
    main()
