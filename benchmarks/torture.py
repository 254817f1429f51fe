"""Bitwise resume of runs that are killed with SIGKILL at random moments: ``make torture``.

Each run is a forked process (two for several workers) that trains for a second and saves every few steps. It is
killed at random moments, also while it writes, and restarted with ``resume=True`` until it ends. Parameters,
optimizer state, history and metrics are compared bitwise with those of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what is imported at first use, a fork has then
import torch.profiler
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

import heptane as hp
from heptane import assemble
from heptane.core.fit_options import with_extras
from heptane.core.precision.step import Scaled
from heptane.distributed import sharding  # noqa: F401 - imported at first use too
from heptane.report import html
from heptane.session.checkpoints.checkpoint import find_newest
from heptane.session.run_folder import RunFolder
from results import save

SAMPLES, CLASSES, EPOCHS, PATIENCE_SECONDS = 60, 3, 6, 60.0
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
adamw = partial(torch.optim.AdamW, lr=0.01)


class Noisy(Dataset[Any]):
    """A data set that draws random numbers when it is read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, y = samples()
        return x[index] + 0.1 * torch.randn(x[index].shape), int(y[index])


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 1, 4, 4, generator=draw), torch.randint(0, CLASSES, (SAMPLES,), generator=draw)


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), 8, shuffle=True, **settings)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    first = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
    return nn.Sequential(*first, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def pooled() -> torch.nn.Module:
    """A network for images of any size."""
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "adamw, accumulated, clipped": {"optimizer": adamw, "accumulate": 2, "clip_norm": 0.5},
    "cycle, mixup, smoothing": {
        "tricks": hp.Tricks(
            cyclical=hp.Cyclical(), mixup=hp.Mixup(alpha=0.4, cutmix_alpha=1.0), label_smoothing=hp.LabelSmoothing()
        )
    },
    "bf16, rate scaled": {
        "tricks": hp.Tricks(
            mixed_precision=hp.MixedPrecision(dtype="bf16", channels_last="on"),
            lr_scaling=hp.LRScaling(reference_batch=4, warmup_epochs=2),
        )
    },
    "unfrozen by and by": {"tricks": hp.Tricks(transfer=hp.Transfer(freeze=1, unfreeze_every_epochs=1.5))},
    "averaged weights": {"average_decay": 0.9, "optimizer": adamw},
    "a data set that draws": {"data": Noisy},
    "a loader": {"data": loader},
    "a loader with two processes": {"data": partial(loader, num_workers=2, multiprocessing_context="fork")},
    "numbers that are not finite": {"data": lambda: spoilt(), "on_nan": "skip"},
    "rewound": {"data": lambda: spoilt(), "on_nan": "rewind"},
    "fp16 that overflows": {"scaled": True},
    "augmented, small at first": {
        "model": lambda: pooled(),
        "augment": hp.CropFlip(),
        "resize": hp.ProgressiveResize(size=3),
    },
    "two workers": {"workers": 2, "tricks": hp.Tricks(data_parallel=hp.DataParallel(), mixup=hp.Mixup(alpha=0.4))},
    "two workers, sharded": {
        "workers": 2,
        "optimizer": adamw,
        "average_decay": 0.9,
        "tricks": hp.Tricks(data_parallel=hp.DataParallel(strategy="fsdp"), cyclical=hp.Cyclical()),
    },
}


def spoilt() -> DataLoader[Any]:
    """Data with a NaN in one batch of each epoch."""

    class Spoilt(Noisy):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            x, y = super().__getitem__(index)
            return (x * torch.nan if index == 13 else x), y

    return DataLoader(Spoilt(), 8, generator=torch.Generator().manual_seed(4), shuffle=True)


def train(case: dict[str, Any], folder: Path) -> dict[str, str]:
    """Train or resume; returns digests of the final state."""
    settings = {key: value for key, value in case.items() if key not in ("data", "workers", "model", "scaled")}
    if case.get("scaled"):  # on a CPU heptane refuses fp16, since it is slow; the arithmetic is there

        def choose(assembly: Any) -> None:
            assembly.precision = Scaled(torch.float16, "cpu", 2.0**24, 5, 1.0)

        assemble._Assembly.choose_precision = choose
    data = case.get("data", samples)()
    valid = tuple(part[:21] for part in samples())
    result = hp.fit(
        case.get("model", network)(),
        data,
        valid,
        test=valid,
        epochs=EPOCHS,
        batch_size=None if isinstance(data, DataLoader) else 8,
        run_dir=folder,
        resume=True,
        device="cpu",
        **with_extras({"optimizer": sgd, "checkpoint_every": 3, "evaluate_every_epochs": 0.75, **settings}),
    )
    saved, _ = find_newest(RunFolder.checkpoints_of(folder))
    assert saved is not None
    history = [{key: value for key, value in record.items() if "seconds" not in key} for record in result.history]
    kept = {name: saved.facts[name] for name in ("step", "optimizer", "average", "precision", "skipped", "faults", "meters")}
    return {
        "parameters": digest([value for _, value in sorted(result.model.state_dict().items())]),
        "state": hashlib.sha256(json.dumps([kept, parts(saved)]).encode()).hexdigest(),
        "history": hashlib.sha256(json.dumps(history).encode()).hexdigest(),
        "metrics": json.dumps([result.metrics, result.steps]),
    }


