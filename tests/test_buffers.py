"""A step that is not applied leaves no change in buffers or parameters."""

from __future__ import annotations

import copy
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import heptane as hp
from heptane.model.buffers import BufferSnapshot


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
    assert "also after one that was not applied" in str(hp.Step.__doc__)


def test_what_was_kept_comes_back_and_nothing_else_is_touched() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), Averages("assigned"))
    kept = BufferSnapshot(model)
    for _ in range(2):  # a second time, after an applied step in which the buffer became another object
        buffer, value = model[1].m, model[1].m.clone()
        mean = model[0].running_mean.clone()
        kept.save()
        model(torch.randn(8, 4))
        model[1].register_buffer("new", torch.ones(1))
        model[1].extra = 1.0
        model.eval()
        kept.restore()
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
    kept = BufferSnapshot(model)
    kept.save()
    first = kept._constant[id(model.mask)][2]
    model(torch.randn(8, 4))
    kept.save()
    assert kept._constant[id(model.mask)][2] is first
    model.mask.zero_()
    kept.restore()
    assert bool(model.mask.all())


class Files(torch.utils.data.Dataset[Any]):
    """64 samples, of which some cannot be read, and some are NaN."""

    def __init__(self, unreadable: range, nan: tuple[int, ...] = ()) -> None:
        self.x, self.y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        self.unreadable = unreadable
        self.x[list(nan)] = torch.nan

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        if index in self.unreadable:
            raise OSError("unreadable")
        return self.x[index], self.y[index]


class Overflows(nn.Module):
    """Its output is NaN in every third call of training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training and torch.is_grad_enabled()
        return self.layer(x) * (torch.nan if self.training and self.calls % 3 == 2 else 1.0)


@pytest.mark.parametrize(
    ("model", "unreadable", "steps", "applied"),
    [
        (nn.Linear(4, 3), range(16, 32), (3, 0, 1), [True, False, True, True]),  # a whole batch
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), range(17, 32), (3, 0, 1), [True, False, True, True]),
        (Overflows(), range(0), (3, 1, 0), [True, False, True, True]),
        (Overflows(), range(16, 32), (2, 1, 1), [True, False, False, True]),  # both
    ],
    ids=["unreadable", "BatchNorm", "not finite", "both"],
)
def test_a_step_that_is_not_applied_is_counted_by_its_reason(
    model: nn.Module, unreadable: range, steps: tuple[int, ...], applied: list[bool], tmp_path: Path
) -> None:
    loader = torch.utils.data.DataLoader(Files(unreadable), 16)
    settings: dict[str, Any] = {"optimizer": "sgd", "skip_bad": 20}
    result = hp.fit(copy.deepcopy(model), loader, epochs=1, run_dir=tmp_path, **settings)
    assert tuple(result.steps[name] for name in ("applied", "nonfinite", "left_out")) == steps
    assert sum(steps) == result.steps["planned"] == 4
    again = hp.fit(copy.deepcopy(model), loader, epochs=1, run_dir=tmp_path, resume=True, **settings)
    assert again.steps == result.steps, "counts are in the checkpoint"
    seen = list(hp.train(copy.deepcopy(model), loader, epochs=1, **settings))
    assert [step.applied for step in seen] == applied
    assert [bool(step.loss.isnan()) for step in seen] == [not one for one in applied]


def test_batches_left_out_are_no_steps_that_were_not_finite() -> None:
    loader = torch.utils.data.DataLoader(Files(range(16, 48), nan=(50,)), 16)
    result = hp.fit(nn.Linear(4, 3), loader, optimizer="sgd", epochs=1, skip_bad=48, nan_limit=2)
    assert (result.steps["left_out"], result.steps["nonfinite"]) == (2, 1), "two in a row would have ended it"
    assert any("step 3: the gradients are not finite; its inputs are not" in note for note in result.notes)


class Holds(nn.Module):
    """Divides by a running size that it holds as a parameter, and writes to by itself."""

    def __init__(self, how: str, trains: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.how = nn.Linear(4, 3), how
        self.m = nn.Parameter(torch.ones(1), requires_grad=trains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.detach().abs().mean()
        with torch.no_grad():
            if self.how == "in place":
                self.m.mul_(0.9).add_(0.1 * size)
            elif self.how == "data in place":
                self.m.data.mul_(0.9).add_(0.1 * size)
            else:
                self.m.data = 0.9 * self.m.data + 0.1 * size
        return self.layer(x) / self.m.detach()  # type: ignore[no-any-return]


class Writes(nn.Module):
    """A loss that does the same."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.m.mul_(0.9).add_(0.1 * output.detach().abs().mean())
        return nn.functional.cross_entropy(output, targets) / self.m


@pytest.mark.parametrize("how", ["in place", "data in place", "data", "loss"])
@pytest.mark.parametrize("trains", [False, True])
def test_a_parameter_that_forward_writes_to_is_restored_too(how: str, trains: bool) -> None:
    loader = torch.utils.data.DataLoader(Files(range(0), nan=(20,)), 16)
    loss = Writes() if how == "loss" else None
    model = nn.Linear(4, 3) if loss else Holds(how, trains)
    found = list(hp.train(model, loader, epochs=2, optimizer="sgd", loss=loss))
    assert [step.applied for step in found] == [True, False, True, True] * 2
    held = loss.m if loss else model.m
    assert bool(held.isfinite().all())
    assert not torch.equal(held, torch.ones(1)), "the steps that were applied have moved it"
