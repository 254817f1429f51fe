"""Speed-up by ImageNet weights to the best accuracy of training from scratch, with 100 labels per class.

Runs the arms "scratch" and "last block" of ``recipes/images.py`` on seeds that were not used to choose them. ``python
benchmarks/transfer_time.py`` writes ``results/transfer_time.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import images

# isort: split
from results import save, spread

FIRST_SEED = 10
PER_CLASS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = [*range(FIRST_SEED, FIRST_SEED + parser.parse_args().seeds)]
    last_block = next(arm for arm in images.ARMS if arm.name == "last block")
    at = list(images.LABELS).index(PER_CLASS)
    train = images.images(PER_CLASS)
    valid = images.first(images.data().valid, images.VALID_IMAGES)
    test = images.first(images.data().test, images.TEST_IMAGES)
    found: dict[str, list[dict[str, float]]] = {images.SCRATCH.name: [], last_block.name: []}
    for seed in seeds:
        goal = 0.0
        for arm in (images.SCRATCH, last_block):
            result = images.train_arm(arm, arm.epochs[at], train, valid, test, seed)
            goal = goal or max(entry["valid_accuracy"] for entry in result.history)
            found[arm.name].append(images.measured(result, goal))
            print(f"{arm.name}, seed {seed}: {found[arm.name][-1]}", flush=True)
    arms = {name: {metric: spread([run[metric] for run in runs]) for metric in runs[0]} for name, runs in found.items()}
    scratch, mine = (arms[name]["seconds to scratch's best"]["values"] for name in found)
    save(
        "transfer_time",
        "how much sooner does the last block, trained on kept features, reach scratch's best, at 100 labels per class?",
        {
            "seeds": seeds,
            "arms": arms,
            "times_faster": spread([theirs / float(own) for theirs, own in zip(scratch, mine, strict=True)]),
            "test_accuracy_gained": spread(
                [b["test accuracy"] - a["test accuracy"] for a, b in zip(*found.values(), strict=True)]
            ),
        },
    )


if __name__ == "__main__":
    main()
