"""``heptane train --plan-workers 2,8,64``: predict the speed of more workers from a few measured steps of this run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heptane.assemble import assemble
from heptane.base.clock import median_seconds
from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.base.tree import select_rows
from heptane.core.criterion import model_output
from heptane.core.fit_options import Plan
from heptane.core.run import Run
from heptane.recommend.scaling import Cluster, Link, StepCost, bucket_bytes, efficiency, split_over_hosts, step_seconds
from heptane.tricks import Tricks
from heptane.tricks.lr_scaling import LRScaling, scale_lr

REPEATS = 5


@dataclass(frozen=True)
class Row:
    """The prediction for a number of workers, with the batch per worker unchanged."""

    workers: int
    hosts: int
    batch_size: int
    learning_rate: float
    samples_per_second: float
    efficiency: float


def plan_workers(
    model: torch.nn.Module,
    train: Any,
    workers: Sequence[int],
    *,
    gigabits_per_second: float = 10.0,
    latency_microseconds: float = 50.0,
    per_host: int = 1,
    tricks: Tricks | None = None,
    how: Plan,
) -> tuple[list[Row], StepCost, str]:
    """Predict throughput from the measured computation of this run; nothing is trained and ``model`` is left unchanged.

    Args:
        model, train, tricks: as in :func:`heptane.fit`.
        how: how to train.
        workers: numbers of workers, each at least 1.
        gigabits_per_second, latency_microseconds: of the link between hosts, in each direction. Communication inside a host
            is taken to be free.
        per_host: workers per host, at least 1.

    Returns:
        A row per number, the measured step of one worker, and the rule that scales the learning rate.

    Example:
        >>> data = torch.randn(64, 4), torch.randint(0, 2, (64,))
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> how = Plan(optimizer=sgd, epochs=1, batch_size=32)
        >>> found, _, rule = plan_workers(torch.nn.Linear(4, 2), data, [1, 4], how=how)
        >>> [(row.workers, row.batch_size, row.learning_rate) for row in found], rule
        ([(1, 32, 0.1), (4, 128, 0.4)], 'linear rule, SGD family')
    """
    if not workers:
        raise InputError("plan-workers: expected at least one number, such as 2,8,64")
    for count in workers:
        check_range("plan-workers", count, 1, whole=True)
    check_range("plan-bandwidth", gigabits_per_second, 0, low_open=True)
    check_range("plan-latency", latency_microseconds, 0)
    check_range("plan-per-host", per_host, 1, whole=True)
    run = assemble(copy.deepcopy(model), train, how, tricks)
    cost, batch = measure(run), run.source.batch_size
    between = Link(bytes_per_second=gigabits_per_second * 1e9 / 8, latency_seconds=latency_microseconds * 1e-6)
    within = Link(bytes_per_second=1e15)
    rule, reason = LRScaling(reference_batch=batch).resolve_rule(run.optimizer)
    lr = run.base_rates[-1]
    found = []
    for count in workers:
        hosts, each = split_over_hosts(count, per_host)
        cluster = Cluster(hosts=hosts, per_host=each, between=between, within=within)
        scaled, per_second = scale_lr(lr, batch * count, batch, rule), count * batch / step_seconds(cost, cluster)
        found.append(Row(count, hosts, batch * count, scaled, per_second, efficiency(cost, cluster)))
    return found, cost, f"{rule} rule, {reason}"


def measure(run: Run) -> StepCost:
    """Time forward, backward and update on one batch and find the gradient buckets; trains ``run`` a little."""
    model, source = run.enter(run.phases[-1])
    sample = select_rows(source.sample(run.source.batch_size), slice(None))
    inputs, targets = run.place.inputs(sample[0]), run.place.targets(sample[1])

    def forward() -> torch.Tensor:
        with run.precision.autocast():
            return run.criterion.mean(run.precision.to_fp32(model_output(run.criterion, model, inputs, targets)), targets)

    def both() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        run.precision.backward(forward())

    ahead = median_seconds(forward, repeats=REPEATS)
    back = max(median_seconds(both, repeats=REPEATS) - ahead, 0.0)
    update = median_seconds(lambda: run.precision.step(run.optimizer), repeats=REPEATS)
    order, filled = gradient_times(run, lambda: run.precision.backward(forward()))
    buckets, when = bucket_bytes([p.numel() * p.element_size() for p in order], filled, run.replicas.bucket_mib)
    return StepCost(forward_seconds=ahead, backward_seconds=back, update_seconds=update, buckets=buckets, filled=when)


def gradient_times(run: Run, both: Callable[[], None]) -> tuple[list[torch.nn.Parameter], list[float] | None]:
    """Parameters in the order in which backward computes their gradients, and the fraction of backward after which each is
    done.

    On a GPU only the order, since backward runs asynchronously.
    """
    order: list[torch.nn.Parameter] = []
    times: list[float] = []

    def note(parameter: torch.Tensor) -> None:
        order.append(parameter)  # type: ignore[arg-type]
        times.append(time.perf_counter())

    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(note) for parameter in trained]  # type: ignore[no-untyped-call]
    try:
        both()
    finally:
        for hook in hooks:
            hook.remove()
    if run.place.device.type != "cpu" or len(times) < 2:
        return order, None
    # When backward started is unknown: assume that the first gradient took as long as the average one.
    whole = (times[-1] - times[0]) * len(times) / (len(times) - 1)
    return order, [1 - (times[-1] - at) / max(whole, 1e-12) for at in times]
