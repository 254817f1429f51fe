"""A run killed with SIGKILL at random moments and resumed ends bitwise where one that was never stopped does.

``make torture`` does 200 (``benchmarks/results/torture.json``).
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.workers import alone

FEW = ["cycle, mixup, smoothing", "a loader with two processes", "rewound", "averaged weights", "two workers, sharded"]


def tortured(num_runs: int, only: str = "torture.CASES", epochs: int = 6) -> Any:
    cases = f"torture.CASES = {{name: torture.CASES[name] for name in {only}}}; torture.EPOCHS = {epochs}"
    return alone(f"import torture; {cases}; print(json.dumps(torture.torture({num_runs}, seed=1, report=False)))")


def test_a_run_of_each_kind_that_is_killed_and_resumed_ends_equal_bit_for_bit() -> None:
    found = tortured(5, str(FEW), epochs=2)
    assert found["equal"] == found["runs"] == 5, found["different"]
    assert found["killed"] >= 3


@pytest.mark.slow
def test_twenty_runs_that_are_killed_and_resumed_end_equal_bit_for_bit() -> None:
    found = tortured(20)
    assert found["equal"] == found["runs"] == 20, found["different"]
    assert found["killed"] >= 15
