"""Reproducibility on one machine: choice of precision, training time of equal runs, and kept budgets.

- ``precision``: the choice for the small ResNet at batch size 128, 64x64, in 20 new processes with an empty cache,
  while another process keeps one core busy: seconds of the measurement, and the choice.
- ``clock``: training seconds of three equal runs in one process.
- ``budget``: ``heptane train --budget`` on a folder of rendered letters: wall time over budget.
- ``dry_run``: seconds of ``heptane race --dry-run`` and ``heptane train --dry-run`` on that folder.

``python benchmarks/steady.py [--only precision,clock,budget,dry_run] [--tries N]`` writes ``results/steady.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from first_contact import make_letters
from results import save, spread

BUDGETS = ("60s", "120s")
ONE_CHOICE = """
import json, time, torch
import heptane as hp
from heptane.pretrained.models import resnet
from heptane.core.losses import CrossEntropy
from heptane.core.precision.choose import choose_precision
from heptane.model.warm_up import warm_up

torch.manual_seed(0)
model = resnet(in_channels=3)
batch = torch.randn(128, 3, 64, 64), torch.randint(0, 10, (128,))
warm_up("cpu")  # what a process pays once, of which the optimizer's imports are the most
began = time.perf_counter()
dtype, channels_last, why, _ = choose_precision(hp.MixedPrecision(), model, CrossEntropy(), batch, planned_steps=500)
print(json.dumps({"choice": [dtype, channels_last], "seconds": time.perf_counter() - began, "why": why}))
"""
EQUAL_RUNS = """
import json, torch
import heptane as hp
from heptane.pretrained.models import resnet

images, labels = torch.randn(2048, 1, 28, 28), torch.randint(0, 10, (2048,))
seconds = []
for _ in range(3):
    torch.manual_seed(0)
    result = hp.fit(resnet(), (images, labels), optimizer="sgd", epochs=2, batch_size=64)
    seconds.append(result.seconds)
print(json.dumps(seconds))
"""


def child(code: str, cache: str) -> Any:
    """The JSON in the last line that a program prints, run in its own process with this cache folder."""
    environment = {**os.environ, "HEPTANE_CACHE": cache}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def precision(tries: int, folder: Path) -> dict[str, Any]:
    """Choices of precision in new processes, next to a busy one."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = [child(ONE_CHOICE, str(folder / f"cache-{number}")) for number in range(tries)]
    finally:
        busy.kill()
        busy.wait()
    choices = [tuple(one["choice"]) for one in found]
    counts = [{"choice": list(choice), "times": choices.count(choice)} for choice in sorted(set(choices))]
    print(f"precision: {counts}, at most {max(one['seconds'] for one in found):.2f} s", flush=True)
    return {"choices": counts, "seconds": spread([one["seconds"] for one in found])}


def clock(folder: Path) -> dict[str, Any]:
    """Training time of three equal runs, in three processes each."""
    repeats = [child(EQUAL_RUNS, str(folder / "cache-clock")) for _ in range(3)]
    train = [[run["train"] for run in runs] for runs in repeats]
    print(f"clock: {train}", flush=True)
    first = [runs[0] / statistics.median(runs[1:]) for runs in train]
    return {"train_seconds": train, "first_over_others": spread(first)}


def command(arguments: list[str], folder: Path) -> float:
    """Wall seconds of a heptane command."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "heptane", *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"heptane {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def budget(folder: Path) -> dict[str, Any]:
    """Wall time of a run with a budget."""
    took = {}
    for text in BUDGETS:
        took[text] = command(["train", "--data", "letters", "--budget", text, "--out", f"run-{text}"], folder)
        print(f"budget {text}: {took[text]:.1f} s", flush=True)
    return {"commands": "heptane train --data letters --budget 60s | 120s", "wall_seconds": took}


def dry_run(folder: Path) -> dict[str, Any]:
    """Wall time of commands that only plan."""
    took = {}
    for name, more in (("train", []), ("race", ["--target", "0.9"])):
        took[name] = command([name, "--data", "letters", "--dry-run", "--out", f"dry-{name}", *more], folder)
    print(f"dry run: {took}", flush=True)
    return {"wall_seconds": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="precision,clock,budget,dry_run")
    parser.add_argument("--tries", type=int, default=20)
    flags = parser.parse_args()
    names = flags.only.split(",")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_letters(folder / "letters", 0)
        if "precision" in names:
            found["precision"] = precision(flags.tries, folder)
        if "clock" in names:
            found["clock"] = clock(folder)
        if "budget" in names:
            found["budget"] = budget(folder)
        if "dry_run" in names:
            found["dry_run"] = dry_run(folder)
    save("steady", "is what a machine decides, plans and reports steady?", {"seeds": [0], **found})


if __name__ == "__main__":
    main()
