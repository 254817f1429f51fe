"""How often verdicts err, and what they find, on races whose truth is known (``benchmarks/verdicts.py`` has every cell).

Only the runs are made up. The figures are limits: at most so often wrong, at least so often right, three standard errors
allowed for.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from heptane.race.findings import findings
from heptane.race.target import when_reached
from heptane.session.history import Goal

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from simulated_races import Truth  # noqa: E402
from verdicts import (  # noqa: E402
    HALF_EPOCH,
    LOOKS,
    POWER,
    allowed,
    false_cells,
    percent_false,
    percent_found,
    percent_of_looks,
)

FEW = 100  # races a cell in the quick tests


@pytest.mark.parametrize(
    ("truth", "seeds"),
    [
        (Truth(), 2),
        (Truth(noise=0.15), 3),
        (Truth(misses=0.1), 2),
        (Truth(misses=0.3), 5),
        (Truth(grid=HALF_EPOCH), 2),
        (Truth(noise=0.15, misses=0.3, grid=HALF_EPOCH), 10),
    ],
)
def test_tricks_that_do_nothing_get_a_verdict_in_at_most_5_percent(truth, seeds):
    assert percent_false(truth, seeds, FEW) <= allowed(5.0, FEW)


@pytest.mark.parametrize("at", [1, 6])
def test_looking_after_every_seed_errs_in_at_most_5_percent(at):
    truth, most = LOOKS[at]
    assert percent_of_looks(truth, 40)[0] <= allowed(most, 40)


@pytest.mark.parametrize(("left", "seeds", "misses", "least"), POWER)
def test_what_a_trick_does_is_found(left, seeds, misses, least):
    assert percent_found(left, seeds, misses, FEW) >= least - (allowed(least, FEW) - least)


def test_early_ends_save_more_than_half_of_the_runs_where_times_hardly_vary():
    assert percent_of_looks(Truth(noise=0.02), 20)[1] >= 50


def test_a_newcomers_race_of_two_seeds_on_thirty_images_settles_nothing():
    """Curves of arms that are all alike, seen through 30 validation images."""
    rng = np.random.default_rng(0)
    tricks = ("cyclical", "mixup", "label_smoothing")
    sets = {"plain": [], "all": list(tricks)}
    sets |= {f"all-{name}": [other for other in tricks if other != name] for name in tricks}
    sets |= {f"plain+{name}": [name] for name in tricks}
    for _ in range(15):
        arms = []
        for name, on in sets.items():
            runs = [_newcomers_run(rng, seed) for seed in (0, 1)]
            arms.append({"name": name, "tricks": {key: {} for key in on}, "runs": runs})
        record = {
            "target": {"metric": "valid_accuracy", "value": 0.8, "seconds": None},
            "plan": {"seeds": [0, 1]},
            "environment": {},
            "reasons": {},
            "arms": arms,
        }
        for num_valid in (
            30,
            None,
        ):  # too coarse, or how many is not known
            found = findings({**record, "num_valid": num_valid})
            said = {row["verdict"] for row in [*found["effects"], found["speedup"]]}
            assert said <= ({"no verdict"} if num_valid else {"no verdict", "not settled"})


def _newcomers_run(rng, seed):
    seconds = np.arange(0.5, 12.0, 0.5)
    seen = rng.binomial(30, 1 - 0.2 * (seconds / 3) ** -0.7 * (seconds >= 1) - 0.5 * (seconds < 1)) / 30
    history = [{"valid_accuracy": float(v), "train_seconds": float(t)} for v, t in zip(seen, seconds, strict=True)]
    made = when_reached(history, Goal("valid_accuracy", 0.8, 2), margin=0.073, whole=True)
    facts = {"seed": seed, "best": 0.9, "note": "", "why": {}, "clocks": {"train": 12.0}}
    if made is None:
        return {**facts, "status": "missed", "seconds": None}
    return {**facts, "status": "reached", "seconds": made.seconds, "between": made.between}


def test_the_benchmark_s_figures_are_met_in_every_cell():
    found = json.loads((BENCHMARKS / "results" / "verdicts.json").read_text())
    assert found["races_per_cell"] >= 500
    assert len(found["three_tricks_that_do_nothing_fixed_seeds"]) == len(list(false_cells())) == 48
    assert found["goal"]["met"]


@pytest.mark.slow
@pytest.mark.parametrize(("truth", "seeds"), list(false_cells()))
def test_every_cell_of_tricks_that_do_nothing(truth, seeds):
    assert percent_false(truth, seeds, 500) <= allowed(5.0, 500)
