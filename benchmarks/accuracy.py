"""Test accuracy of the built-in models on Fashion-MNIST, over seeds: ``python benchmarks/accuracy.py small|wide``.

Settings were chosen on the validation split. ``heptane train`` reads the test set once per run, at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from heptane.cli import main as heptane
from results import save, spread

RUNS = {
    "small": ["--model", "resnet", "--epochs", "4", "--progressive-size", "20"],
    "wide": ["--model", "resnet-wide", "--epochs", "16", "--augment", "flip"],
}
GOALS = {"small": 0.925, "wide": 0.940}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    command = ["train", "--data", "fashion-mnist", "--tricks", "recommended", *RUNS[flags.name]]
    records: list[dict[str, Any]] = []
    for seed in range(flags.seeds):
        with tempfile.TemporaryDirectory() as folder:
            if heptane([*command, "--seed", str(seed), "--out", folder]) != 0:
                raise SystemExit(f"seed {seed} failed")
            records.append(json.loads(Path(folder, "result.json").read_text()))
        report(flags.name, command, records)


def report(name: str, command: list[str], records: list[dict[str, Any]]) -> None:
    """Write the results so far after each seed, since a run takes an hour and a half."""
    test = spread([record["metrics"]["test_accuracy"] for record in records])
    save(
        name,
        f"the test accuracy of {' '.join(RUNS[name])} on Fashion-MNIST",
        {
            "train_command": "heptane " + " ".join(command),
            "seeds": list(range(len(records))),
            "test_accuracy": test,
            "valid_accuracy": spread([record["metrics"]["valid_accuracy"] for record in records]),
            "train_seconds": spread([record["seconds"]["train"] for record in records]),
            "wall_seconds": spread([record["seconds"]["wall"] for record in records]),
            "num_parameters": records[0]["model"]["num_parameters"],
            "tricks": [t["name"] for t in records[0]["tricks"] if t["on"]],
            "goal": {"mean_test_accuracy": GOALS[name], "met": test["mean"] >= GOALS[name]},
        },
    )


if __name__ == "__main__":
    main()
