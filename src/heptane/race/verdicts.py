"""Verdicts: what the paired runs of a race say of each trick, and of all tricks against plain training.

A question has one or two strata of paired runs: plain against plain with the trick, and all without the trick against all.
Its estimate is the mean of the strata's mean differences of log time (or of accuracy), tested with Student's t on the noise
that all arms share. ``docs/protocol.md`` has the rule in words; ``benchmarks/verdicts.py`` simulates how often it errs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from heptane.race.outcomes import ARRIVED, UNKNOWN, Table, difference
from heptane.race.statistics import Noise, holm, pooled_noise, sign_p, student_p, student_quantile

HELPS, HURTS, NO_DIFFERENCE, NOT_SETTLED = "helps", "hurts", "no difference", "not settled"
RARER, OFTENER, NO_VERDICT = "arrives less often", "arrives more often", "no verdict"
SETTLED = (HELPS, HURTS, NO_DIFFERENCE)

ALPHA, ALPHA_PER_SEED = 0.01, 0.002  # looked at after any seed; less at first, where the noise is hardly known
ALPHA_FIXED = 0.05  # the number of seeds is fixed before the race, and nothing ends early
ALPHA_LATE, MANY_SEEDS = 0.005, 10  # past so many seeds
FIRST_LOOK = 3  # seeds after which an arm may end, since its trick is settled
MOST_MORE = 20  # more seeds than this are not worth a forecast
POWER = 0.8  # with which the seeds of a forecast would show the effect

Strata = Sequence[tuple[str, str]]
"""Pairs of arms: without the trick, with it."""


@dataclass(frozen=True)
class Scale:
    """What is a difference worth a name: of log time, or of accuracy."""

    smallest: float
    better: float
    worse: float


TIME = Scale(math.log1p(0.03), -math.log(0.9), math.log(1.1))  # 3%: below it lies what machines do by themselves; 10%
POINTS = Scale(0.001, 0.01, 0.01)


@dataclass(frozen=True)
class Evidence:
    """What the runs say of one question, before anything is decided.

    ``estimate`` is positive where the trick helps; None without a stratum of two complete pairs. ``variance`` is that of one
    run. ``bounds`` are all pairs that say something, each as the two numbers between which its difference lies.
    """

    estimate: float | None = None
    error: float = 0.0
    df: int = 0
    variance: float = 0.0
    pairs: tuple[int, ...] = ()
    bounds: tuple[tuple[float, float], ...] = ()
    sides: tuple[tuple[float, ...], ...] = ()
    arrived: tuple[int, int] = (0, 0)
    known: tuple[int, int] = (0, 0)
    num_seeds: int = 0
    num_arms: int = 0

    @property
    def with_misses(self) -> bool:
        """Whether some pair is not complete, and says something."""
        return any(low != high or math.isinf(low) for low, high in self.bounds)

    @property
    def p(self) -> float:
        """Of no effect. With runs that did not arrive, twice the smaller p of the t-test and the sign test."""
        by_sign = sign_p(*self.signs(0.0))
        if self.estimate is None:
            return by_sign
        by_time = self._time_p()
        return min(1.0, 2 * min(by_time, by_sign)) if self.with_misses else by_time

    def signs(self, shift: float) -> tuple[int, int]:
        """How many pairs lie above ``shift`` for certain, and how many below."""
        return sum(low > shift for low, _ in self.bounds), sum(high < shift for _, high in self.bounds)

    @property
    def arrivals_p(self) -> float:
        """Of arriving equally often: the exact sign test over the pairs of which one run missed the target."""
        gains = sum(low == math.inf for low, _ in self.bounds)
        losses = sum(high == -math.inf for _, high in self.bounds)
        return sign_p(gains, losses)

    @property
    def more_misses(self) -> int:
        """How many more runs with the trick did not arrive than runs without it."""
        return (self.known[1] - self.arrived[1]) - (self.known[0] - self.arrived[0])

    def interval(self, level: float) -> tuple[float, float]:
        """The differences that are not rejected at ``level``: it leaves out 0 exactly where p is at most ``level``."""
        if self.estimate is None:
            return self._sign_interval(level)
        share = level / 2 if self.with_misses else level
        width = student_quantile(share, self.df) * self.error
        low, high = self.estimate - width, self.estimate + width
        if self.with_misses:
            by_sign = self._sign_interval(share)
            both = max(low, by_sign[0]), min(high, by_sign[1])
            low, high = both if both[0] <= both[1] else (low, high)
        return low, high

    def _time_p(self) -> float:
        if self.estimate is None or self.error == 0:
            return 0.0 if self.estimate else 1.0
        return student_p(self.estimate / self.error, self.df)

    def _sign_interval(self, level: float) -> tuple[float, float]:
        ends = sorted({end for pair in self.bounds for end in pair if math.isfinite(end)})
        if not ends:
            kept = sign_p(*self.signs(0.0)) > level
            above, below = self.signs(0.0)
            return (-math.inf, math.inf) if kept else (math.inf, math.inf) if above > below else (-math.inf, -math.inf)
        edges = [-math.inf, *ends, math.inf]
        inside = [ends[0] - 1, *((a + b) / 2 for a, b in pairwise(ends)), ends[-1] + 1]
        kept_spans = [at for at, shift in enumerate(inside) if sign_p(*self.signs(shift)) > level]
        if not kept_spans:
            return -math.inf, math.inf
        return edges[kept_spans[0]], edges[kept_spans[-1] + 1]


@dataclass(frozen=True)
class Judgement:
    """A verdict on one question, with what it rests on.

    ``level`` is what p was compared with, ``low`` and ``high`` are the ends of the interval at that level; ``more_seeds``
    would show an effect of 10% (1 point), None where that takes more than ``MOST_MORE``; ``seeds`` were looked at.
    """

    verdict: str
    evidence: Evidence = field(default_factory=Evidence)
    level: float = ALPHA
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    more_seeds: int | None = None
    seeds: int = 0


def weigh(table: Table, strata: Strata, noise: Noise) -> Evidence:
    """What the runs of ``table`` say of the question whose paired arms are ``strata``."""
    bounds: list[tuple[float, float]] = []
    sides, grids = [], []
    arrived, known = [0, 0], [0, 0]
    for names in strata:
        paired = [table[name] for name in names]
        complete = []
        for without, with_it in zip(*paired, strict=True):
            pair = difference(without, with_it)
            if pair is not None:
                bounds.append(pair)
            if without.kind == with_it.kind == ARRIVED:
                complete.append(without.cost - with_it.cost)
                grids += [without.grid, with_it.grid]
            if UNKNOWN not in (without.kind, with_it.kind):
                for at, run in enumerate((without, with_it)):
                    arrived[at] += run.kind == ARRIVED
                    known[at] += 1
        sides.append(tuple(complete))
    counts = Evidence(
        pairs=tuple(map(len, sides)),
        bounds=tuple(bounds),
        sides=tuple(sides),
        arrived=(arrived[0], arrived[1]),
        known=(known[0], known[1]),
        num_seeds=max((len(outcomes) for outcomes in table.values()), default=0),
        num_arms=sum(any(run.kind == ARRIVED for run in outcomes) for outcomes in table.values()),
    )
    usable = [side for side in sides if len(side) >= 2]
    if not usable or noise.df < 1:
        return counts
    means = [math.fsum(side) / len(side) for side in usable]
    squares = math.fsum((d - mean) ** 2 for side, mean in zip(usable, means, strict=True) for d in side)
    own = squares / sum(len(side) - 1 for side in usable) / 2
    arms = [noise.of_arm[at] for at, name in enumerate(table) if any(name in pair for pair in strata)]
    of_arms = math.fsum(noise.variance if math.isnan(value) else value for value in arms) / len(arms)
    variance = max(noise.variance, own, of_arms) + (math.fsum(grids) / len(grids) if grids else 0.0)
    error = math.sqrt(2 * variance * sum(1 / len(side) for side in usable)) / len(usable)
    return Evidence(
        estimate=math.fsum(means) / len(means),
        error=error,
        df=noise.df,
        variance=variance,
        pairs=counts.pairs,
        bounds=counts.bounds,
        sides=counts.sides,
        arrived=counts.arrived,
        known=counts.known,
        num_seeds=counts.num_seeds,
        num_arms=counts.num_arms,
    )


def judge(evidence: Evidence, level: float, scale: Scale) -> Judgement:
    """The verdict on one question, tested at ``level``."""
    low, high = evidence.interval(level)
    more = seeds_needed(evidence, level, scale)
    if evidence.estimate is None:
        verdict = _without_times(evidence, level) if evidence.bounds else NO_VERDICT
        ends = (low, high) if verdict == HURTS else (None, None)
        return Judgement(verdict, evidence, level, None, ends[0], ends[1], more, evidence.num_seeds)
    estimate = min(max(evidence.estimate, low), high)
    spare = evidence.num_seeds // 5
    if evidence.p <= level and abs(estimate) >= scale.smallest:
        verdict = HELPS if estimate > 0 else HURTS
    elif -scale.worse <= low and high <= scale.better:
        verdict = NO_DIFFERENCE
    else:
        verdict = NOT_SETTLED
    more_misses = evidence.more_misses
    if abs(more_misses) > spare and verdict != (HURTS if more_misses > 0 else HELPS):
        # The faster side may not be the one that misses more often. Unless that is certain too, it is said in counts only.
        if verdict in (HELPS, HURTS) or evidence.arrivals_p <= level:
            verdict = RARER if more_misses > 0 else OFTENER
        else:
            verdict = NOT_SETTLED
    return Judgement(verdict, evidence, level, estimate, low, high, more, evidence.num_seeds)


def _without_times(evidence: Evidence, level: float) -> str:
    """Where no stratum has two complete pairs: what the exact sign test alone can say."""
    wins, losses = evidence.signs(0.0)
    if sign_p(wins, losses) > level:
        return NO_VERDICT
    if wins > losses:
        return OFTENER
    only_cut = all(math.isfinite(high) for _, high in evidence.bounds if high < 0)
    return HURTS if only_cut else RARER


def side_interval(made: Judgement, at: int) -> tuple[float | None, float | None, float | None]:
    """Mean, low and high of the differences in one stratum, on the question's own noise; None where there is none."""
    sides, evidence = made.evidence.sides, made.evidence
    if at >= len(sides) or not sides[at]:
        return None, None, None
    mean = math.fsum(sides[at]) / len(sides[at])
    if evidence.estimate is None or len(sides[at]) < 2:
        return mean, None, None
    width = student_quantile(made.level, evidence.df) * math.sqrt(2 * evidence.variance / len(sides[at]))
    return mean, mean - width, mean + width


