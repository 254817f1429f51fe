"""What workers return to the process that started them, and what they inherit from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import random_data
from tests.workers import fit_epoch
from torch import nn

import heptane as hp

# What a model holds beside its weights


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.calls, self.history, self.extra = 0, [0.0], {"steps": 0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            self.calls += 1
            self.history.append(float(self.calls))
            self.extra["steps"] += 1
        return self.linear(x)

    def get_extra_state(self) -> Any:
        return dict(self.extra)

    def set_extra_state(self, state: Any) -> None:
        self.extra = dict(state)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_buffers_that_no_file_has_and_plain_attributes_come_back(strategy: str) -> None:
    model = Counting()
    fit_epoch(model, tricks=hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy=strategy)))
    assert (model.calls, float(model.seen), model.extra, len(model.history)) == (4, 4.0, {"steps": 4}, 5)


class Statistics:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.steps, self.by_name = 0, {"steps": 0}


class Watching(nn.Module):
    """Keeps what it saw in arrays, in objects, and in objects within lists."""

    def __init__(self, log: list[int]) -> None:
        super().__init__()
        self.linear, self.log, self.array = nn.Linear(4, 3), log, np.zeros(2)
        self.own, self.several = Statistics(), {"all": [Statistics()]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.array += 1
            for seen in (self.own, self.several["all"][0]):
                seen.steps += 1
                seen.by_name["steps"] += 1
            self.log.append(self.own.steps)
        return self.linear(x)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_arrays_and_objects_of_the_users_come_back_into_the_very_same_ones(strategy: str) -> None:
    log: list[int] = []
    model = Watching(log)
    own, several, array = model.own, model.several["all"][0], model.array
    fit_epoch(model, tricks=hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy=strategy)))
    assert (own.steps, own.by_name, several.steps, several.by_name) == (4, {"steps": 4}, 4, {"steps": 4})
    assert (array.tolist(), log) == ([4.0, 4.0], [1, 2, 3, 4])
    assert model.own is own


# What a process has set for all of PyTorch


class Typed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            assert torch.are_deterministic_algorithms_enabled()
        return super().forward(x) + torch.full((3,), 1 / 3)


@pytest.mark.usefixtures("forked")
def test_workers_have_the_default_dtype_and_the_modes_of_the_process_that_starts_them() -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        torch.manual_seed(0)
        models = [Typed(4, 3), Typed(4, 3)]
        models[1].load_state_dict(models[0].state_dict())
        data = random_data()[0].double(), random_data()[1]
        fit_epoch(models[0], data, tricks=hp.Tricks())
        fit_epoch(models[1], data)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), atol=1e-13, rtol=0)
