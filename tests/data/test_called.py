"""A function as augmentation: its random draws depend on (seed, step) alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import fit, weights

import heptane as hp

IMAGES = torch.rand(40, 1, 4, 4), torch.arange(40) % 2


def noise(images: torch.Tensor) -> torch.Tensor:
    images += torch.randn_like(images) * (random.random() + np.random.rand())
    return images


def fit_with_noise(**settings: Any) -> hp.Result:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 2))
    return fit(model, IMAGES, IMAGES, **{"augment": noise, **settings})


def test_the_same_seed_gives_the_same_draws_and_another_others() -> None:
    first = weights(fit_with_noise())
    assert torch.equal(first, weights(fit_with_noise()))
    assert not torch.equal(first, weights(fit_with_noise(augment=None)))
    assert not torch.equal(first, weights(fit_with_noise(seed=1)))


def test_the_users_tensors_stay_as_they_were() -> None:
    before = IMAGES[0].clone()
    fit_with_noise()
    assert torch.equal(before, IMAGES[0])


def test_draws_leave_dropouts_alone() -> None:
    assert torch.equal(
        weights(fit_with_noise(augment=lambda images: images + 0 * torch.rand(1))), weights(fit_with_noise(augment=None))
    )


def test_a_resumed_run_sees_the_same(tmp_path: Path) -> None:
    fit_with_noise(run_dir=tmp_path, max_seconds=1e-9)
    assert torch.equal(
        weights(fit_with_noise(weights="last")), weights(fit_with_noise(run_dir=tmp_path, resume=True, weights="last"))
    )


def test_micro_batches_do_not_change_the_draws() -> None:
    model = {"augment": lambda images: images + torch.randn(len(images), 1, 1, 1)}
    seen: list[list[torch.Tensor]] = []
    for accumulate in (1, 3):
        shown: list[torch.Tensor] = []
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        net.register_forward_pre_hook(lambda m, args, shown=shown: shown.append(args[0]) if m.training else None)
        hp.fit(net, IMAGES, optimizer="sgd", lr=0.1, steps=2, batch_size=16, accumulate=accumulate, **model)
        seen.append(shown)
    assert torch.equal(torch.cat(seen[0]), torch.cat(seen[1]))


def test_what_is_no_batch_of_as_many_is_refused() -> None:
    for function in (lambda images: images[:3], lambda images: None):
        with pytest.raises(hp.InputError, match=r"augment returned .*: expected a function from a batch of inputs"):
            fit_with_noise(augment=function)
