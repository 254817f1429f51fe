"""Cost and effect of each trick in a race: a small ResNet on a part of Fashion-MNIST, all arms, five seeds.

``python benchmarks/tricks.py`` writes ``results/tricks.json``, the source of the figures of ``heptane tricks``. The task was
chosen with seeds that do not race (``benchmarks/LOG.md``). Label smoothing, mixup and mixed precision have their defaults;
the learning rate is scaled from half the batch size to the batch size. Data parallel and transfer need other tasks:
``benchmarks/scaling.py`` and ``benchmarks/transfer_time.py``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import heptane as hp
from heptane.cli.demonstration.course import TRICKS, DemoRace
from heptane.cli.loading import describe_data

COURSE = DemoRace("fashion-mnist", 10_240, 4_000, 14, 0.85, plain_epochs=5.5, all_epochs=3.5, limit_epochs=14)
RESULT = Path(__file__).parent / "results" / "tricks.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=5)
    flags = parser.parse_args()
    data = hp.load_data("fashion-mnist")
    train, valid = COURSE.parts(data)
    tricks = replace(
        TRICKS,
        label_smoothing=hp.LabelSmoothing(),
        mixup=hp.Mixup(),
        lr_scaling=hp.LRScaling(reference_batch=COURSE.batch_size // 2),
        mixed_precision=hp.MixedPrecision(),
    )
    about = {
        "command": "python benchmarks/tricks.py",
        "data": describe_data(data) | {"num_train": len(train[1]), "num_valid": len(valid[1])},
        "model": {"name": f"small ResNet (width {COURSE.width})"},
        "settings": {"optimizer": "sgd", "lr": COURSE.lr, "batch_size": COURSE.batch_size},
    }
    result = COURSE.request(data, tricks, seeds=flags.seeds, about=about).race(progress=True)
    RESULT.write_text(json.dumps(result.record, indent=1) + "\n")
    print(result.summary)


if __name__ == "__main__":
    main()