def seeds_needed(evidence: Evidence, level: float, scale: Scale) -> int | None:
    """About how many more seeds would show an effect of 10% (of 1 point) with a probability of 80%; None for too many."""
    if evidence.estimate is None or not evidence.num_seeds:
        return None
    usable = [pairs for pairs in evidence.pairs if pairs >= 2]
    share = sum(usable) / len(usable) / evidence.num_seeds  # of the seeds that give a complete pair
    for n in range(evidence.num_seeds + 1, evidence.num_seeds + MOST_MORE + 1):
        df = max((evidence.num_arms - 1) * (n - 1), 1)
        error = math.sqrt(2 * evidence.variance / (len(usable) * n * share))
        if (student_quantile(level, df) + student_quantile(2 * (1 - POWER), df)) * error <= scale.better:
            return n - evidence.num_seeds
    return None


def verdicts(
    table: Table,
    tricks: Mapping[str, Strata],
    headline: Strata,
    scale: Scale,
    *,
    complete_seeds: int | None = None,
    fixed: bool = False,
) -> tuple[Judgement, dict[str, Judgement]]:
    """The verdict on all tricks against plain, and on each trick, looking after every seed.

    A verdict that settles a question stays: the arms of that trick end there. Tricks are tested together (Holm), the
    headline alone.

    Args:
        table: outcomes per arm and seed, in the order in which the seeds were raced.
        tricks: the strata of each trick that was measured.
        headline: those of all against plain.
        scale: ``TIME`` or ``POINTS``.
        complete_seeds: after how many seeds to look for what is settled; None for all. The last look is at all of them.
        fixed: the number of seeds was fixed before the race, and nothing ends early: one look, at ``ALPHA_FIXED``.

    Returns:
        The headline's judgement, and one per trick.
    """
    total = max((len(outcomes) for outcomes in table.values()), default=0)
    complete = total if complete_seeds is None else complete_seeds
    looks = [total] if fixed else [*range(FIRST_LOOK, complete + 1), total]
    settled: dict[str | None, Judgement] = {}
    now: dict[str | None, Judgement] = {}
    for seeds in dict.fromkeys(looks):
        seen = {name: outcomes[:seeds] for name, outcomes in table.items()}
        alpha = ALPHA_FIXED if fixed else alpha_after(seeds)
        now = {**_look(seen, tricks, headline, scale, alpha, settled), **settled}
        if seeds <= complete:
            settled |= {name: made for name, made in now.items() if made.verdict in SETTLED}
    return now[None], {name: now[name] for name in tricks}


