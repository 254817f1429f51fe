"""A run killed with SIGKILL at random moments and resumed ends bitwise where one that was never stopped does; 20 of them.

``make torture`` does 200 (``benchmarks/results/torture.json``).
"""

from __future__ import annotations

from tests.workers import alone


def test_twenty_runs_that_are_killed_and_resumed_end_equal_bit_for_bit() -> None:
    found = alone("import torture; print(json.dumps(torture.torture(20, seed=1, report=False)))")
    assert found["equal"] == found["runs"] == 20, found["different"]
    assert found["killed"] >= 15
