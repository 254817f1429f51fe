"""The contest of variants: interleaved, on few samples, with early elimination, within its budget."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from heptane.core.precision import comparison as variants
from heptane.core.precision.comparison import Comparison, TooSlow

CPU = torch.device("cpu")


class Fake:
    """Steps that take the seconds that they are told, per sample, on a clock of their own; ``load`` slows the wall only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], load: Any = None) -> None:
        self.seconds, self.load, self.calls = seconds, load or (lambda: 1.0), list[tuple[str, int]]()
        self.wall = self.cpu = 0.0
        self.over: Any = None
        monkeypatch.setattr(variants, "now", lambda: self.wall)
        monkeypatch.setattr(variants, "run_queue_seconds", lambda: self.wall - self.cpu)
        monkeypatch.setattr(variants, "_seconds", lambda device: self.cpu)

    def step(self, variant: str, rows: int) -> None:
        self.calls.append((variant, rows))
        seconds = self.seconds[variant]
        if seconds < 0:
            raise ValueError("it does not run")
        for _ in range(10):  # layers
            self.cpu += rows * seconds / 10
            self.wall += rows * seconds / 10 * self.load()
            if self.over and self.over():
                raise TooSlow

    @contextmanager
    def watched(self, over: Any) -> Iterator[None]:
        self.over = over
        try:
            yield
        finally:
            self.over = None


def run(fake: Fake, *, batch: int = 128, planned: float = 0.0) -> tuple[Any, Any]:
    names = list(fake.seconds)
    outcome = Comparison(fake, names, batch, planned, CPU)
    outcome.run()
    return outcome.fastest(), outcome


def test_it_is_measured_in_turn_on_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"plain": 0.001, "other": 0.00085})
    best, outcome = run(fake)
    assert best == "other"
    assert outcome.rows == 19
    timed = [name for name, rows in fake.calls if rows == 19][2:]
    assert timed[:4] == ["plain", "other", "other", "plain"]
    assert fake.wall < 0.5


def test_it_never_takes_more_than_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"plain": 1e-6, "other": 1e-7})
    assert run(fake, batch=5)[1].rows == 5


def test_who_cannot_win_is_out_after_two_rounds_if_it_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"plain": 0.001, "slow": 0.002, "near": 0.00095})
    best, outcome = run(fake)
    assert best == "plain"
    assert len(outcome.seconds["slow"]) == 2
    assert len(outcome.seconds["near"]) == variants.ROUNDS


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.6, 5.0, 100.0])
def test_the_budget_holds_also_where_a_step_alone_is_slow(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"plain": seconds, "other": 0.5 * seconds})
    best, _ = run(fake)
    layer = 2 * seconds / 10  # what cannot be interrupted
    assert fake.wall <= variants.BUDGET_SECONDS + layer
    assert best == ("plain" if seconds > 0.1 else "other")


def test_one_that_is_a_thousand_times_slower_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"plain": 0.001, "emulated": 1.0})
    best, outcome = run(fake)
    assert best == "plain"
    assert outcome.slow == {"emulated"}
    assert fake.wall < variants.BUDGET_SECONDS + 2.1


@pytest.mark.parametrize(("load", "most"), [(1.0, 1.0), (1.8, 1.8), (30.0, 2.0)])
def test_beside_other_work_the_budget_is_of_its_own_time_and_of_no_more_than_twice_that(
    load: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch, {"plain": 0.05, "other": 0.05}, load=lambda: load)
    run(fake)
    assert 0.8 * most < fake.wall <= most + 0.05 * 2 / 10 * load


def test_waiting_for_a_processor_is_what_the_system_says() -> None:
    assert 0.0 <= variants.run_queue_seconds() <= variants.run_queue_seconds()


def test_a_long_training_may_be_measured_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"plain": 0.4, "other": 0.2}
    assert run(Fake(monkeypatch, slow))[0] == "plain"
    fake = Fake(monkeypatch, slow)
    assert run(fake, planned=3000)[0] == "other"
    assert fake.wall <= variants.BUDGET_SHARE * 3000 * 0.4


@pytest.mark.parametrize("true", [{"plain": 0.001, "other": 0.0008}, {"plain": 0.001, "other": 0.001}])
def test_twenty_runs_beside_other_work_choose_alike(true: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(0)
    chosen = set()
    for _ in range(20):
        fake = Fake(monkeypatch, true, load=lambda: draws.choice([1, 1, 2, 6]))
        real = fake.step
        fake.step = lambda v, n, real=real, fake=fake: (  # type: ignore[method-assign, misc]
            real(v, n),
            setattr(fake, "cpu", fake.cpu + n * true[v] * draws.choice([0, 0.02, 0.04, 0.5])),
        )
        chosen.add(run(fake)[0])
    assert len(chosen) == 1
    assert chosen == ({"other"} if true["other"] < 0.001 else {"plain"})


def test_errors_are_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    best, outcome = run(Fake(monkeypatch, {"plain": 0.001, "bad": -1.0, "good": 0.0005}))
    assert best == "good"
    assert outcome.failed == {"bad": "it does not run"}
    best, outcome = run(Fake(monkeypatch, {"plain": -1.0, "good": 0.5e-3, "better": 0.2e-3}))
    assert best == "better", "where the plain form does not run, the fastest that does"
    assert run(Fake(monkeypatch, {"plain": -1.0, "bad": -1.0}))[0] == "plain"


def test_a_model_that_needs_a_whole_batch_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"plain": 0.0001, "other": 0.00005})
    real = fake.step

    def step(variant: str, rows: int) -> None:
        if rows < 64:
            raise ValueError("a whole batch, please")
        real(variant, rows)

    fake.step = step  # type: ignore[method-assign]
    best, outcome = run(fake, batch=64)
    assert (best, outcome.rows, outcome.failed) == ("other", 64, {})


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with variants.single_thread(CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
