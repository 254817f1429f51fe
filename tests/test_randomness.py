"""Randomness is a function of (seed, purpose, step), and of the worker for dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heptane.base.randomness import generator, manual_seed, seed_torch


def test_a_draw_can_be_drawn_again() -> None:
    first, again = generator(3, "mixup", 17).random(8), generator(3, "mixup", 17).random(8)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("other", [(4, "mixup", 17), (3, "order", 17), (3, "mixup", 18), (17, "mixup", 3)])
def test_seed_purpose_and_step_each_change_the_draw(other: tuple[int, str, int]) -> None:
    assert not np.array_equal(generator(3, "mixup", 17).random(8), generator(*other).random(8))


def test_golden_draw() -> None:
    # Recomputed: default_rng((0, crc32(b"order"), 0)). A change here changes every run's order of the data.
    assert generator(0, "order", 0).permutation(6).tolist() == [3, 4, 1, 0, 2, 5]


def test_no_two_of_many_steps_share_a_stream() -> None:
    seen = {tuple(generator(seed, "order", step).integers(0, 1 << 62, 2)) for seed in range(20) for step in range(50)}
    assert len(seen) == 1000


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> list[float]:
        seed_torch(*key)
        return torch.rand(4).tolist()

    assert draw(1, 2, 0) == draw(1, 2, 0)
    assert len({tuple(draw(*key)) for key in [(1, 2, 0), (2, 1, 0), (1, 3, 0), (1, 2, 1), (0, 0, 0)]}) == 5


def test_the_largest_seed_and_a_late_step_are_accepted() -> None:
    seed_torch(2**31, 10**9, 4095)
    assert torch.rand(1).isfinite().all()


def test_numpys_and_pythons_own_generators_are_left_alone() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    generator(0, "order", 0).random(3)
    seed_torch(0, 1)
    assert np.array_equal(before, np.random.get_state()[1])


def test_gpus_are_seeded_where_they_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    seed_torch(1, 2)
    assert seeds == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seed_torch(1, 2)
    assert seeds == [torch.initial_seed()]


@pytest.mark.parametrize("has_gpu", [False, True])
def test_all_devices_that_there_are_get_pytorchs_seed(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    manual_seed(7)
    assert torch.equal(torch.rand(3), wanted)
    assert seeds == [7] * has_gpu
