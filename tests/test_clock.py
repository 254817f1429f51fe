"""The three clocks: what each counts."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from heptane.base import clock as clock_module
from heptane.base.clock import Clock, process_start


class Hands:
    """A time that moves only when told: for ``time`` inside the clock's module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    perf_counter = time


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(clock_module, "time", hands)
    return hands


def test_only_the_time_between_resume_and_pause_is_training(hands: Hands) -> None:
    clock = Clock()
    hands.now += 5
    clock.resume()
    hands.now += 2
    assert clock.train_seconds == 2
    clock.pause()
    hands.now += 7
    assert clock.train_seconds == 2
    clock.resume()
    hands.now += 0.5
    clock.pause()
    assert clock.read()["train"] == 2.5
    assert clock.read()["wall"] == 14.5


def test_resume_and_pause_twice_count_once(hands: Hands) -> None:
    clock = Clock()
    clock.resume()
    hands.now += 1
    clock.resume()
    hands.now += 1
    clock.pause()
    clock.pause()
    assert clock.train_seconds == 2


def test_wall_counts_from_the_start_given(hands: Hands) -> None:
    assert Clock(started=990.0).read()["wall"] == 10
    assert Clock().read()["wall"] == 0


def test_a_resumed_run_adds_what_it_used_before_but_not_the_time_between(hands: Hands) -> None:
    clock = Clock()
    clock.carry({"wall": 100.0, "train": 80.0, "cpu": 150.0})
    clock.resume()
    hands.now += 3
    clock.pause()
    found = clock.read()
    assert (found["wall"], found["train"]) == (103, 83)
    assert 149.9 < found["cpu"] < 160


def test_cpu_counts_work_and_not_sleep() -> None:
    clock = Clock()
    time.sleep(0.2)
    slept = clock.read()["cpu"]
    stop = time.process_time() + 0.2
    while time.process_time() < stop:
        pass
    assert slept < 0.15
    assert clock.read()["cpu"] - slept >= 0.15


def test_cpu_counts_finished_children() -> None:
    clock = Clock()
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert clock.read()["cpu"] >= 0.55


def test_the_process_started_before_its_first_line() -> None:
    code = "import time; t = time.time(); from heptane.base.clock import process_start; print(process_start(), t)"
    before = time.time()
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    started, first_line = map(float, answer.stdout.split())
    assert before - 0.1 <= started <= first_line + 0.02


def test_a_start_in_the_future_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module.os, "sysconf", lambda name: 1e-9)
    assert abs(process_start() - time.time()) < 5


def test_where_the_system_does_not_say_the_start_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr("builtins.open", refuse)
    assert abs(process_start() - time.time()) < 5
