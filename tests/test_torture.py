"""A run killed with SIGKILL at random moments and resumed ends bitwise where one that was never stopped does; 20 of them.

``make torture`` does 200 (``benchmarks/results/torture.json``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torture
print(json.dumps(torture.torture(20, seed=1, report=False)))
"""


def test_twenty_runs_that_are_killed_and_resumed_end_equal_bit_for_bit() -> None:
    # a process of its own, since it forks, which one that has computed may not
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT / "benchmarks")], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["equal"] == found["runs"] == 20, found["different"]
    assert found["killed"] >= 15