def alpha_after(seeds: int) -> float:
    """How often a look after so many seeds may err; the looks at 2 to 10 seeds together stay under 5%.

    Example:
        >>> from heptane.race.verdicts import alpha_after
        >>> [alpha_after(seeds) for seeds in (2, 3, 5, 10, 11)]
        [0.004, 0.006, 0.01, 0.01, 0.005]
    """
    return ALPHA_LATE if seeds > MANY_SEEDS else min(ALPHA, ALPHA_PER_SEED * seeds)


def _look(
    seen: Table,
    tricks: Mapping[str, Strata],
    headline: Strata,
    scale: Scale,
    alpha: float,
    settled: Mapping[str | None, Judgement],
) -> dict[str | None, Judgement]:
    """The judgement on each question (None: the headline) that is not settled, from the seeds seen so far."""
    noise = pooled_noise([[run.cost if run.kind == ARRIVED else math.nan for run in runs] for runs in seen.values()])
    evidence = {name: weigh(seen, strata, noise) for name, strata in tricks.items() if name not in settled}
    p_values = [evidence[name].p if name in evidence else _settled_p(settled[name]) for name in tricks]
    levels = dict(zip(tricks, holm(p_values, alpha), strict=True))
    found: dict[str | None, Judgement] = {name: judge(made, levels[name], scale) for name, made in evidence.items()}
    if None not in settled:
        found[None] = judge(weigh(seen, headline, noise), alpha, scale)
    return found


def _settled_p(made: Judgement) -> float:
    """What a settled trick counts as in Holm's procedure: rejected, or not."""
    return 1.0 if made.verdict == NO_DIFFERENCE else 0.0
