"""The performance model of a step on many workers: sums by hand, overlap, limits."""

from dataclasses import replace

import pytest

from heptane.recommend.scaling import (
    Cluster,
    Link,
    StepCost,
    bucket_bytes,
    efficiency,
    ring_seconds,
    split_over_hosts,
    step_seconds,
)

COST = StepCost(forward_seconds=1.0, backward_seconds=2.0, update_seconds=0.5, buckets=[100, 300])


def flat(workers: int, speed: float, latency: float = 0.0) -> Cluster:
    return Cluster(hosts=workers, per_host=1, between=Link(bytes_per_second=speed, latency_seconds=latency))


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 64])
def test_a_ring_passes_on_2_n_minus_1_pieces_one_after_another(workers: int) -> None:
    link = Link(bytes_per_second=1e6, latency_seconds=0.01)
    pieces = sum(1e6 / workers / 1e6 + 0.01 for _ in range(2 * (workers - 1)))
    assert ring_seconds(1e6, workers, link) == pytest.approx(pieces)


def test_hosts_and_their_workers_are_two_rings() -> None:
    between, within = Link(bytes_per_second=1e6), Link(bytes_per_second=1e7)
    both = Cluster(hosts=4, per_host=2, between=between, within=within)
    assert both.all_reduce_seconds(1e6) == pytest.approx(ring_seconds(1e6, 2, within) + ring_seconds(1e6, 4, between))


def test_sums_are_hidden_behind_backward_but_for_the_last() -> None:
    # buckets are full at 1.5 s and 3 s; sums of 2 workers take 1 s and 3 s at 100 bytes a second
    assert step_seconds(COST, flat(2, 100)) == pytest.approx(3 + 3 + 0.5)
    # at 50 the first sum ends at 3.5, and the second begins there
    assert step_seconds(COST, flat(2, 50)) == pytest.approx(3.5 + 6 + 0.5)


def test_gradients_that_are_made_early_are_summed_early() -> None:
    early = replace(COST, filled=[0.0, 0.1])
    assert step_seconds(early, flat(2, 100)) == pytest.approx(1 + 1 + 3 + 0.5)


def test_a_worker_alone_or_without_gradients_only_computes_and_a_fast_link_costs_nearly_nothing() -> None:
    assert step_seconds(COST, flat(1, 1)) == COST.compute_seconds == 3.5
    frozen = StepCost(forward_seconds=1.0, backward_seconds=2.0, update_seconds=0.5, buckets=[])
    assert efficiency(frozen, flat(8, 1)) == 1
    assert efficiency(COST, flat(64, 1e12)) == pytest.approx(1)


def test_more_workers_and_slower_links_are_never_better() -> None:
    by_workers = [efficiency(COST, flat(workers, 500, 0.001)) for workers in (1, 2, 4, 8, 16)]
    by_speed = [efficiency(COST, flat(4, speed)) for speed in (1e2, 1e3, 1e4)]
    assert by_workers == sorted(by_workers, reverse=True)
    assert by_speed == sorted(by_speed)
    assert all(0 < value <= 1 for value in by_workers + by_speed)


def test_buckets_hold_all_bytes_in_order_and_the_first_is_small() -> None:
    sizes = [2 << 20] * 40
    buckets, when = bucket_bytes(sizes, [index / 40 for index in range(40)])
    assert sum(buckets) == sum(sizes)
    assert buckets == [2 << 20, 26 << 20, 26 << 20, 26 << 20]
    assert when == [0, 13 / 40, 26 / 40, 39 / 40]
    assert bucket_bytes([]) == ([], None)


@pytest.mark.parametrize(("workers", "per_host", "found"), [(8, 8, (1, 8)), (2, 8, (1, 2)), (64, 8, (8, 8)), (9, 8, (3, 3))])
def test_as_few_hosts_as_hold_them_all_alike(workers: int, per_host: int, found: tuple[int, int]) -> None:
    assert split_over_hosts(workers, per_host) == found
