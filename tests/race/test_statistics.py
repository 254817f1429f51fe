"""Student's t, sign tests, Holm, and shared noise: against tables and direct computation."""

import math

import numpy as np
import pytest

from heptane.race.statistics import holm, pooled_noise, sign_p, student_p, student_quantile


@pytest.mark.parametrize(
    ("p", "df", "t"),  # a printed table of Student's t, both sides together
    [
        (0.05, 1, 12.706),
        (0.05, 2, 4.303),
        (0.05, 4, 2.776),
        (0.05, 7, 2.365),
        (0.01, 1, 63.657),
        (0.01, 10, 3.169),
        (0.1, 30, 1.697),
        (0.001, 60, 3.460),
    ],
)
def test_quantiles_are_those_of_the_table(p, df, t):
    assert student_quantile(p, df) == pytest.approx(t, rel=2e-4)
    assert student_p(t, df) == pytest.approx(p, rel=2e-3)


def test_p_and_quantile_are_inverse_and_both_sides_count():
    for df in range(1, 40):
        assert student_p(student_quantile(0.003, df), df) == pytest.approx(0.003, rel=1e-9)
    assert student_p(-2.0, 5) == student_p(2.0, 5)
    assert student_p(0.0, 5) == 1.0


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(5, 0, 0.0625), (0, 10, 2 / 1024), (4, 1, 12 / 32), (2, 2, 1.0), (0, 0, 1.0)]
)
def test_sign_test_is_exact(wins, losses, p):
    assert sign_p(wins, losses) == p


def test_holm_steps_up_and_stops_at_the_first_that_is_not_rejected():
    assert holm([0.001, 0.02, 0.9], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.05])
    levels = holm([0.03, 0.001, 0.04], 0.05)  # 0.03 > 0.05 / 2: it and all behind it are tested at 0.025
    assert levels == pytest.approx([0.025, 0.05 / 3, 0.025])
    assert holm([], 0.05) == []


def test_noise_is_the_residual_of_arm_and_seed():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 3)) + np.arange(4)[:, None] * 10 + np.arange(3) * 100
    centred = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    noise = pooled_noise(table.tolist())
    assert noise.df == 6
    assert noise.variance == pytest.approx((centred**2).sum() / 6)
    assert np.mean(noise.of_arm) == pytest.approx(noise.variance)


def test_noise_with_gaps_is_that_of_least_squares():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 5))
    table[0, 1] = table[2, 3] = table[3, 0] = np.nan
    rows, columns = (~np.isnan(table)).nonzero()
    design = np.concatenate([np.eye(4)[rows], np.eye(5)[columns]], axis=1)
    values = table[rows, columns]
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    noise = pooled_noise(table.tolist())
    assert noise.df == 17 - 8
    assert noise.variance == pytest.approx((residual**2).sum() / 9)


def test_an_arm_and_a_seed_that_nothing_connects_cost_a_degree_of_freedom_each():
    nan = math.nan
    noise = pooled_noise([[1.0, 2.0, nan, nan], [2.0, 3.5, nan, nan], [nan, nan, 1.0, 2.0], [nan, nan, 3.0, 4.0]])
    assert noise.df == 2  # two tables of two by two
    assert pooled_noise([[1.0, nan], [nan, 2.0]]).df == 0
    assert pooled_noise([[nan, nan]]).df == 0
    assert pooled_noise([]).df == 0
