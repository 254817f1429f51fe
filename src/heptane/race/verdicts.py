"""Verdicts on each trick, and on all tricks against plain training, from paired runs.

A question has one or two strata of paired runs: plain against plain with the trick, and all without the trick against all.
Its estimate is the mean of the strata's mean differences of log time (or of accuracy). It is tested with Student's t, on the
noise pooled over all arms. ``docs/protocol.md`` explains the rule; ``benchmarks/verdicts.py`` simulates its error rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from heptane.race.outcomes import ARRIVED, UNKNOWN, Table, difference
from heptane.race.statistics import Noise, holm, pooled_noise, sign_p, student_p, student_quantile

HELPS, HURTS, NO_DIFFERENCE, NOT_SETTLED = "helps", "hurts", "no difference", "not settled"
ARRIVES_LESS, ARRIVES_MORE, NO_VERDICT = "arrives less often", "arrives more often", "no verdict"
SETTLED = (HELPS, HURTS, NO_DIFFERENCE)

ALPHA, ALPHA_PER_SEED = 0.01, 0.002  # when looking after every seed; less at first, when the noise is hardly known
ALPHA_FIXED = 0.05  # when the number of seeds is fixed and nothing ends early
ALPHA_LATE, MANY_SEEDS = 0.005, 10  # beyond 10 seeds
FIRST_LOOK = 3  # seeds after which an arm may end early
MOST_MORE = 20  # forecasts of more seeds than this are not shown
POWER = 0.8  # of a forecast

Strata = Sequence[tuple[str, str]]
"""Pairs of arms: without the trick, with it."""


@dataclass(frozen=True)
class Scale:
    """Which differences count: the smallest for a verdict, and the bounds of "no difference"."""

    smallest: float
    better: float
    worse: float


TIME = Scale(math.log1p(0.03), -math.log(0.9), math.log(1.1))  # below 3% lies the machine's own variation
POINTS = Scale(0.001, 0.01, 0.01)


@dataclass(frozen=True)
class Evidence:
    """The evidence on one question, before a verdict.

    ``estimate`` is positive if the trick helps; None without a stratum of two complete pairs. ``variance`` is that of one
    run. ``bounds`` are the bounds on the difference of each informative pair.
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
        """Whether some informative pair is incomplete."""
        return any(low != high or math.isinf(low) for low, high in self.bounds)

    @property
    def p(self) -> float:
        """The p-value of no effect. With missed runs: twice the smaller p of the t-test and the sign test."""
        by_sign = sign_p(*self.signs(0.0))
        if self.estimate is None:
            return by_sign
        by_time = self._time_p()
        return min(1.0, 2 * min(by_time, by_sign)) if self.with_misses else by_time

    def signs(self, shift: float) -> tuple[int, int]:
        """How many pairs lie above ``shift`` with certainty, and how many below."""
        return sum(low > shift for low, _ in self.bounds), sum(high < shift for _, high in self.bounds)

    @property
    def arrivals_p(self) -> float:
        """The p-value of arriving equally often: a sign test over pairs in which one run missed the target."""
        gains = sum(low == math.inf for low, _ in self.bounds)
        losses = sum(high == -math.inf for _, high in self.bounds)
        return sign_p(gains, losses)

    @property
    def more_misses(self) -> int:
        """Missed runs with the trick minus missed runs without it."""
        return (self.known[1] - self.arrived[1]) - (self.known[0] - self.arrived[0])

    def interval(self, level: float) -> tuple[float, float]:
        """The confidence interval at ``level``; it excludes 0 exactly if p is at most ``level``."""
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
    """A verdict on one question and its evidence.

    ``low`` and ``high`` are the interval at the test's ``level``. ``more_seeds`` more would show an effect of 10% (1 point);
    None: more than ``MOST_MORE``. ``seeds`` is the number of seeds at this verdict.
    """

    verdict: str
    evidence: Evidence = field(default_factory=Evidence)
    level: float = ALPHA
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    more_seeds: int | None = None
    seeds: int = 0


def gather_evidence(table: Table, strata: Strata, noise: Noise) -> Evidence:
    """The evidence in ``table`` on the question with the paired arms ``strata``."""
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
    return replace(counts, estimate=math.fsum(means) / len(means), error=error, df=noise.df, variance=variance)


