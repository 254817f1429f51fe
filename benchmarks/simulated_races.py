"""Simulated races with known effects: invented runs, judged by the race's own code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from heptane.race.outcomes import CENSORED, NOT_KNOWN, NOT_REACHED, Outcome, reached_after
from heptane.race.pacing import cap_seconds
from heptane.race.verdicts import HELPS, HURTS, SETTLED, TIME, Judgement, verdicts

NAMES = ("first", "second", "third")
SEED_SD = 0.1  # of the logarithm of a time: what a seed does to every arm
STRATA = {name: (("plain", f"plain+{name}"), (f"all-{name}", "all")) for name in NAMES}
HEADLINE = (("plain", "all"),)


@dataclass(frozen=True)
class Truth:
    """What a race is made of.

    ``left`` is what each trick leaves of the time; ``noise`` the standard deviation of log time of one run; ``misses`` the
    share of runs that do not arrive; ``grid`` the seconds between two evaluations, of about 100 that plain takes, 0 where
    times are interpolated; ``noisy`` the noise of single arms.
    """

    left: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 1.0))
    noise: float = 0.05
    misses: float = 0.0
    grid: float = 0.0
    noisy: Mapping[str, float] = field(default_factory=dict)


def runs_of(rng: np.random.Generator, truth: Truth, num_seeds: int) -> dict[str, list[float | None]]:
    """Seconds to the target per arm and seed, None for a run that misses it; plain and all come first."""
    whole = math.prod(truth.left[name] for name in NAMES)
    factors = {"plain": 1.0, "all": whole}
    factors |= {f"plain+{name}": truth.left[name] for name in NAMES}
    factors |= {f"all-{name}": whole / truth.left[name] for name in NAMES}
    shared = rng.normal(0, SEED_SD, num_seeds)
    found: dict[str, list[float | None]] = {}
    for arm, factor in factors.items():
        times = 100 * factor * np.exp(shared + rng.normal(0, truth.noisy.get(arm, truth.noise), num_seeds))
        if truth.grid:
            times = np.ceil(times / truth.grid) * truth.grid
        missed = rng.random(num_seeds) < truth.misses
        found[arm] = [None if gone else float(time) for time, gone in zip(times, missed, strict=True)]
    return found


def table_of(
    times: Mapping[str, Sequence[float | None]], grid: float, ended: Mapping[str, int] | None = None
) -> dict[str, list[Outcome]]:
    """Outcomes of the runs with the race's own limits; arms of settled tricks end."""
    table: dict[str, list[Outcome]] = {}
    for arm, seconds in times.items():
        outcomes = []
        for seed, time in enumerate(seconds):
            trick = arm.removeprefix("all-").removeprefix("plain+")
            if arm not in ("plain", "all") and ended and seed >= ended.get(trick, len(seconds)):
                outcomes.append(NOT_KNOWN)
                continue
            cap = _cap(times, arm, seed)
            if time is not None and time > cap:
                outcomes.append(Outcome(CENSORED, math.log(cap)))
            else:
                outcomes.append(NOT_REACHED if time is None else reached_after(time, grid))
        table[arm] = outcomes
    return table


def _cap(times: Mapping[str, Sequence[float | None]], arm: str, seed: int) -> float:
    if arm in ("plain", "all"):
        return math.inf
    compared = ["plain"] if arm.startswith("plain+") else ["plain", "all"]
    return cap_seconds(*((times[name][: seed + 1], times[name][seed]) for name in compared))


def raced(
    rng: np.random.Generator, truth: Truth, num_seeds: int, *, fixed: bool = False
) -> tuple[Judgement, dict[str, Judgement]]:
    """One race: the verdicts on all tricks together and on each."""
    times = runs_of(rng, truth, num_seeds)
    return verdicts(table_of(times, truth.grid), STRATA, HEADLINE, TIME, fixed=fixed)


def looked_at(rng: np.random.Generator, truth: Truth, looks: Sequence[int]) -> tuple[bool, int]:
    """Add seeds to a race until there is a verdict: whether a trick got one, and the number of runs."""
    times = runs_of(rng, truth, max(looks))
    ended: dict[str, int] = {}
    spoke = False
    for seeds in looks:
        seen = {arm: seconds[:seeds] for arm, seconds in times.items()}
        _, tricks = verdicts(table_of(seen, truth.grid, ended), STRATA, HEADLINE, TIME)
        spoke = spoke or any(made.verdict in (HELPS, HURTS) for made in tricks.values())
        ended |= {
            name: made.seeds for name, made in tricks.items() if made.verdict in SETTLED and name not in ended and seeds > 2
        }
    num_runs = 2 * max(looks) + sum(2 * ended.get(name, max(looks)) for name in NAMES)
    return spoke, num_runs


def any_false(judged: Mapping[str, Judgement]) -> bool:
    """Whether a trick without effect got a verdict."""
    return any(made.verdict in (HELPS, HURTS) for made in judged.values())
