"""Cost of two workers on one machine: ``python benchmarks/scaling.py``.

The small ResNet of the demo with one global batch. One worker with two threads and two workers with one thread each
run in turn. A worker's step is divided into compute (DDP with a hook that sends nothing), the all-reduce alone, the
wait for the other worker, and the part of both that does not overlap with compute.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.distributed.launch import launch
from heptane.distributed.workers import this_worker
from heptane.pretrained.models import resnet
from results import save, spread

BATCH, STEPS, WARM_UP, ROUNDS, THREADS, GOAL = 256, 24, 4, 5, 2, 0.97


def main() -> None:
    torch.set_num_threads(THREADS)
    one, two, parts = [], [], []
    for _ in range(ROUNDS):
        one += launch(seconds, {"threads": THREADS}, 1)["full"]
        found = launch(seconds, {"threads": THREADS // 2}, 2)
        two += found.pop("full")
        parts.append(found)
        print(f"one worker {statistics.median(one):.4f} s a step, two {statistics.median(two):.4f} s", flush=True)
    ratio = statistics.median(one) / statistics.median(two)
    shares = {name: spread([part[name] for part in parts]) for name in parts[0]}
    content = {
        "batch": BATCH,
        "rounds": ROUNDS,
        "step_seconds": {"1 worker, 2 threads": spread(one), "2 workers, 1 thread each": spread(two)},
        "of_a_step_of_two_workers": shares,
        "throughput_ratio": ratio,
        "goal": {"at_least": GOAL, "met": ratio >= GOAL},
    }
    save("scaling", "throughput of 2 workers of 1 thread over 1 worker of 2 threads, small ResNet", content)
    print(f"two workers reach {ratio:.3f} of the throughput of one")


def seconds(threads: int) -> dict[str, Any]:
    """Seconds of the parts of this worker's steps; a single worker has only whole steps."""
    torch.set_num_threads(threads)
    full = timed(None)
    if this_worker().size == 1:
        return {"full": full}
    waits: list[float] = []
    compute = timed(send_nothing, waits)
    gradients = torch.zeros(sum(p.numel() for p in resnet().parameters()))
    sums = []
    for _ in range(STEPS):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        sums.append(time.perf_counter() - start)
    whole, alone = statistics.median(full), statistics.median(compute)
    return {
        "full": full,
        "compute_seconds": alone,
        "communication_seconds": statistics.median(sums),
        "waiting_seconds": statistics.median(waits),
        "not_hidden_seconds": whole - alone,
    }


def timed(hook: Callable[[Any], Any] | None, waits: list[float] | None = None) -> list[float]:
    """Seconds of each step; all workers start together."""
    torch.manual_seed(0)
    data = torch.randn(BATCH * 4, 1, 28, 28), torch.randint(0, 10, (BATCH * 4,))
    tricks = hp.Tricks(data_parallel=hp.DataParallel(), mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"))
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    run = assemble(resnet(), data, Plan.of(optimizer=sgd, epochs=(STEPS + WARM_UP) / 4, batch_size=BATCH), tricks=tricks)
    enter = run.enter

    def hooked(phase: Any) -> torch.nn.Module:
        wrapped = enter(phase)
        if hook:
            wrapped.register_comm_hook(None, lambda _, bucket: hook(bucket))
        return wrapped

    run.enter = hooked
    times = []
    start = time.perf_counter()
    for _ in steps(run):
        times.append(time.perf_counter() - start)
        if waits is not None:
            start = time.perf_counter()
            dist.barrier()
            waits.append(time.perf_counter() - start)
        start = time.perf_counter()
    return times[WARM_UP:]


def send_nothing(bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """A communication hook that leaves each worker its own gradients."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


if __name__ == "__main__":
    main()
