"""Verdicts on single races; how often they err is in ``test_simulated_races.py``."""

import math

import pytest

from heptane.race.outcomes import NOT_KNOWN, NOT_REACHED, Outcome, difference, outcome_of, reached_after
from heptane.race.statistics import Noise, pooled_noise, student_quantile
from heptane.race.verdict_text import arrival_counts, verdict_text
from heptane.race.verdicts import (
    ARRIVES_LESS,
    ARRIVES_MORE,
    HELPS,
    HURTS,
    NO_DIFFERENCE,
    NO_VERDICT,
    NOT_SETTLED,
    POINTS,
    TIME,
    gather_evidence,
    judge,
    verdicts,
)

BOTH = (("plain", "plain+it"), ("all-it", "all"))
STEADY = [100.0, 110.0, 95.0, 105.0, 98.0]


def times(*seconds):
    """Outcomes: a number is a time, None missed it, a text is a bound, NaN was not run."""
    made = {str: lambda s: Outcome("censored", math.log(float(s))), type(None): lambda _: NOT_REACHED}
    return [NOT_KNOWN if s != s else made.get(type(s), lambda s: reached_after(s))(s) for s in seconds]


def race_of(without, with_it, wobble=(0.0, 0.02, -0.02, 0.01, -0.01), fixed=True, other=None):
    """A trick that takes ``without`` to ``with_it`` alone, and the like among the others (or as in ``other``)."""
    wobble = (list(wobble) * 3)[: len(without)]
    steady = [t * math.exp(w) if isinstance(t, float) else t for t, w in zip(with_it, wobble, strict=True)]
    half = lambda values: [t / 2 if isinstance(t, float) else t for t in values]  # noqa: E731
    pair = other or (half(without), half(steady))
    table = {
        "plain": times(*without),
        "all": times(*pair[1]),
        "plain+it": times(*steady),
        "all-it": times(*pair[0]),
    }
    return verdicts(table, {"it": BOTH}, [("plain", "all")], TIME, fixed=fixed)[1]["it"]


def scaled(factor, values=STEADY):
    return [factor * value for value in values]


def test_a_trick_that_saves_time_helps_and_the_words_say_how_much():
    made = race_of(STEADY, scaled(0.77))
    assert made.verdict == HELPS
    assert math.exp(-made.estimate) == pytest.approx(0.77, rel=0.01)
    assert made.low < made.estimate < made.high
    assert verdict_text(made, True).startswith("saves 23% (2")


def test_a_trick_that_costs_time_hurts():
    made = race_of(STEADY, scaled(1.3))
    assert made.verdict == HURTS
    assert verdict_text(made, True).startswith("costs 30% (2")


def test_an_interval_within_ten_percent_is_no_difference():
    made = race_of(STEADY, scaled(1.01))
    assert made.verdict == NO_DIFFERENCE
    assert verdict_text(made, True) == "no difference beyond 10%"


def test_below_three_percent_nothing_is_called_helpful_however_sure_it_is():
    made = race_of(STEADY, scaled(0.98), wobble=[0.0, 0.001, -0.001, 0.0005, -0.0005])
    assert made.evidence.p < 1e-4
    assert made.verdict == NO_DIFFERENCE


def test_what_is_not_settled_says_how_far_and_how_many_more_seeds():
    made = race_of(STEADY, scaled(0.95), wobble=[0.45, -0.3, 0.15, -0.45, 0.3])
    assert made.verdict == NOT_SETTLED
    assert verdict_text(made, True).startswith("not settled: ")
    assert "% slower to " in verdict_text(made, True)
    assert verdict_text(made, True).endswith("> 20 more seeds would be needed to show a 10% effect")
    quieter = race_of(STEADY[:3], scaled(0.95, STEADY[:3]), wobble=[0.12, -0.1, 0.02])
    assert quieter.more_seeds is not None
    assert f"about {quieter.more_seeds} more seeds would show a 10% effect" in verdict_text(quieter, True)


