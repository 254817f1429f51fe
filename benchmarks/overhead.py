"""Step time compared with other training loops, with the arms interleaved in random order.

Every arm trains the same network on the same tensors in memory with the same optimizer. The time of a step is the
time between two training calls of the network's ``forward``.

Memory placement differs between processes and changes a small step by up to a tenth. So the result is the median over
the rounds of several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp
from heptane.pretrained.models import resnet
from results import save, spread

SKIPPED_STEPS = 20
Batches = tuple[Tensor, Tensor]
KEPT: list[torch.library.Library] = []
MISSING = ["nms", "qnms", "qroi_align", "deform_conv2d", "_deform_conv2d_backward"]
MISSING += [f"{prefix}{kind}" for kind in ("roi_align", "roi_pool") for prefix in ("", "ps_")]
MISSING += [f"_{prefix}{kind}_backward" for kind in ("roi_align", "roi_pool") for prefix in ("", "ps_")]


class Timed(nn.Module):
    """A network that records when a training call of ``forward`` begins."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.times: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.times.append(time.perf_counter())
        out: Tensor = self.inner(x)
        return out


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def bare(model: nn.Module, data: Batches, batch: int, steps: int) -> None:
    """The bare step: indexed tensors, no loader, no metrics."""
    x, y = data
    optimizer, order = sgd(model.parameters()), torch.randperm(len(x))
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def plain(model: nn.Module, data: Batches, batch: int, steps: int) -> None:
    """A tutorial's loop."""
    optimizer, loss_function = sgd(model.parameters()), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*data), batch_size=batch, shuffle=True)
    for step, (x, y) in enumerate(loader):
        if step == steps:
            break
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()


def heptane(model: nn.Module, data: Batches, batch: int, steps: int, tricks: hp.Tricks | None = None) -> None:
    for event in hp.train(model, data, optimizer=sgd, epochs=1, batch_size=batch, tricks=tricks):
        if event.step == steps:
            break


def heptane_mixed(model: nn.Module, data: Batches, batch: int, steps: int) -> None:
    heptane(model, data, batch, steps, hp.Tricks(mixed_precision=hp.MixedPrecision()))


def declare_torchvision() -> None:
    """Its PyPI build does not import beside a CPU build of PyTorch: some operators are missing. Their schemas are enough."""
    library = torch.library.Library("torchvision", "DEF")
    KEPT.append(library)
    for name in MISSING:
        library.define(f"{name}(Tensor x) -> Tensor")


def lightning(model: nn.Module, data: Batches, batch: int, steps: int) -> None:
    """A LightningModule as in its documentation; logging, checkpoints and progress bar are off, in its favour."""
    import lightning as L

    class Task(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batches, _: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.model.parameters())

    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Task(), DataLoader(TensorDataset(*data), batch_size=batch, shuffle=True))


def accelerate(model: nn.Module, data: Batches, batch: int, steps: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = DataLoader(TensorDataset(*data), batch_size=batch, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model, sgd(model.parameters()), loader)
    for step, (x, y) in enumerate(loader):
        if step == steps:
            break
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(prepared(x), y)
        accelerator.backward(loss)
        optimizer.step()


def fastai(model: nn.Module, data: Batches, batch: int, steps: int) -> None:
    from fastai.callback.core import Callback, CancelFitException
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    from fastcore.basics import partial

    class Stop(Callback):
        def after_batch(self) -> None:
            if self.iter + 1 == steps:
                raise CancelFitException

    train = FastLoader(TensorDataset(*data), bs=batch, shuffle=True, num_workers=0)
    few = FastLoader(TensorDataset(data[0][:batch], data[1][:batch]), bs=batch, num_workers=0)
    optimizer = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)
    learner = Learner(DataLoaders(train, few), model, loss_func=nn.CrossEntropyLoss(), opt_func=optimizer, lr=0.05)
    learner.remove_cb(ProgressCallback)
    with learner.no_logging():
        learner.fit(1, cbs=[Stop()])


