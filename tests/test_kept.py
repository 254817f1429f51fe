"""A step that is not applied leaves nothing behind, by whatever name the model keeps it."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import heptane as hp
from heptane.model.kept import Kept


class Averages(nn.Module):
    """Divides by a running size that it keeps in one of several ways; NaN once means NaN for ever."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.keep = nn.Linear(4, 3), keep
        if keep in ("assigned", "in place", "first made in forward"):
            self.register_buffer("m", None if keep == "first made in forward" else torch.ones(1))
        else:
            self.m: Any = {"tensor": torch.ones(1), "number": 1.0, "list": [torch.ones(1)], "deque": deque([1.0], 2)}[keep]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.detach().abs().mean()
        if self.keep in ("list", "deque"):
            self.m.append(0.9 * self.m[-1] + 0.1 * size)
            return self.layer(x) / self.m[-1]  # type: ignore[no-any-return]
        if self.keep == "in place":
            self.m.mul_(0.9).add_(0.1 * size)
        elif self.keep == "number":
            self.m = 0.9 * self.m + 0.1 * float(size)
        else:
            self.m = 0.9 * (1 if self.m is None else self.m) + 0.1 * size
        return self.layer(x) / self.m  # type: ignore[no-any-return]


KEEP = ["assigned", "in place", "first made in forward", "tensor", "number", "list", "deque"]


@pytest.mark.parametrize("keep", KEEP)
def test_one_bad_batch_costs_one_step(keep: str) -> None:
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    data = [(x[i], y[i]) for i in range(64)]
    data[20] = (torch.full((4,), torch.nan), y[20])
    loader = torch.utils.data.DataLoader(data, batch_size=16)  # type: ignore[arg-type]
    model = Averages(keep)
    applied = [
        step.applied for step in hp.train(model, loader, epochs=2, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    ]
    assert applied == [True, False, True, True] * 2
    value = model.m[-1] if keep in ("list", "deque") else model.m
    assert bool(torch.as_tensor(value).isfinite().all())


def test_a_step_that_was_passed_over_is_a_step_and_the_contract_says_so() -> None:
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    x[20] = torch.nan
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    model = nn.Linear(4, 3)
    weights, found = [], []
    for step in hp.train(model, loader, epochs=1, optimizer=lambda params: torch.optim.SGD(params, lr=0.1)):
        found.append((step.step, step.applied, bool(step.loss.isfinite())))
        weights.append(model.weight.detach().clone())
    assert found == [(1, True, True), (2, False, False), (3, True, True), (4, True, True)]
    assert [torch.equal(before, after) for before, after in pairwise(weights)] == [True, False, False]
    assert "also after one that was passed over" in str(hp.Step.__doc__)


def test_what_was_kept_comes_back_and_nothing_else_is_touched() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), Averages("assigned"))
    kept = Kept(model)
    for _ in range(2):  # a second time, after an applied step in which the buffer became another object
        buffer, value = model[1].m, model[1].m.clone()
        mean = model[0].running_mean.clone()
        kept.keep()
        model(torch.randn(8, 4))
        model[1].register_buffer("new", torch.ones(1))
        model[1].extra = 1.0
        model.eval()
        kept.put_back()
        assert model[1].m is buffer
        assert torch.equal(model[1].m, value)
        assert torch.equal(model[0].running_mean, mean)
        assert not hasattr(model[1], "new")
        assert not hasattr(model[1], "extra")
        assert not model.training, "modes are others' to put back"
        model.train()(torch.randn(8, 4))


def test_a_constant_is_copied_once() -> None:
    model = Averages("tensor")
    model.mask = torch.ones(1000)
    kept = Kept(model)
    kept.keep()
    first = kept._constant[id(model.mask)][2]
    model(torch.randn(8, 4))
    kept.keep()
    assert kept._constant[id(model.mask)][2] is first
    model.mask.zero_()
    kept.put_back()
    assert bool(model.mask.all())
