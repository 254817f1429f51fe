"""Predict the speed of more workers: a model of a training step with its computation and gradient reduction.

Equation
    A ring of n workers reduces B bytes in 2 (n - 1) (B / (n bandwidth) + latency): each passes on 2 (n - 1) pieces of B / n.
    With g workers per host, the pieces are first reduced within each host, then between hosts, then distributed within.
    Gradients are reduced in buckets, each once backward has filled it and the previous one is done:
    end(i) = max(filled(i), end(i - 1)) + reduce(i). A step takes max(forward + backward, end(last)) + update.

Source
    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", J. Parallel Distrib. Comput. 69(2) (the ring).
    Li et al. 2020, "PyTorch Distributed", VLDB 13(12), sections 3.2 and 4.2 (buckets, overlap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

FIRST_BUCKET_MIB = 1.0  # DDP's first bucket is small, so that reduction starts early


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network link: bandwidth in each direction, and the latency of a message."""

    bytes_per_second: float
    latency_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The times of one worker's step on its share, in seconds.

    ``buckets`` are bytes of gradients in the order in which they fill, ``filled`` the fraction of backward, in [0, 1], after
    which each is full; None: proportional to the bytes.
    """

    forward_seconds: float
    backward_seconds: float
    update_seconds: float
    buckets: Sequence[int]
    filled: Sequence[float] | None = None

    @property
    def compute_seconds(self) -> float:
        """The step without communication."""
        return self.forward_seconds + self.backward_seconds + self.update_seconds


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """``hosts`` with ``per_host`` workers each, connected by ``between``, and inside a host by ``within`` (None: the same
    link)."""

    hosts: int
    per_host: int
    between: Link
    within: Link | None = None

    def all_reduce_seconds(self, num_bytes: float) -> float:
        """Time of an all-reduce over all workers.

        Example:
            >>> link = Link(bytes_per_second=1e9)
            >>> Cluster(hosts=4, per_host=1, between=link).all_reduce_seconds(1e9)
            1.5
        """
        # The workers of a host reduce their pieces between hosts in parallel, sharing its one link.
        inside = ring_seconds(num_bytes, self.per_host, self.within or self.between)
        return inside + ring_seconds(num_bytes, self.hosts, self.between)


def ring_seconds(num_bytes: float, workers: int, link: Link) -> float:
    """Time of a ring all-reduce: 2 (n - 1) (B / (n bandwidth) + latency); 0 for one worker."""
    return 2 * (workers - 1) * (num_bytes / (workers * link.bytes_per_second) + link.latency_seconds)


def step_seconds(cost: StepCost, cluster: Cluster) -> float:
    """Time of a step, with gradient reduction overlapping backward.

    Example:
        >>> cost = StepCost(forward_seconds=1.0, backward_seconds=2.0, update_seconds=0.0, buckets=[500, 500])
        >>> step_seconds(cost, Cluster(hosts=2, per_host=1, between=Link(bytes_per_second=250)))
        6.0
    """
    shares = cost.filled
    if shares is None:
        shares = [so_far / sum(cost.buckets) for so_far in accumulate(cost.buckets)]
    end = 0.0
    for size, share in zip(cost.buckets, shares, strict=True):
        end = max(cost.forward_seconds + cost.backward_seconds * share, end) + cluster.all_reduce_seconds(size)
    return max(cost.forward_seconds + cost.backward_seconds, end) + cost.update_seconds


def efficiency(cost: StepCost, cluster: Cluster) -> float:
    """Throughput relative to as many workers without communication, in (0, 1]."""
    return cost.compute_seconds / step_seconds(cost, cluster)


def bucket_bytes(
    sizes: Sequence[int], filled: Sequence[float] | None = None, bucket_mib: float = 25.0
) -> tuple[list[int], list[float] | None]:
    """Bytes per bucket, and when each is full if that is known per gradient: ``buckets`` and ``filled`` of a StepCost.

    ``sizes`` are bytes of gradients, in the order in which backward computes them.

    Example:
        >>> bucket_bytes([600_000, 600_000, 30_000_000, 100])
        ([1200000, 30000000, 100], None)
    """
    buckets: list[list[int]] = []
    for position in range(len(sizes)):
        most = FIRST_BUCKET_MIB if len(buckets) <= 1 else bucket_mib
        if not buckets or sum(sizes[at] for at in buckets[-1]) >= most * 2**20:
            buckets.append([])
        buckets[-1].append(position)
    when = None if filled is None else [max(filled[at] for at in bucket) for bucket in buckets]
    return [sum(sizes[at] for at in bucket) for bucket in buckets], when


def split_over_hosts(workers: int, per_host: int) -> tuple[int, int]:
    """Hosts and workers per host for a number of workers: as few hosts as possible, with equally many each."""
    hosts = math.ceil(workers / per_host)
    while workers % hosts:
        hosts += 1
    return hosts, workers // hosts