Arm = Callable[[nn.Module, Batches, int, int], None]
CASES: dict[str, dict[str, Any]] = {
    "mlp 784-64-10, batch 64": {
        "arms": [bare, plain, heptane, lightning, accelerate, fastai],
        "model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
        "batch": 64,
        "steps": 400,
        "processes": 6,
        "ours": "heptane",
        "goals": {"plain": 0.70, "lightning": 0.50, "fastai": 0.50, "accelerate": 0.55, "bare": 1.05},
    },
    "resnet, batch 256": {
        "arms": [plain, heptane_mixed],
        "model": lambda: resnet(10),
        "batch": 256,
        "steps": 40,
        "processes": 2,
        "ours": "heptane_mixed",
        "goals": {"plain": 0.60},
    },
}


def seconds_per_step(arm: Arm, case: dict[str, Any], data: Batches) -> float:
    """Mean step time of one arm in one round, without the first steps."""
    torch.manual_seed(0)
    model = Timed(case["model"]())
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arm(model, data, case["batch"], case["steps"])
    times = model.times[-case["steps"] :][SKIPPED_STEPS:]
    return (times[-1] - times[0]) / (len(times) - 1)


def measure(name: str, rounds: int, data: Batches) -> dict[str, list[float]]:
    """Step times of all arms in this process, one value per round."""
    case = CASES[name]
    seconds: dict[str, list[float]] = {arm.__name__: [] for arm in case["arms"]}
    for number in range(rounds + 1):
        # what ran just before leaves its caches and its holes in memory behind: no arm always follows the same one
        for arm in random.Random(f"{os.getpid()} {number}").sample(case["arms"], len(case["arms"])):
            taken = seconds_per_step(arm, case, data)
            if number:  # the first round is warm-up
                seconds[arm.__name__].append(taken)
    return seconds


def measure_in_new_processes(name: str, rounds: int, processes: int) -> dict[str, list[float]]:
    """Step times from several processes in sequence, since memory placement differs between them."""
    seconds: dict[str, list[float]] = {arm.__name__: [] for arm in CASES[name]["arms"]}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(processes):
            path = Path(folder, f"{number}.json")
            flags = ["--case", name, "--rounds", str(rounds), "--seconds", str(path)]
            subprocess.run([sys.executable, __file__, *flags], check=True)
            for arm, values in json.loads(path.read_text()).items():
                seconds[arm] += values
    return seconds


def judge(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Compare the ratios of medians with the goals."""
    case = CASES[name]
    ours = statistics.median(seconds[case["ours"]])
    ratios = {arm: ours / statistics.median(values) for arm, values in seconds.items() if arm != case["ours"]}
    for arm, values in seconds.items():
        print(f"{name:26} {arm:14} {1e6 * statistics.median(values):10.0f} us per step", flush=True)
    goals = {arm: {"at_most": most, "ratio": ratios[arm], "met": ratios[arm] <= most} for arm, most in case["goals"].items()}
    for arm, goal in goals.items():
        print(f"{'':26} / {arm:12} {goal['ratio']:10.3f} (goal {goal['at_most']})")
    return {
        "rounds": len(seconds[case["ours"]]),
        "processes": case["processes"],
        "num_parameters": sum(p.numel() for p in case["model"]().parameters()),
        "seconds_per_step": {arm: spread(values) for arm, values in seconds.items()},
        "ratios_of_medians": goals,
    }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "lightning", "accelerate", "fastai")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="in each process")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--seconds", type=Path, help="time --case in this process, and write the seconds here")
    flags = parser.parse_args()
    if flags.seconds:
        logging.getLogger("lightning").setLevel(logging.ERROR)
        declare_torchvision()
        seconds = measure(flags.case, flags.rounds, hp.load_data("fashion-mnist").train)
        flags.seconds.write_text(json.dumps(seconds))
        return
    chosen = [name for name in CASES if flags.case in (None, name)]
    cases = {name: judge(name, measure_in_new_processes(name, flags.rounds, CASES[name]["processes"])) for name in chosen}
    if flags.case is None:
        what = "seconds per training step, arms interleaved, in several processes one after another"
        save("overhead", what, {"versions": versions(), "cases": cases})


if __name__ == "__main__":
    main()
