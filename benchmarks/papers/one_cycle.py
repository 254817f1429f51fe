"""Does 1cycle need fewer iterations than a tuned step schedule for the same accuracy?

Smith and Topin 2018, arXiv:1708.07120: ResNet-56 on CIFAR-10 reaches 92.4% in 10,000 iterations, compared with 91.2%
in 80,000.
"""

from __future__ import annotations

from experiment import SEEDS, Outcome, accuracy, best, data, trained

import heptane as hp
from heptane.core.schedule import Schedule

BATCH, LENGTHS, TUNING_SEED = 128, (1, 2, 4, 8, 16), 1000
STEPS, CYCLE = "steps", "1cycle"
RATES = {STEPS: (0.01, 0.03, 0.1), CYCLE: (0.1, 0.2, 0.4)}


def drops(total_steps: int, _: int) -> Schedule:
    """Divide the learning rate by ten after half of the run, and again for its last quarter."""
    return lambda step: 0.1 ** ((step >= total_steps // 2) + (step >= 3 * total_steps // 4))


def run(arm: str, lr: float, epochs: int, seed: int, part: int) -> float:
    tricks = hp.Tricks(cyclical=hp.Cyclical()) if arm == CYCLE else None
    schedule = drops if arm == STEPS else None
    model = trained(data()[0], lr=lr, batch=BATCH, epochs=epochs, seed=seed, tricks=tricks, schedule=schedule)
    return accuracy(model, data()[part])


def main() -> None:
    claim = "1cycle reaches an accuracy in fewer iterations than a tuned step schedule"
    found = Outcome("one-cycle", claim, "Smith and Topin 2018, arXiv:1708.07120", "test accuracy")
    rates: dict[str, dict[int, float]] = {STEPS: {}, CYCLE: {}}
    for epochs in LENGTHS:
        iterations = epochs * -(-len(data()[0][0]) // BATCH)
        for arm in (STEPS, CYCLE):
            # the same effort on both: three rates, at each length, on the validation split
            rates[arm][epochs] = best(RATES[arm], lambda lr, arm=arm, epochs=epochs: run(arm, lr, epochs, TUNING_SEED, 1))
            found.add(iterations, arm, [run(arm, rates[arm][epochs], epochs, seed, 2) for seed in SEEDS])
        found.compare(iterations, CYCLE, STEPS)
    found.write("iterations", rates=rates)


if __name__ == "__main__":
    main()