def parts(saved: Any) -> list[Any]:
    """Digests of a checkpoint's tensors, or of its shards."""
    found = []
    for name in sorted(saved.files):
        content = load_file(saved.path / name)
        found += [(name[:11], key, digest([value])) for key, value in content.items()]
    return sorted(found)


def digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(
            tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor).encode()
        )
    return found.hexdigest()


def start(case: dict[str, Any], folder: Path, answer: Path) -> list[int]:
    """Fork the workers of a run; the first writes ``answer`` when it ends."""
    workers, pids = case.get("workers", 1), []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(workers):
        pid = os.fork()
        if pid == 0:
            _child(case, folder, answer, rank, workers, port)
        pids.append(pid)
    return pids


def _child(case: dict[str, Any], folder: Path, answer: Path, rank: int, workers: int, port: int) -> None:
    log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setpgid(0, 0)
    try:
        torch.set_num_threads(1)
        if workers > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(workers),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        found = train(case, folder)
        if rank == 0:
            answer.with_suffix(".part").write_text(json.dumps(found))
            os.replace(answer.with_suffix(".part"), answer)
        sys.stdout.flush()
        if workers > 1:
            torch.distributed.barrier()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def kill(pids: list[int]) -> None:
    """Kill the processes and their children."""
    for pid in pids:
        for end in (lambda pid=pid: os.killpg(pid, signal.SIGKILL), lambda pid=pid: os.kill(pid, signal.SIGKILL)):
            try:
                end()
            except (ProcessLookupError, PermissionError):
                continue
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue


def ended(pids: list[int], seconds: float) -> bool:
    """Whether all processes end within ``seconds``; those that ended are removed from ``pids``."""
    until = time.monotonic() + seconds
    while pids:
        for pid in list(pids):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pids.remove(pid)
        if pids and time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def undisturbed(case: dict[str, Any], folder: Path) -> tuple[dict[str, str], float]:
    """Final state and seconds of an uninterrupted run."""
    began = time.monotonic()
    answer = folder / "answer.json"
    folder.mkdir()
    pids = start(case, folder / "run", answer)
    done = ended(pids, PATIENCE_SECONDS)
    kill(pids)
    if not done or not answer.exists():
        raise RuntimeError(answer.with_suffix(".log").read_text()[-3000:])
    return json.loads(answer.read_text()), time.monotonic() - began


def tortured(case: dict[str, Any], folder: Path, seconds: float, draw: random.Random) -> tuple[dict[str, str], int]:
    """Final state of a run that is killed repeatedly, and the number of kills."""
    folder.mkdir()
    answer, kills = folder / "answer.json", 0
    for _ in range(draw.randint(1, 4)):
        pids = start(case, folder / "run", answer)
        all_of_them = list(pids)
        done = ended(pids, draw.uniform(0, 1.1) * seconds)
        draw.shuffle(all_of_them)
        kill([pid for pid in all_of_them if pid in pids])
        kills += not done
    pids = start(case, folder / "run", answer)
    done = ended(pids, PATIENCE_SECONDS)
    kill(pids)
    if not done or not answer.exists():
        raise RuntimeError(answer.with_suffix(".log").read_text()[-3000:])
    return json.loads(answer.read_text()), kills


def torture(runs: int, seed: int = 0, say: Callable[[str], None] = lambda _: None, report: bool = True) -> dict[str, Any]:
    """``runs`` runs, the cases in turn; how often each was killed, and what came out different. Without ``report`` they draw
    none, which takes longer than they train."""
    if not report:
        html.write_report = lambda record, path, pictures=None: path.write_text("page")
    draw, wrong, kills = random.Random(seed), [], []
    root = Path(tempfile.mkdtemp(prefix="heptane-torture-"))
    gc.freeze()  # the forked runs need not copy what was imported, to collect it
    names = list(CASES)[: max(1, min(runs, len(CASES)))] if runs < len(CASES) else list(CASES)
    wanted: dict[str, tuple[dict[str, str], float]] = {}
    try:
        for index in range(runs):
            name = names[index % len(names)]
            if name not in wanted:
                wanted[name] = undisturbed(CASES[name], root / f"whole-{index}")
            found, times = tortured(CASES[name], root / str(index), wanted[name][1], draw)
            different = [key for key, value in wanted[name][0].items() if found[key] != value]
            kills.append(times)
            if different:
                wrong.append({"run": index, "case": name, "different": different})
            verdict = f"DIFFERS: {', '.join(different)}" if different else "equal"
            say(f"{index + 1}/{runs} {name}: killed {times} times, {verdict}")
            shutil.rmtree(root / str(index), ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {
        "runs": runs,
        "cases": names,
        "killed": sum(kills),
        "equal": runs - len(wrong),
        "different": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    found = torture(flags.runs, flags.seed, lambda line: print(line, flush=True))
    save(
        "torture",
        "do runs that are killed at random moments and resumed end bitwise equal to one that was never stopped",
        found,
    )
    sys.exit(found["equal"] != found["runs"])


if __name__ == "__main__":
    main()
