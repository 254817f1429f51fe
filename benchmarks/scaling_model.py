"""Accuracy of the step times that ``heptane.recommend.scaling`` predicts; needs root.

Two to four hosts are simulated by network namespaces on a bridge, with links throttled by ``tc``. Each host trains a
network of one wide layer under DDP. Three things are measured: the compute (DDP with a hook that sends nothing, so
its copies into buckets count; on all hosts at once, since they share the cores), the bandwidth and latency of the
link (by one message each way), and the step that is to be predicted. Published results are compared too, with the
assumptions that they need.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from heptane.recommend.scaling import Cluster, Link, StepCost, bucket_bytes, efficiency, step_seconds
from namespaces import address, network, start
from results import save
from scaling import send_nothing

HOSTS, MEGABITS = (2, 3, 4), (100, 300, 1000)
WIDTH, BATCH, STEPS = 1400, 64, 16
ERROR_GOAL, PUBLISHED_GOAL = 0.15, 0.10
PORT = 29511


def main() -> None:
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]))
        return
    rows = []
    for hosts in HOSTS:
        for megabits in MEGABITS:
            measured = run(hosts, megabits)
            keys = ("forward_seconds", "backward_seconds", "update_seconds", "buckets", "filled")
            cost = StepCost(**{key: measured[key] for key in keys})
            link = Link(bytes_per_second=measured["bytes_per_second"], latency_seconds=measured["latency"])
            predicted = step_seconds(cost, Cluster(hosts=hosts, per_host=1, between=link))
            error = predicted / measured["step"] - 1
            rows.append({"hosts": hosts, "megabits": megabits, "predicted": predicted, "error": error, **measured})
            print(
                f"{hosts} hosts, {megabits:5} Mbit/s: {measured['step']:.3f} s, predicted {predicted:.3f}: {error:+.1%}",
                flush=True,
            )
    worst = max(abs(row["error"]) for row in rows)
    points = list(published())
    goal = {"largest_error": ERROR_GOAL, "met": worst < ERROR_GOAL, "published_met": all(p["met"] for p in points)}
    what = "does the model of a step with several workers predict what is measured?"
    save("scaling_model", what, {"points": rows, "largest_error": worst, "published": points, "goal": goal})


def published() -> Iterator[dict[str, Any]]:
    """What others measured, and what the model says.

    Assumed, since they do not say: links carry 0.9 of their nominal speed, and a message takes 10 us; the forward pass of
    ResNet-50 takes as long as its backward pass; VGG-16 runs at 148 images a second on a Pascal GPU, a third of it forward.
    """
    sizes = [102_000_000 // 50] * 50
    resnet = StepCost(forward_seconds=0.12, backward_seconds=0.12, update_seconds=0.01, buckets=bucket_bytes(sizes)[0])
    eight, many = (Cluster(hosts=hosts, per_host=8, between=ethernet(50), within=NVLINK) for hosts in (1, 32))
    relative = step_seconds(resnet, eight) / step_seconds(resnet, many)
    yield point("Goyal et al. 2017, arXiv:1706.02677: ResNet-50, 8 to 256 GPUs, 50 Gbit/s, backward 0.12 s", 0.90, relative)
    # The dense layers hold 90% of the bytes and take 1% of the arithmetic: they are summed while backward goes on.
    dense, convolutions, seconds = [16_400_000, 67_100_000, 411_000_000], [58_800_000], 64 / 148
    when = [0.01, 0.01, 0.02, 1.0]
    times = {"forward_seconds": seconds / 3, "backward_seconds": seconds * 2 / 3, "update_seconds": 0.01}
    vgg = StepCost(**times, buckets=[*dense, *convolutions], filled=when)
    for workers, measured in ((128, 0.79), (512, 0.68)):
        ring = Cluster(hosts=workers, per_host=1, between=ethernet(25))
        what = f"Horovod's documentation, benchmarks: VGG-16, {workers} GPUs in one ring, 25 Gbit/s, 64 images each"
        yield point(what, measured, efficiency(vgg, ring))


def ethernet(gigabits: float) -> Link:
    return Link(bytes_per_second=0.9 * gigabits * 1e9 / 8, latency_seconds=1e-5)


NVLINK = Link(bytes_per_second=20e9, latency_seconds=1e-5)


def point(what: str, measured: float, predicted: float) -> dict[str, Any]:
    print(f"{what}: published {measured:.0%}, predicted {predicted:.0%}", flush=True)
    return {"what": what, "published": measured, "predicted": predicted, "met": abs(measured - predicted) <= PUBLISHED_GOAL}


# Hosts ----------------------------------------------------------------------------------------------------------------


def run(hosts: int, megabits: int) -> dict[str, Any]:
    """Measure one point; returns the results of rank 0."""
    with tempfile.TemporaryDirectory() as folder, network(hosts, megabits):
        answer = Path(folder, "answer.json")
        processes = []
        for rank in range(hosts):
            environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(hosts), "MASTER_ADDR": address(0)}
            environment |= {"MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
            processes.append(start(rank, [sys.executable, __file__, str(answer)], env=environment))
        codes = [process.wait(timeout=300) for process in processes]
        if any(codes):
            raise SystemExit(f"{hosts} hosts at {megabits} Mbit/s: exit codes {codes}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


# One host -------------------------------------------------------------------------------------------------------------


def work(answer: Path) -> None:
    """Measure link, compute and step on one rank."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    model = nn.parallel.DistributedDataParallel(inner)
    silent = nn.parallel.DistributedDataParallel(copy.deepcopy(inner))
    silent.register_comm_hook(None, lambda _, bucket: send_nothing(bucket))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(BATCH, WIDTH), torch.randint(0, 10, (BATCH,))

    def forward(network: nn.Module) -> torch.Tensor:
        network.zero_grad()
        return nn.functional.cross_entropy(network(x), y)

    def step() -> None:
        forward(model).backward()
        optimizer.step()

    latency, bytes_per_second = link()
    whole = median(step, skip=3)  # DDP makes its buckets anew after the first
    ahead = median(lambda: forward(silent).detach())
    both = median(lambda: forward(silent).backward(), skip=3)
    sizes = [p.numel() * 4 for p in inner.parameters()][::-1]
    buckets, filled = bucket_bytes(sizes, [0.05, 0.1, 0.95, 1.0])  # the last, small layer is done at once
    found = {
        "forward_seconds": ahead,
        "backward_seconds": max(both - ahead, 0.0),
        "update_seconds": median(optimizer.step),
        "buckets": buckets,
        "filled": filled,
        "step": whole,
        "bytes_per_second": bytes_per_second,
        "latency": latency,
    }
    if rank == 0:
        answer.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def link(size: int = 8 << 20) -> tuple[float, float]:
    """Latency and bytes per second between the first two ranks, by messages back and forth."""
    small, large = torch.zeros(1), torch.zeros(size // 4)
    times = []
    for message in (small, large):
        dist.barrier()
        trips = []
        for _ in range(6):
            start = time.perf_counter()
            if dist.get_rank() == 0:
                dist.send(message, 1)
                dist.recv(message, 1)
            elif dist.get_rank() == 1:
                dist.recv(message, 0)
                dist.send(message, 0)
            trips.append((time.perf_counter() - start) / 2)
        times.append(statistics.median(trips[1:]))
    return times[0], size / (times[1] - times[0]) if dist.get_rank() < 2 else 1.0


def median(function: Any, skip: int = 1) -> float:
    """Median seconds; all ranks start together."""
    times = []
    for _ in range(STEPS + skip):
        dist.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[skip:])


if __name__ == "__main__":
    main()
