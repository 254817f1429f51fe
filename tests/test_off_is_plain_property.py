"""With every trick off, random models, data and settings train bit for bit as in a plain loop."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import heptane as hp
from heptane.base.randomness import seed_torch

SEED = 3


class Rows(Dataset[Any]):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5).add_(0.1)


MODELS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 3)),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 8), nn.Dropout(0.3), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    "in place": lambda: nn.Sequential(InPlace(), nn.Flatten(), nn.Linear(18, 3)),
    "frozen": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(18).requires_grad_(False), nn.Linear(18, 3)),
}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
}
DATA = ("tensors", "tensor data set", "data set", "loader", "whole batches", "stream", "loader with a generator")
IN_ORDER = ("loader", "whole batches", "stream")
LOSSES = {
    "by the targets": None,
    "a module": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1),
    "a function": lambda output, targets: nn.functional.multi_margin_loss(output, targets),
}


class Stream(IterableDataset[Any]):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Any:
        return iter(zip(self.x, self.y, strict=True))


def loss_of(case: dict[str, Any]) -> Any:
    loss = LOSSES[case["loss"]]
    return copy.deepcopy(loss).to(case["dtype"]) if isinstance(loss, nn.Module) else loss


def plain_loop(model: nn.Module, x: Any, y: Any, case: dict[str, Any], total: int) -> list[torch.Tensor]:
    optimizer, losses, step = OPTIMIZERS[case["optimizer"]](model.parameters()), [], 0
    model.train()
    shuffle = torch.Generator().manual_seed(9)
    loader = DataLoader(TensorDataset(x, y), case["batch"], shuffle=True, generator=shuffle)
    for epoch in range(10):
        if case["data"] in IN_ORDER:
            batches = [(x[i : i + case["batch"]], y[i : i + case["batch"]]) for i in range(0, len(x), case["batch"])]
        elif case["data"] == "loader with a generator":
            batches = list(loader)
        else:
            batches = [(x[rows], y[rows]) for rows in hp.epoch_order(len(x), SEED, epoch).split(case["batch"])]
        for inputs, targets in batches:
            if step == total:
                return losses
            seed_torch(SEED, step)
            optimizer.zero_grad()
            # heptane gives batches in contiguous memory, in which a model may call view(): see test_no_trace.py
            output = model(inputs.clone(memory_format=torch.contiguous_format))
            loss = (loss_of(case) or nn.functional.cross_entropy)(output, targets)
            loss.backward()
            if case["clip"] is not None:
                nn.utils.clip_grad_norm_(model.parameters(), case["clip"])
            optimizer.step()
            losses.append(loss.detach())
            step += 1
    return losses


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(sorted(MODELS)),
            "optimizer": st.sampled_from(sorted(OPTIMIZERS)),
            "data": st.sampled_from(DATA),
            "loss": st.sampled_from(sorted(LOSSES)),
            "entry": st.sampled_from(["train", "fit", "fit and evaluate"]),
            "count": st.integers(8, 30),
            "batch": st.sampled_from([2, 4, 5, 8]),
            "epochs": st.sampled_from([0.5, 1, 2.5]),
            "clip": st.sampled_from([None, 0.1]),
            "permuted": st.booleans(),
            "dtype": st.sampled_from([torch.float32, torch.float64]),
            "training": st.booleans(),
        }
    )
)
def test_off_is_plain_whatever_the_model_the_data_and_the_settings(case: dict[str, Any]) -> None:
    if case["count"] % case["batch"] == 1:
        case["count"] += 1  # one sample and BatchNorm: a hand-written loop fails there
    draws = torch.Generator().manual_seed(case["count"])
    x = torch.randn(case["count"], 3, 3, 2, generator=draws, dtype=case["dtype"]).permute(0, 3, 1, 2)
    x = x if case["permuted"] else x.contiguous()
    y = torch.randint(0, 3, (case["count"],), generator=draws)
    torch.manual_seed(1)
    plain = MODELS[case["model"]]().to(case["dtype"]).train(case["training"])
    torch.manual_seed(1)
    ours = MODELS[case["model"]]().to(case["dtype"]).train(case["training"])
    per_epoch = -(-case["count"] // case["batch"])
    expected = plain_loop(plain, x, y, case, max(1, round(case["epochs"] * per_epoch)))

    data: Any = {
        "tensors": lambda: (x, y),
        "tensor data set": lambda: TensorDataset(x, y),
        "data set": lambda: Rows(x, y),
        "loader": lambda: DataLoader(TensorDataset(x, y), case["batch"]),
        "whole batches": lambda: DataLoader(
            [(x[i : i + case["batch"]], y[i : i + case["batch"]]) for i in range(0, len(x), case["batch"])], batch_size=None
        ),
        "stream": lambda: DataLoader(Stream(x, y), case["batch"]),
        "loader with a generator": lambda: DataLoader(
            TensorDataset(x, y), case["batch"], shuffle=True, generator=torch.Generator().manual_seed(9)
        ),
    }[case["data"]]()
    kept, strides = (x.clone(), y.clone()), x.stride()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    settings: dict[str, Any] = {
        "optimizer": OPTIMIZERS[case["optimizer"]], "epochs": case["epochs"], "clip_norm": case["clip"], "seed": SEED,
        "batch_size": None if isinstance(data, DataLoader) else case["batch"], "loss": loss_of(case),
    }  # fmt: skip
    if case["entry"] == "train":
        losses = [event.loss for event in hp.train(ours, data, **settings)]
        assert len(losses) == len(expected)
        assert all(map(torch.equal, losses, expected))
    else:
        valid = (x, y) if case["entry"] == "fit and evaluate" else None
        assert hp.fit(ours, data, valid, weights="last", **settings).steps["applied"] == len(expected)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert x.stride() == strides
    assert [m.training for m in ours.modules()] == [m.training for m in plain.modules()]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]
