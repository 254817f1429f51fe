"""When a run has reached its target: two evaluations in a row, interpolated to the first."""

import math

import numpy as np
import pytest

from heptane.race.target import Reached, expected_errors, standard_error, when_reached
from heptane.session.history import Goal, reached

GOAL = Goal("valid_accuracy", 0.9, 2)


def curve(*values, metric="valid_accuracy", each=10.0):
    return [{metric: value, "train_seconds": each * (i + 1)} for i, value in enumerate(values)]


def test_one_evaluation_at_the_target_does_not_count_two_in_a_row_do():
    assert when_reached(curve(0.8, 0.91, 0.85, 0.89), GOAL, margin=0.01, whole=False) is None
    found = when_reached(curve(0.8, 0.91, 0.85, 0.95, 0.9), GOAL, margin=0.01, whole=False)
    assert found == Reached(pytest.approx(35.0))  # halfway from 0.85 to 0.95


def test_time_is_interpolated_from_the_evaluation_before():
    assert when_reached(curve(0.5, 0.7, 0.95, 0.95), GOAL, margin=0.0, whole=False).seconds == pytest.approx(28.0)


def test_at_the_first_evaluation_there_is_nothing_to_interpolate_from():
    assert when_reached(curve(0.95, 0.96), GOAL, margin=0.0, whole=False) == Reached(10.0, 10.0)
    assert when_reached(curve(math.nan, 0.95, 0.96), GOAL, margin=0.0, whole=False) == Reached(20.0, 10.0)


def test_the_last_evaluation_of_a_run_suffices_with_a_standard_error_more():
    assert when_reached(curve(0.8, 0.905), GOAL, margin=0.01, whole=True) is None
    assert when_reached(curve(0.8, 0.92), GOAL, margin=0.01, whole=True).seconds == pytest.approx(10 + 10 * 0.1 / 0.12)
    assert when_reached(curve(0.8, 0.92), GOAL, margin=0.01, whole=False) is None  # it was cut off, and might have fallen


def test_an_error_or_a_loss_is_reached_from_above():
    loss = Goal("valid_loss", 0.3, 2)
    found = when_reached(curve(0.5, 0.2, 0.25, metric="valid_loss"), loss, margin=0.0, whole=False)
    assert found.seconds == pytest.approx(10 + 10 * 2 / 3)


def test_a_run_stops_at_the_second_evaluation_in_a_row_and_a_plain_fit_at_the_first():
    history = curve(0.8, 0.91, 0.85, 0.95, 0.9)
    assert reached(history, GOAL) == 40.0
    assert reached(history[:4], GOAL) is None
    assert reached(history, Goal("valid_accuracy", 0.9)) == 20.0


def test_standard_error_and_expected_errors():
    assert standard_error("valid_accuracy", 0.9, 400) == pytest.approx(0.015)
    assert standard_error("valid_loss", 0.9, 400) == standard_error("valid_accuracy", 0.9, None) == 0.0
    assert expected_errors("valid_accuracy", 0.9, 100) == pytest.approx(10.0)
    assert expected_errors("valid_loss", 0.9, 100) == expected_errors("valid_accuracy", None, 100) == math.inf


@pytest.mark.parametrize(("samples", "most"), [(100, 0.05), (1000, 0.01)])
def test_the_time_is_hardly_biased_by_the_noise_of_an_evaluation(samples, most):
    """An accuracy that climbs through 90% at 10 s, seen through so many images; the first crossing is 17% and 6% early."""
    rng = np.random.default_rng(0)
    seconds = np.arange(0.5, 40.0, 0.5)
    truth = 1 - 0.1 * (seconds / 10) ** -0.7
    first, confirmed = [], []
    for _ in range(400):
        seen = rng.binomial(samples, np.clip(truth, 0.0, 1.0)) / samples
        history = [{"valid_accuracy": float(v), "train_seconds": float(t)} for v, t in zip(seen, seconds, strict=True)]
        first.append(reached(history, Goal("valid_accuracy", 0.9)))
        confirmed.append(when_reached(history, GOAL, margin=0.0, whole=False).seconds)
    assert abs(np.mean(confirmed) / 10 - 1) < abs(np.mean(first) / 10 - 1)
    assert abs(np.mean(confirmed) / 10 - 1) <= most + 0.1