def test_interval_is_that_of_students_t_on_the_shared_noise():
    table = {"plain": times(100.0, 110.0, 95.0), "all": times(70.0, 80.0, 60.0)}
    costs = [[run.cost for run in runs] for runs in table.values()]
    noise = pooled_noise(costs)
    made = judge(gather_evidence(table, [("plain", "all")], noise), 0.05, TIME)
    d = [a - b for a, b in zip(*costs, strict=True)]
    mean = sum(d) / 3
    error = math.sqrt(sum((x - mean) ** 2 for x in d) / 2 / 3)  # of one pair of arms: that of a paired t-test
    assert made.low == pytest.approx(mean - student_quantile(0.05, 2) * error)
    assert made.high == pytest.approx(mean + student_quantile(0.05, 2) * error)


def test_noise_is_never_below_the_tricks_own():
    table = {"plain": times(100.0, 130.0, 80.0), "all": times(50.0, 50.0, 50.0)}
    quiet = gather_evidence(table, [("plain", "all")], Noise(1e-6, 14, (1e-6, 1e-6)))
    d = [math.log(t / 50.0) for t in (100.0, 130.0, 80.0)]
    own = sum((x - sum(d) / 3) ** 2 for x in d) / 2 / 2
    assert quiet.variance == pytest.approx(own)


def test_the_variance_of_a_single_noisy_arm_counts_too():
    table = {"plain": times(100.0, 100.0), "all": times(50.0, 50.0)}
    assert gather_evidence(table, [("plain", "all")], Noise(0.01, 14, (0.09, 0.01))).variance == pytest.approx(0.05)


def test_the_grid_of_evaluations_adds_its_variance():
    exact = {"plain": [reached_after(100.0)] * 2, "all": [reached_after(50.0)] * 2}
    coarse = {"plain": [reached_after(100.0, 50.0)] * 2, "all": [reached_after(50.0, 50.0)] * 2}
    noise = Noise(0.0025, 7, (0.0025, 0.0025))
    added = (
        gather_evidence(coarse, [("plain", "all")], noise).variance
        - gather_evidence(exact, [("plain", "all")], noise).variance
    )
    assert added == pytest.approx((0.25 / 12 + 1.0 / 12) / 2)


def test_the_faster_side_may_not_miss_more_often():
    with_misses = race_of([*STEADY, *STEADY], [*scaled(0.6)[:3], None, None, None, *scaled(0.6)[:4]])
    assert with_misses.verdict == ARRIVES_LESS
    assert verdict_text(with_misses, True) == f"arrives less often: {arrival_counts(with_misses)}"
    assert arrival_counts(with_misses) == "14 of 20, against 20 of 20"
    turned = race_of([*STEADY[:3], None, None, None, *STEADY[:4]], scaled(1.6, [*STEADY, *STEADY]))
    assert turned.verdict == ARRIVES_MORE


def test_a_few_misses_do_not_hide_a_large_effect():
    made = race_of([*STEADY, *STEADY], [*scaled(0.6), *scaled(0.6)[:4], None])
    assert made.verdict == HELPS
    assert made.evidence.with_misses


def test_bounds_of_runs_that_were_stopped_are_never_taken_for_times():
    made = race_of(STEADY, [*scaled(1.2)[:4], "150.0"])
    alone = made.evidence.sides[0]
    assert len(alone) == 4  # not the fifth, whose time is only bounded


def test_a_stopped_run_loses_only_if_its_bound_is_past_the_others_time():
    assert difference(*times(100.0, "150.0")) == (-math.inf, pytest.approx(math.log(100 / 150)))
    low, high = difference(*times(100.0, "80.0"))
    assert (low, high) == (-math.inf, pytest.approx(math.log(100 / 80)))  # above 0: it may still have won
    table = {"plain": times(100.0), "all": times("80.0")}
    assert gather_evidence(table, [("plain", "all")], Noise(0.01, 5, (0.01, 0.01))).signs(0.0) == (0, 0)


