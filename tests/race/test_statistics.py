"""Ratios, intervals and verdicts; above all, verdicts on races whose truth is known."""

import math

import numpy as np
import pytest

from heptane.race.statistics import (
    HELPS,
    HURTS,
    NO_EFFECT,
    effect_on_accuracy,
    effect_on_time,
    estimate,
    gain,
    speedup,
)

TRUTH = {HELPS: 0.7, NO_EFFECT: 1.0, HURTS: 1.2}  # what a trick leaves of the time: one saves 30%
NOISE = 0.05  # standard deviation of the logarithm of a time


def simulated(rng, seconds, shared, noise=NOISE):
    return [seconds * math.exp(common + rng.normal(0, noise)) for common in shared]


def simulated_race(rng, num_seeds=5, noise=NOISE):
    """The verdict on each of the three tricks; what a seed does to every arm is shared."""
    shared = rng.normal(0, 0.1, num_seeds)
    whole = 100 * math.prod(TRUTH.values()) * 0.5
    plain, every = simulated(rng, 100, shared, noise), simulated(rng, whole, shared, noise)
    return {
        truth: effect_on_time(
            plain, every, simulated(rng, 100 * left, shared, noise), simulated(rng, whole / left, shared, noise)
        ).verdict
        for truth, left in TRUTH.items()
    }


def test_verdicts_are_right_in_95_of_100_races_of_known_truth():
    rng = np.random.default_rng(0)
    races = [simulated_race(rng) for _ in range(1000)]
    right = sum(all(found == truth for truth, found in verdicts.items()) for verdicts in races)
    assert right >= 950


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", [0.03, 0.1, 0.2])
def test_no_effect_is_not_called_helps_more_often_than_the_interval_promises(num_seeds, noise):
    rng = np.random.default_rng(1)
    races = 1500
    helps = sum(simulated_race(rng, num_seeds, noise)[NO_EFFECT] == HELPS for _ in range(races))
    promised = 0.025 * races  # a 95% interval lies above the truth in 2.5% of cases
    assert helps <= promised + 3 * math.sqrt(promised)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 8])
def test_interval_covers_the_truth_as_often_as_it_says(num_seeds):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        shared = rng.normal(0, 0.3, num_seeds)
        found = speedup(simulated(rng, 30, shared), simulated(rng, 10, shared))
        covered += found.low <= 3 <= found.high
    assert 925 <= covered <= 975


def test_interval_is_that_of_students_t():
    values = [0.1, 0.25, 0.2, 0.3, 0.15]
    width = 2.776 * np.std(values, ddof=1) / math.sqrt(5)  # t at 97.5% with 4 degrees of freedom
    found = estimate(values)
    assert found.low == pytest.approx(0.2 - width, rel=0.02)
    assert found.high == pytest.approx(0.2 + width, rel=0.02)
    assert found.median == 0.2


def test_speedup_is_the_median_of_paired_ratios():
    found = speedup([30.0, 60.0, 20.0], [10.0, 10.0, 10.0])
    assert found.median == pytest.approx(3.0)
    assert found.values == pytest.approx((3.0, 6.0, 2.0))
    assert found.weak


def test_a_run_that_missed_counts_as_infinite_and_is_not_dropped():
    found = speedup([None, 20.0, None, 22.0, None], [10.0] * 5)
    assert found.median == math.inf
    assert (found.low, found.high) == (pytest.approx(2.0), math.inf)
    assert len(found.values) == 5
    assert found.record()["values"].count("inf") == 3


def test_all_that_missed_is_a_ratio_of_zero():
    found = speedup([20.0] * 3, [None] * 3)
    assert (found.median, found.low, found.high) == (0.0, 0.0, 0.0)


def test_where_both_missed_nothing_is_known_and_it_says_so():
    found = speedup([None, 20.0, 20.0], [None, 10.0, 10.0])
    assert found.unknown == 1
    assert found.median == 2.0
    assert speedup([None], [None]).median is None


def test_seeds_that_were_not_run_are_unknown():
    found = speedup([20.0, math.nan, 30.0], [10.0, 10.0, 10.0])
    assert (found.unknown, len(found.values)) == (1, 2)


def test_one_seed_has_no_interval():
    found = speedup([20.0], [10.0])
    assert (found.median, found.low, found.high) == (2.0, 0.0, math.inf)
    assert found.record()["interval"] == [0.0, "inf"]


def test_an_arm_that_cannot_do_without_a_trick_says_that_it_helps():
    effect = effect_on_time([60.0] * 5, [20.0] * 5, [30.0] * 5, [None] * 5)
    assert effect.verdict == HELPS
    assert effect.without.median == math.inf


def test_an_effect_too_small_to_matter_has_no_name():
    plain, every = [100.0, 110.0, 120.0, 105.0, 100.0], [50.0, 55.0, 60.0, 52.0, 50.0]
    by = 1.01
    effect = effect_on_time(plain, every, [t / by for t in plain], [t * by for t in every])
    assert effect.verdict == NO_EFFECT
    assert "too small" in effect.why


def test_opposite_effects_alone_and_among_the_others_are_remarked():
    plain, every = [100.0] * 5, [50.0] * 5
    effect = effect_on_time(plain, every, [50.0, 51.0, 49.0, 50.0, 50.0], [40.0, 41.0, 40.0, 39.0, 40.0])
    assert effect.verdict == HELPS
    assert "helps alone and hurts among the others" in effect.why
    turned = effect_on_time(plain, every, [120.0, 121.0, 122.0, 120.0, 119.0], [80.0, 81.0, 80.0, 79.0, 80.0])
    assert "hurts alone and helps among the others" in turned.why


def test_one_side_alone_is_enough_for_a_verdict():
    plain, every = [100.0, 99.0, 101.0, 100.0, 98.0], [50.0] * 5
    assert effect_on_time(plain, every, [70.0] * 5, None).verdict == HELPS
    assert effect_on_time(plain, every, None, [35.0] * 5).verdict == HURTS


def test_accuracies_are_compared_by_difference():
    plain, every = [0.90, 0.901, 0.902, 0.9, 0.899], [0.93, 0.931, 0.93, 0.929, 0.932]
    assert gain(plain, every).median == pytest.approx(0.03, abs=0.002)
    assert effect_on_accuracy(plain, every, [v + 0.01 for v in plain], [v - 0.01 for v in every]).verdict == HELPS
    assert effect_on_accuracy(plain, every, [v - 0.01 for v in plain], [v + 0.01 for v in every]).verdict == HURTS
    assert effect_on_accuracy(plain, every, plain, every).verdict == NO_EFFECT
