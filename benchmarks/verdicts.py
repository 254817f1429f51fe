"""Error rates and power of a race's verdicts, by simulation: ``python benchmarks/verdicts.py``.

The runs are invented (``simulated_races.py``). Their outcome, early stopping and verdicts come from the race's own
code. Takes about three minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from heptane.race.verdicts import HELPS, HURTS
from results import save
from simulated_races import NAMES, Truth, any_false, looked_at, raced

HALF_EPOCH = 100 / 6  # seconds between evaluations, every half epoch of the three that plain takes
POWER = [  # left of the time, seeds, misses, least percentage of races that must find it
    (0.7, 2, 0.0, 90),
    (1.2, 3, 0.0, 88),
    (0.9, 5, 0.0, 80),
    (0.7, 5, 0.1, 80),
    (0.7, 10, 0.1, 85),
]
LOOKS = [  # looking after every seed from 2 to 10, and the most percent that may err
    (Truth(), 5.0),
    (Truth(noise=0.15), 5.0),
    (Truth(misses=0.1), 5.0),
    (Truth(misses=0.3), 5.0),
    (Truth(grid=HALF_EPOCH), 5.0),
    (Truth(noise=0.02), 5.0),
    *((Truth(noisy={arm: 0.15}), 6.5) for arm in ("plain", "all", "plain+first")),
]


def allowed(percent: float, races: int) -> float:
    """``percent`` plus three standard errors of a share of that many races."""
    share = percent / 100
    return percent + 300 * math.sqrt(share * (1 - share) / races)


def false_cells() -> Iterator[tuple[Truth, int]]:
    """Three tricks without effect: all combinations of noise, misses, grid and seeds."""
    for noise in (0.05, 0.15):
        for misses in (0.0, 0.1, 0.3):
            for grid in (0.0, HALF_EPOCH):
                for seeds in (2, 3, 5, 10):
                    yield Truth(noise=noise, misses=misses, grid=grid), seeds


def percent_false(truth: Truth, seeds: int, races: int, *, fixed: bool = True) -> float:
    """Percentage of races with a verdict on a trick without effect."""
    rng = np.random.default_rng(seeds)
    return 100 * sum(any_false(raced(rng, truth, seeds, fixed=fixed)[1]) for _ in range(races)) / races


def percent_found(left: float, seeds: int, misses: float, races: int) -> float:
    """Percentage of races that detect the first trick; the other two have no effect."""
    rng = np.random.default_rng(seeds)
    truth = Truth(left=dict.fromkeys(NAMES, 1.0) | {"first": left}, misses=misses)
    wanted = HELPS if left < 1 else HURTS
    return 100 * sum(raced(rng, truth, seeds)[1]["first"].verdict == wanted for _ in range(races)) / races


def percent_of_looks(truth: Truth, races: int) -> tuple[float, float]:
    """Percentage of races with a false verdict at any look, and percentage of runs saved."""
    rng = np.random.default_rng(7)
    found = [looked_at(rng, truth, range(2, 11)) for _ in range(races)]
    runs = sum(num_runs for _, num_runs in found) / races / (10 * (2 + 2 * len(NAMES)))
    return 100 * sum(spoke for spoke, _ in found) / races, 100 * (1 - runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1, help="processes; the figures do not depend on it")
    flags = parser.parse_args()
    races, cells = flags.races, list(false_cells())
    with ProcessPoolExecutor(flags.jobs) as pool:
        of_looks = [pool.submit(percent_of_looks, truth, races) for truth, _ in LOOKS]
        of_cells = [pool.submit(percent_false, truth, seeds, races) for truth, seeds in cells]
        of_power = [pool.submit(percent_found, *case[:3], races) for case in POWER]
    false: list[dict[str, Any]] = [
        {**asdict(truth), "seeds": seeds, "percent": made.result(), "allowed": allowed(5.0, races)}
        for (truth, seeds), made in zip(cells, of_cells, strict=True)
    ]
    looks = []
    for (truth, most), made in zip(LOOKS, of_looks, strict=True):
        percent, saved = made.result()
        looks.append({**asdict(truth), "percent": percent, "allowed": allowed(most, races), "percent_of_runs_saved": saved})
    power = [
        {**dict(zip(("left", "seeds", "misses", "least"), case, strict=True)), "percent": made.result()}
        for case, made in zip(POWER, of_power, strict=True)
    ]
    met = all(cell["percent"] <= cell["allowed"] for cell in [*false, *looks])
    met = met and all(cell["percent"] >= cell["least"] - (allowed(cell["least"], races) - cell["least"]) for cell in power)
    save(
        "verdicts",
        "how often a race names a trick that does nothing, and finds one that does something",
        {
            "races_per_cell": races,
            "three_tricks_that_do_nothing_fixed_seeds": false,
            "looks_at_2_to_10_seeds": looks,
            "found": power,
            "goal": {"met": met},
        },
    )


if __name__ == "__main__":
    main()