def test_what_is_always_stopped_is_slower_by_the_sign_test_alone():
    made = race_of(STEADY, ["150.0"] * 5, other=(STEADY, ["150.0"] * 5))
    assert made.verdict == HURTS
    assert made.estimate is None
    assert verdict_text(made, True).startswith("costs at least ")


def test_what_never_arrives_says_so_and_claims_no_time():
    made = race_of(STEADY, [None] * 5, other=(scaled(0.5), [None] * 5))
    assert made.verdict == ARRIVES_LESS
    assert verdict_text(made, True) == "arrives less often: 0 of 10, against 10 of 10"


@pytest.mark.parametrize(
    ("without", "with_it"),
    [([100.0], [50.0]), ([100.0, None], [50.0, 50.0]), ([math.nan, math.nan], [50.0, 50.0]), ([None, None], [None, None])],
)
def test_fewer_than_two_complete_pairs_are_no_verdict(without, with_it):
    made = race_of(without, with_it, wobble=[0.0, 0.0], other=(without, with_it))
    assert made.verdict == NO_VERDICT
    assert verdict_text(made, True) == "no verdict"


def test_tricks_are_corrected_for_each_other_and_intervals_agree_with_verdicts():
    """A p between alpha / 2 and alpha is a verdict for one trick, and not for one of two."""
    wobble = [0.06, -0.05, 0.0]
    plain = [100.0, 103.0, 98.0]
    with_it = [100.0 * math.exp(-0.13 + w) for w in wobble]
    table = {
        "plain": times(*plain),
        "a": times(*with_it),
        "b": times(*[p * math.exp(w) for p, w in zip(plain, wobble, strict=True)]),
    }
    noise = pooled_noise([[run.cost for run in runs] for runs in table.values()])
    p = gather_evidence(table, [("plain", "a")], noise).p
    assert 0.025 < p < 0.05
    one = verdicts(table, {"a": [("plain", "a")]}, [("plain", "a")], TIME, fixed=True)[1]
    two = verdicts(table, {"a": [("plain", "a")], "b": [("plain", "b")]}, [("plain", "a")], TIME, fixed=True)[1]
    assert one["a"].verdict == HELPS
    assert one["a"].low > 0
    assert two["a"].verdict == NOT_SETTLED
    assert two["a"].low < 0 < two["a"].high


def test_a_verdict_that_settles_a_question_stays():
    """After three seeds it helps; two odd seeds, which a race would not have run, do not take that back."""
    with_it = [*scaled(0.6)[:3], 300.0, 300.0]
    settled = race_of(STEADY, with_it, fixed=False)
    assert (settled.verdict, settled.seeds) == (HELPS, 3)
    assert race_of(STEADY, with_it, fixed=True).verdict == NOT_SETTLED


def test_accuracies_are_compared_in_points():
    scores, better = [0.90, 0.901, 0.902], [0.93, 0.932, 0.931]
    table = {name: [Outcome("arrived", -s) for s in some] for name, some in (("plain", scores), ("all", better))}
    made, _ = verdicts(table, {}, [("plain", "all")], POINTS, fixed=True)
    assert made.verdict == HELPS
    assert verdict_text(made, False).startswith("gains 3 points (2.")


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        ({"status": "reached", "seconds": 3.0}, "arrived"),
        ({"status": "missed", "seconds": None}, "not arrived"),
        ({"status": "failed", "seconds": None}, "not arrived"),
        ({"status": "stopped", "seconds": None, "clocks": {"train": 9.0}}, "censored"),
        ({"status": "refused", "seconds": None}, "unknown"),
        ({"status": "not run", "seconds": None, "clocks": {"train": 9.0}}, "unknown"),
        (None, "unknown"),
    ],
)
def test_what_a_run_counts_as(run, kind):
    assert outcome_of(run, True).kind == kind
