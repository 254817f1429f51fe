"""heptane against plain PyTorch and the other libraries: time to plain's best validation accuracy. ``make peers``.

1. The target: plain trains for ``--epochs`` with each of its rates; the best validation accuracy is the target.
2. Tuning, the same number of trials for every peer, with a seed that does not race: three rates, a factor of 3 apart; a peer
   whose schedule must know its length tries three lengths instead, with its documentation's rate.
3. The race: seed by seed, every peer in turn, to the target or for ``--epochs``.

Every finished run is a line of ``results/peers.jsonl`` and is not run again: an interrupted race goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import heptane as hp
from heptane.models import resnet

sys.path.insert(0, str(Path(__file__).parents[1]))
from loops import PEERS
from watch import Watch

from overhead import declare_torchvision
from results import FOLDER, save, spread

TUNING_SEED = 1000
LINES = FOLDER / "peers.jsonl"


class Runs:
    """The runs that are done, on disk, by what they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {self._key(found): found for found in map(json.loads, lines)}
        data = hp.load_data("fashion-mnist")
        assert data.valid is not None
        self.train, self.valid = data.train, data.valid

    def get(
        self, peer: str, rate: float, epochs: int, seed: int, target: float | None, limit: float | None
    ) -> dict[str, Any]:
        """A run, from disk if it is there."""
        wanted = {"peer": peer, "rate": rate, "epochs": epochs, "seed": seed, "target": target}
        key = self._key(wanted)
        if key not in self.done:
            found = {**wanted, **self._run(peer, rate, epochs, seed, target, limit)}
            self.done[key] = found
            with self.path.open("a") as file:
                file.write(json.dumps(found) + "\n")
            reached = found["seconds"]
            shown = f"{reached:.1f} s" if reached is not None else f"missed: best {found['best']}"
            print(f"{peer:12} rate {rate:<8.3g} epochs {epochs:<3} seed {seed:<5} {shown}", flush=True)
        return self.done[key]

    def warm_up(self, name: str) -> None:
        """Import the library and run a few steps, so that its first run does not pay for it."""
        few = (self.train[0][:256], self.train[1][:256])
        with contextlib.suppress(Exception):  # what fails will fail again, and be on record
            PEERS[name].loop(resnet(), few, PEERS[name].rate, 1, 0, Watch(few, None, None))

    def _run(
        self, peer: str, rate: float, epochs: int, seed: int, target: float | None, limit: float | None
    ) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = resnet()
        gc.collect()
        watch = Watch(self.valid, target, limit)
        try:
            PEERS[peer].loop(model, self.train, rate, epochs, seed, watch)
        except Exception as error:
            return {"seconds": None, "best": None, "curve": watch.curve, "failed": f"{type(error).__name__}: {error}"[:300]}
        best = max((accuracy for _, accuracy in watch.curve), default=None)
        return {"seconds": watch.reached, "best": best, "curve": watch.curve, "trained": watch.seconds}

    @staticmethod
    def _key(run: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(run[name] for name in ("peer", "rate", "epochs", "seed", "target"))


def rank(run: dict[str, Any]) -> tuple[float, float]:
    """Lower is better: sooner at the target; of two that missed it, nearer."""
    return (run["seconds"] if run["seconds"] is not None else float("inf"), -(run["best"] or 0.0))


def tune(runs: Runs, name: str, epochs: int, lengths: tuple[int, ...], target: float) -> tuple[float, int]:
    """The best of three trials."""
    peer = PEERS[name]
    trials = []
    choices = [(peer.rate, n) for n in lengths] if peer.planned else [(peer.rate * f, epochs) for f in (1.0, 1 / 3, 3.0)]
    for rate, length in choices:
        known = [trial["seconds"] for trial in trials if trial["seconds"] is not None]
        limit = min(known, default=None)
        trials.append(runs.get(name, rate, length, TUNING_SEED, target, limit))
    best = min(trials, key=rank)
    return best["rate"], best["epochs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="the longest a run may be")
    parser.add_argument("--lengths", default="3,4,6", help="of schedules that must know theirs")
    parser.add_argument("--only", default=",".join(PEERS), help="which peers")
    parser.add_argument("--lines", type=Path, default=LINES, help="where finished runs are kept")
    flags = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "torch"
    declare_torchvision()
    runs = Runs(flags.lines)
    lengths, names = tuple(int(n) for n in flags.lengths.split(",")), flags.only.split(",")
    for name in names:
        runs.warm_up(name)
    tries = [runs.get("plain", PEERS["plain"].rate * f, flags.epochs, TUNING_SEED, None, None) for f in (1.0, 1 / 3, 3.0)]
    target = max(found["best"] or 0.0 for found in tries)
    print(f"target: {target:.4f}, the best validation accuracy of plain in {flags.epochs} epochs")
    chosen = {name: tune(runs, name, flags.epochs, lengths, target) for name in names}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(flags.seeds):
        for name in names if seed % 2 == 0 else names[::-1]:
            results[name].append(runs.get(name, *chosen[name], seed, target, None))
    report(flags, target, chosen, results)


def report(flags: Any, target: float, chosen: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, ratios to heptane, and whether the goals are met; a run that missed the target is infinite."""
    times = {
        name: [r["seconds"] if r["seconds"] is not None else float("inf") for r in found] for name, found in results.items()
    }
    ours = statistics.median(times["heptane"])
    rows = {}
    for name, values in times.items():
        finite = [value for value in values if value != float("inf")]
        median = statistics.median(values)
        rows[name] = {
            "rate": chosen[name][0],
            "epochs": chosen[name][1],
            "seconds": spread(finite) if finite else None,
            "missed": len(values) - len(finite),
            "median_seconds": None if median == float("inf") else median,
            "times_heptane": None if float("inf") in (median, ours) else median / ours,
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
            "seeds": flags.seeds,
            "peers": rows,
            "goals": {name: {"at_least": least, "ratio": ratio} for name, (ratio, least) in goals.items()},
        },
    )
    for name, row in rows.items():
        print(f"{name:12} {row['median_seconds']} s, {row['times_heptane']} times heptane")


if __name__ == "__main__":
    main()
