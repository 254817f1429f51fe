"""Tuning: the learning rate of plain training and the length of a cycle."""

import math

import pytest

from heptane.race.attempt import Trial
from heptane.race.tuning import climb, shorten


def by_seconds(attempt):
    return (math.inf if attempt.seconds is None else attempt.seconds, 0.0)


def bowl(best):
    """A run that is the slower the further its rate is from the best one."""
    return lambda rate: Trial(0, "reached", seconds=1 + abs(math.log(rate / best)))


@pytest.mark.parametrize(
    ("best", "trials", "tried", "chosen"),
    [
        (1.0, 3, [1, 3, 1 / 3], 1),
        (9.0, 3, [1, 3, 9], 9),
        (9.0, 5, [1, 3, 9, 27], 9),
        (1 / 9, 4, [1, 3, 1 / 3, 1 / 9], 1 / 9),
        (1 / 3, 5, [1, 3, 1 / 3, 1 / 9], 1 / 3),
        (9.0, 1, [1], 1),
    ],
)
def test_climbs_towards_the_better_rate(best, trials, tried, chosen):
    found = climb(1.0, 3.0, trials, bowl(best), by_seconds)
    assert found.tried == pytest.approx(tried)
    assert found.chosen == pytest.approx(chosen)


def arrives_from(shortest):
    return lambda length: Trial(0, "reached", seconds=length) if length >= shortest else Trial(0, "missed")


@pytest.mark.parametrize(
    ("needed", "tried", "chosen"),
    [
        (1.0, [4, 2, 1], 1),
        (3.0, [4, 2], 4),
        (7.0, [4, 8], 8),
        (100.0, [4, 8, 16], 16),
        (2.5, [4, 2], 4),
    ],
)
def test_takes_the_shortest_cycle_that_arrives(needed, tried, chosen):
    found = shorten(4.0, 2.0, 3, 16.0, 0.5, arrives_from(needed))
    assert (found.tried, found.chosen) == (tried, chosen)


def test_it_does_not_end_on_a_length_that_is_too_short():
    assert shorten(1.0, 2.0, 1, 100.0, 0.5, arrives_from(7.0)).chosen == 8.0


def test_a_length_stays_within_its_bounds():
    assert shorten(40.0, 2.0, 3, 10.0, 0.5, arrives_from(100.0)).tried == [10.0]
    assert shorten(1.0, 2.0, 5, 10.0, 0.5, arrives_from(0.0)).tried == [1.0, 0.5]