def judge(evidence: Evidence, level: float, scale: Scale) -> Judgement:
    """The verdict on one question, tested at ``level``."""
    low, high = evidence.interval(level)
    more = seeds_needed(evidence, level, scale)
    if evidence.estimate is None:
        verdict = _without_times(evidence, level) if evidence.bounds else NO_VERDICT
        ends = (low, high) if verdict == HURTS else (None, None)
        return Judgement(verdict, evidence, level, None, ends[0], ends[1], more, evidence.num_seeds)
    estimate, spare = min(max(evidence.estimate, low), high), evidence.num_seeds // 5
    if evidence.p <= level and abs(estimate) >= scale.smallest:
        verdict = HELPS if estimate > 0 else HURTS
    elif -scale.worse <= low and high <= scale.better:
        verdict = NO_DIFFERENCE
    else:
        verdict = NOT_SETTLED
    more_misses = evidence.more_misses
    if abs(more_misses) > spare and verdict != (HURTS if more_misses > 0 else HELPS):
        # If the faster side misses more often, the verdict is on arrivals only.
        if verdict in (HELPS, HURTS) or evidence.arrivals_p <= level:
            verdict = ARRIVES_LESS if more_misses > 0 else ARRIVES_MORE
        else:
            verdict = NOT_SETTLED
    return Judgement(verdict, evidence, level, estimate, low, high, more, evidence.num_seeds)


def _without_times(evidence: Evidence, level: float) -> str:
    """The verdict of the sign test alone, if no stratum has two complete pairs."""
    wins, losses = evidence.signs(0.0)
    if sign_p(wins, losses) > level:
        return NO_VERDICT
    if wins > losses:
        return ARRIVES_MORE
    only_censored = all(math.isfinite(high) for _, high in evidence.bounds if high < 0)
    return HURTS if only_censored else ARRIVES_LESS


def side_interval(made: Judgement, at: int) -> tuple[float | None, float | None, float | None]:
    """Mean and interval of the differences in one stratum, with the question's noise; None if unknown."""
    sides, evidence = made.evidence.sides, made.evidence
    if at >= len(sides) or not sides[at]:
        return None, None, None
    mean = math.fsum(sides[at]) / len(sides[at])
    if evidence.estimate is None or len(sides[at]) < 2:
        return mean, None, None
    width = student_quantile(made.level, evidence.df) * math.sqrt(2 * evidence.variance / len(sides[at]))
    return mean, mean - width, mean + width


def seeds_needed(evidence: Evidence, level: float, scale: Scale) -> int | None:
    """About how many more seeds would show an effect of 10% (1 point) with 80% power; None: too many."""
    if evidence.estimate is None or not evidence.num_seeds:
        return None
    usable = [pairs for pairs in evidence.pairs if pairs >= 2]
    share = sum(usable) / len(usable) / evidence.num_seeds  # of seeds with a complete pair
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
    """The verdict on all tricks against plain, and on each trick, testing after every seed.

    A settled verdict stays, since the arms of that trick end. Tricks are tested together (Holm), the headline alone.

    Args:
        table: outcomes per arm and seed, in the order of the seeds.
        tricks: the strata of each measured trick.
        headline: the strata of all against plain.
        scale: ``TIME`` or ``POINTS``.
        complete_seeds: seeds that all arms have run, after each of which a question may be settled; None: all seeds.
        fixed: the number of seeds was fixed and nothing ends early: test once, at ``ALPHA_FIXED``.

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
    """The significance level of a test after so many seeds; all tests at 2 to 10 seeds together stay under 5%.

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
    """Judge each unsettled question (None: the headline) from the seeds seen so far."""
    noise = pooled_noise([[run.cost if run.kind == ARRIVED else math.nan for run in runs] for runs in seen.values()])
    evidence = {name: gather_evidence(seen, strata, noise) for name, strata in tricks.items() if name not in settled}
    # To Holm's procedure, a settled trick is rejected (p 0), or has no effect (p 1).
    p_settled = {name: 1.0 if made.verdict == NO_DIFFERENCE else 0.0 for name, made in settled.items()}
    p_values = [evidence[name].p if name in evidence else p_settled[name] for name in tricks]
    levels = dict(zip(tricks, holm(p_values, alpha), strict=True))
    found: dict[str | None, Judgement] = {name: judge(made, levels[name], scale) for name, made in evidence.items()}
    if None not in settled:
        found[None] = judge(gather_evidence(seen, headline, noise), alpha, scale)
    return found
