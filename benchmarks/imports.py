"""Time to import heptane after torch, and time of ``heptane --help``."""

from __future__ import annotations

import subprocess
import sys
import time

from results import save, spread

ROUNDS = 15
CODE = {
    "torch": "import torch",
    "torch and heptane": "import torch, heptane",
    "heptane": "import heptane",
    "heptane --help": "import sys; sys.argv = ['heptane', '--help']; from heptane.cli import main; main()",
    "heptane train --help": "import sys; sys.argv = ['heptane', 'train', '--help']; from heptane.cli import main; main()",
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(ROUNDS):
        for name, code in CODE.items():
            times[name].append(seconds(code))
    added = spread(times["torch and heptane"])["median"] - spread(times["torch"])["median"]
    helped = spread(times["heptane --help"])["median"]
    save(
        "imports",
        "seconds of a fresh process, arms interleaved",
        {
            "rounds": ROUNDS,
            "seconds": {name: spread(values) for name, values in times.items()},
            "added_seconds": added,
            "goals": {"added_at_most": 0.1, "met": added <= 0.1, "help_at_most": 0.3, "help_met": helped <= 0.3},
        },
    )


if __name__ == "__main__":
    main()
