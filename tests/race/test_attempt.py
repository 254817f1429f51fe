"""The status of a run, also where steps were skipped or retried."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import sgd

import heptane as hp
from heptane.core.fit_options import Plan
from heptane.core.precision.step import Precision
from heptane.race.arms import Arm
from heptane.race.attempt import MISSED, REACHED, STOPPED, RaceSpec

PLAIN = Arm("plain", hp.Tricks())
PLANNED = 8  # steps: 4 in each of 2 epochs


def blobs(count: int = 128):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


class Spoiled(torch.nn.Linear):
    """Its output is not finite in the third training step."""

    def __init__(self) -> None:
        super().__init__(6, 2)
        self.steps = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        return super().forward(x) * (float("nan") if self.training and self.steps == 3 else 1.0)


class Retries(Precision):
    """As fp16 does: a step overflows, and is tried again."""

    tries = 0

    def step(self, *args, **kwargs):
        type(self).tries += 1
        if type(self).tries % 2:
            self.exhausted = False
            return False
        return super().step(*args, **kwargs)


def run(target: float, model=lambda: torch.nn.Linear(6, 2), **settings):
    course = RaceSpec(
        model=model,
        train=blobs(),
        valid=blobs(),
        test=None,
        metrics=None,
        plan=Plan.of(optimizer=sgd, epochs=2, batch_size=32, on_nan="skip", weights="last"),
        metric="valid_loss",
        target=target,
        seconds=None,
    )
    return course.run(PLAIN, 0, rate=1.0, epochs=2, **settings)


@pytest.fixture
def retried(monkeypatch):
    monkeypatch.setattr(Retries, "tries", 0)
    monkeypatch.setattr("heptane.assemble.Precision", Retries)


@pytest.mark.parametrize("limit", [None, 1e6])
def test_a_step_passed_over_for_nan_leaves_a_run_that_missed_missed(limit):
    attempt = run(0.0, Spoiled, max_seconds=limit)
    assert (attempt.steps["applied"], attempt.steps["nonfinite"]) == (PLANNED - 1, 1)
    assert (attempt.status, attempt.seconds) == (MISSED, None)


def test_a_step_passed_over_for_nan_leaves_a_run_that_reached_reached():
    assert run(10.0, Spoiled).status == REACHED


def test_a_run_that_the_clock_ends_is_stopped_though_a_step_was_passed_over():
    assert run(0.0, Spoiled, max_seconds=1e-9).status == STOPPED


@pytest.mark.usefixtures("retried")
@pytest.mark.parametrize("limit", [None, 1e6])
def test_steps_that_were_tried_again_leave_a_run_that_missed_missed(limit):
    attempt = run(0.0, max_seconds=limit)
    assert (attempt.steps["applied"], attempt.steps["skipped"]) == (PLANNED, PLANNED)
    assert attempt.status == MISSED


@pytest.mark.usefixtures("retried")
def test_steps_that_were_tried_again_do_not_make_a_stopped_run_one_that_missed(monkeypatch):
    """Applied and tried again come to more than the plan, and yet the clock ended it."""
    monkeypatch.setattr(Retries, "left", 3 * PLANNED, raising=False)
    monkeypatch.setattr(Retries, "step", many)
    attempt = run(0.0, max_seconds=1e-9)
    assert attempt.steps["applied"] + attempt.steps["skipped"] > PLANNED > attempt.steps["done"]
    assert attempt.status == STOPPED


def many(self, *args, **kwargs):
    if Retries.left:
        Retries.left -= 1
        self.exhausted = False
        return False
    return Precision.step(self, *args, **kwargs)
