"""Cost of a checkpoint, and of a checkpoint every 30 s: ``make checkpoint``.

The same steps run with and without checkpoints, in turn. The difference in wall time, divided by the number of
checkpoints, is the cost of one. It includes the writing thread, which takes time from a core that trains.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import heptane as hp
from heptane.pretrained.models import resnet, resnet_wide
from results import save, spread

ROUNDS, STEPS, EVERY, INTERVAL_SECONDS, GOAL = 5, 100, 10, 30.0, 0.02


def seconds(make: Callable[[], torch.nn.Module], batch: int, folder: Path, every: int) -> float:
    torch.manual_seed(0)
    data = torch.randn(batch * 4, 1, 28, 28), torch.arange(batch * 4) % 10
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    began = time.perf_counter()
    hp.fit(
        make(),
        data,
        optimizer=sgd,
        epochs=STEPS / 4,
        batch_size=batch,
        run_dir=folder,
        extras=hp.Extras(evaluate_every_epochs=STEPS / 4, checkpoint_every=every),
    )
    return time.perf_counter() - began


def main() -> None:
    found = {}
    for name, make, batch in (("small ResNet", resnet, 32), ("wide ResNet", resnet_wide, 8)):
        with_them, without = [], []
        for index in range(ROUNDS + 1):
            with tempfile.TemporaryDirectory() as folder:
                often = seconds(make, batch, Path(folder, "often"), EVERY)
                once = seconds(make, batch, Path(folder, "once"), STEPS)  # the last step is saved in any case
            if index:  # the first round warms up
                with_them.append(often)
                without.append(once)
        number = STEPS // EVERY - 1
        each = [(a - b) / number for a, b in zip(with_them, without, strict=True)]
        found[name] = {
            "parameters": sum(p.numel() for p in make().parameters()),
            "seconds_with": spread(with_them),
            "seconds_without": spread(without),
            "seconds_per_checkpoint": spread(each),
            "share_at_30_s": statistics.median(each) / INTERVAL_SECONDS,
        }
        print(f"{name}: {1e3 * statistics.median(each):.1f} ms a checkpoint, {found[name]['share_at_30_s']:.3%} at 30 s")
    save("checkpoint", "what a checkpoint costs, and checkpointing every 30 s", {"goal": GOAL, "models": found})


if __name__ == "__main__":
    main()
