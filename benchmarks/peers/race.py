"""Time of heptane, plain PyTorch and other libraries to plain's best validation accuracy: ``make peers``.

1. Tuning, on a seed that is not in the race, by accuracy and epochs, so the load of the machine does not matter.
   Loops that train alike share it (Lightning and plain; Keras and skorch). A constant learning rate is tuned over
   three values, a factor of 3 apart, with two epochs each. The target is the best validation accuracy of plain at its
   learning rate within ``--epochs``. A schedule that must know its length tries 3 and 4 epochs at the documented
   learning rate, and takes the shorter one that reaches the target, else 6.
2. The race, on an idle machine: seed by seed, each library in turn, until the target or ``--epochs``.

Each finished run is a line of ``results/peers.jsonl`` and is not repeated, so an interrupted race can be resumed.
``--tune-only`` stops before the race. Ratios compare runs with the same seed, so seeds may run on different days.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import heptane as hp
from heptane.base.environment import describe
from heptane.pretrained.models import resnet

sys.path.insert(0, str(Path(__file__).parents[1]))
from loops import PEERS
from watch import Watch

from overhead import declare_torchvision
from results import FOLDER, save, spread

TUNING_SEED, TUNING_EPOCHS, LENGTHS = 1000, 2, (3, 4, 6)
LINES = FOLDER / "peers.jsonl"


class Runs:
    """Finished runs on disk, by their settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {self._key(found): found for found in map(json.loads, lines)}
        data = hp.load_data("fashion-mnist")
        assert data.valid is not None
        self.train, self.valid = data.train, data.valid

    def get(self, peer: str, rate: float, epochs: int, seed: int, target: float | None) -> dict[str, Any]:
        """A run, from disk if it was finished before."""
        wanted = {"peer": peer, "rate": rate, "epochs": epochs, "seed": seed, "target": target}
        key = self._key(wanted)
        if key not in self.done:
            here = describe()
            about = {name: here[name] for name in ("cpu", "threads", "git_commit")}
            found = {**wanted, **about, **self._run(peer, rate, epochs, seed, target)}
            self.done[key] = found
            with self.path.open("a") as file:
                file.write(json.dumps(found) + "\n")
            reached = found["seconds"]
            shown = f"{reached:.1f} s" if reached is not None else f"best {found['best']} {found.get('failed', '')}"
            print(f"{peer:12} rate {rate:<8.3g} epochs {epochs:<3} seed {seed:<5} {shown}", flush=True)
        return self.done[key]

    def warm_up(self, name: str) -> None:
        """Import the library and run a few steps, so that its first run is not charged for this."""
        few = (self.train[0][:256], self.train[1][:256])
        with contextlib.suppress(Exception):  # what fails will fail again, and be on record
            PEERS[name].loop(resnet(), few, PEERS[name].rate, 1, 0, Watch(few, None))

    def _run(self, peer: str, rate: float, epochs: int, seed: int, target: float | None) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = resnet()
        gc.collect()
        watch = Watch(self.valid, target)
        try:
            PEERS[peer].loop(model, self.train, rate, epochs, seed, watch)
        except Exception as error:
            return {"seconds": None, "best": None, "curve": watch.curve, "failed": f"{type(error).__name__}: {error}"[:300]}
        best = max((accuracy for _, accuracy in watch.curve), default=None)
        return {"seconds": watch.reached, "best": best, "curve": watch.curve, "trained": watch.seconds}

    @staticmethod
    def _key(run: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(run[name] for name in ("peer", "rate", "epochs", "seed", "target"))


def tune(runs: Runs, name: str, target: float | None) -> tuple[float, int]:
    """Learning rate and planned epochs of a library; 0 epochs means no plan."""
    peer = PEERS[name]
    recipe = peer.trains_as or name
    if not peer.planned:
        tries = [runs.get(recipe, peer.rate * f, TUNING_EPOCHS, TUNING_SEED, None) for f in (1.0, 1 / 3, 3.0)]
        return max(tries, key=lambda found: found["best"] or 0.0)["rate"], 0
    for length in LENGTHS[:-1]:
        found = runs.get(recipe, peer.rate, length, TUNING_SEED, None)
        if target is not None and (found["best"] or 0.0) >= target:
            return peer.rate, length
    return peer.rate, LENGTHS[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="the longest a run may be")
    parser.add_argument("--only", default=",".join(PEERS), help="which peers")
    parser.add_argument("--lines", type=Path, default=LINES, help="where finished runs are kept")
    parser.add_argument("--tune-only", action="store_true", help="stop before the race")
    flags = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "torch"
    declare_torchvision()
    runs = Runs(flags.lines)
    names = flags.only.split(",")
    rate, _ = tune(runs, "plain", None)
    target = runs.get("plain", rate, flags.epochs, TUNING_SEED, None)["best"]
    print(f"target: {target:.4f}, the best validation accuracy of plain in {flags.epochs} epochs", flush=True)
    chosen = {name: tune(runs, name, target) for name in names}
    if flags.tune_only:
        print(chosen)
        return
    for name in names:
        runs.warm_up(name)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(flags.seeds):
        for name in names if seed % 2 == 0 else names[::-1]:
            rate, length = chosen[name]
            results[name].append(runs.get(name, rate, length or flags.epochs, seed, target))
        report(target, chosen, results)


def report(target: float, chosen: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, ratios to heptane, and whether the goals are met; a run that missed the target counts as infinite."""
    times = {
        name: [r["seconds"] if r["seconds"] is not None else math.inf for r in found] for name, found in results.items()
    }
    rows = {}
    for name, values in times.items():
        finite = [value for value in values if value != math.inf]
        paired = [value / ours for value, ours in zip(values, times["heptane"], strict=True) if ours != math.inf]
        ratio = statistics.median(paired) if paired else math.inf
        rows[name] = {
            "rate": chosen[name][0],
            "planned_epochs": chosen[name][1] or None,
            "seconds": spread(finite) if finite else None,
            "missed": len(values) - len(finite),
            "times_heptane": None if ratio == math.inf else ratio,
            "failed": [found["failed"] for found in results[name] if "failed" in found],
        }
    others = [
        row["times_heptane"] for name, row in rows.items() if name not in ("plain", "heptane") and row["times_heptane"]
    ]
    goals = {"plain": (rows["plain"]["times_heptane"], 10), "best peer": (min(others, default=None), 3)}
    save(
        "peers",
        "time to plain's best validation accuracy on Fashion-MNIST, small ResNet",
        {
            "target": target,
            "seeds": list(range(len(results["plain"]))),
            "peers": rows,
            "goals": {name: {"at_least": least, "ratio": ratio} for name, (ratio, least) in goals.items()},
        },
    )
    for name, row in rows.items():
        print(f"{name:12} {row['seconds'] and row['seconds']['median']} s, {row['times_heptane']} times heptane")


if __name__ == "__main__":
    main()
