"""Layers of all kinds under DDP and FSDP: the result is that of one worker."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Any

import pytest
import torch
from tests.helpers import random_data
from tests.workers import fit_epoch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp
from heptane.core.losses import CrossEntropy
from heptane.distributed.layer_usage import observe_usage
from heptane.distributed.sharding import units

pytestmark = pytest.mark.usefixtures("forked")
STEP = partial(torch.optim.SGD, lr=0.1)  # sharded experts that a batch leaves out would go on by their momentum
STRATEGIES = ["ddp", "fsdp"]


def two(strategy: str, **more: Any) -> hp.Tricks:
    return hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy=strategy, timeout_seconds=30, **more))


def as_one(model: nn.Module, strategy: str, **more: Any) -> hp.Result:
    """Train ``model`` on two workers, and a copy on one: the weights are the same."""
    alone = copy.deepcopy(model)
    fit_epoch(alone, valid=random_data(20), tricks=hp.Tricks(), optimizer=STEP, **more)
    result = fit_epoch(model, valid=random_data(20), tricks=two(strategy), optimizer=STEP, **more)
    for (name, mine), theirs in zip(model.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0, msg=name)
    return result


def with_buffer(buffer: torch.Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].register_buffer("held", buffer)
    return model


class Scaled(nn.Module):
    """Its scale is a single number, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.tensor(1.5)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale


class Words(nn.Module):
    """A table whose gradients are sparse."""

    def __init__(self, bag: bool = False) -> None:
        super().__init__()
        self.bag, self.linear = bag, nn.Linear(4, 3)
        self.table = nn.EmbeddingBag(7, 4, sparse=True, mode="sum") if bag else nn.Embedding(7, 4, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        words = (x.abs() * 3).long() % 7
        return self.linear(self.table(words if self.bag else words[:, 0]))


class Tied(nn.Module):
    """Uses a layer's weight outside that layer, as language models do with their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks = nn.Linear(4, 3, bias=False), nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.blocks[0](self.enter(x))
        return nn.functional.linear(nn.functional.linear(inner, self.enter.weight.t()), self.enter.weight)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class ByMethod(nn.Module):
    """Calls a method of a layer that is not ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out = Encoder(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder.encode(x))


class Experts(nn.Module):
    """Each sample goes to one of many layers: a small batch leaves some out, others on each worker."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3) for _ in range(8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        way, out = (x[:, 0] * 10).long() % 8, x.new_zeros(len(x), 3)
        for index, expert in enumerate(self.experts):
            if bool((way == index).any()):
                out = out.index_put((torch.where(way == index)[0],), expert(x[way == index]))
        return out


class Silent(nn.Linear):
    """Its ``train`` and ``eval`` return nothing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().eval()


LAYERS: dict[str, Any] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Linear(8, 3)),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 3)),
    "a 16-bit integer buffer": lambda: with_buffer(torch.zeros(2, dtype=torch.int16)),
    "a bool buffer": lambda: with_buffer(torch.ones(2, dtype=torch.bool)),
    "a sparse buffer": lambda: with_buffer(torch.eye(3).to_sparse()),
    "a parameter that is one number": Scaled,
    "a table with sparse gradients": Words,
    "a bag with sparse gradients": lambda: Words(bag=True),
    "a weight used elsewhere": Tied,
    "a method that is not forward": ByMethod,
    "experts": Experts,
    "train without return": lambda: Silent(4, 3),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_all_kinds_train_as_on_one_worker(name: str, strategy: str) -> None:
    torch.manual_seed(0)
    as_one(LAYERS[name](), strategy, batch_size=8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lazy_layers_train(strategy: str) -> None:
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3))
    assert fit_epoch(model, tricks=two(strategy)).steps["applied"] == 4
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("make", [Scaled, Words])
def test_what_is_not_sharded_is_clipped_averaged_and_accumulated_with_the_rest(make: Any) -> None:
    torch.manual_seed(0)
    as_one(make(), "fsdp", clip_norm=0.1, average_decay=0.9, accumulate=2)


class Depth(nn.Module):
    """Leaves layers out by chance, others on each worker: then their gradients are missing on some."""

    def __init__(self, chance: str = "torch") -> None:
        super().__init__()
        self.inner, self.out, self.chance = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)]), nn.Linear(4, 3), chance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner:
            draw = random.random() if self.chance == "python" else torch.rand(())
            if not self.training or draw < 0.8:
                x = x + layer(x)
        return self.out(x)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("chance", ["torch", "python"])
def test_layers_that_are_left_out_at_random_are_noticed(chance: str, strategy: str) -> None:
    result = fit_epoch(Depth(chance), tricks=two(strategy), epochs=5)
    assert result.steps["applied"] == 20
    wanted = "look for unused parameters" if strategy == "ddp" else "gather all of it at once"
    assert any(wanted in note for note in result.notes)


def test_a_model_that_always_does_the_same_is_not_looked_through_at_each_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4), nn.Linear(4, 3))
    use = observe_usage(model, lambda x, y: model(x), CrossEntropy().mean, random_data(), units(model), seed=0)
    assert (use.is_dynamic, use.varies, use.reentrant, use.unused, use.outside) == (False, False, False, [], set())


class Recomputed(nn.Module):
    """Recomputes a layer that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for _ in range(2):
            x = checkpoint(self.inner, x, use_reentrant=True)
        return self.out(x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_layer_that_is_recomputed_twice_in_the_old_way_is_refused(strategy: str) -> None:
    with pytest.raises(hp.InputError, match="pass use_reentrant=False"):
        fit_epoch(Recomputed(), tricks=two(strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loader_with_persistent_readers_that_were_used_before_goes_to_the_workers(strategy: str) -> None:
    loader = DataLoader(TensorDataset(*random_data()), batch_size=16, num_workers=1, persistent_workers=True)
    next(iter(loader))
    held = loader._iterator
    torch.manual_seed(0)
    result = fit_epoch(nn.Linear(4, 3), tricks=two(strategy), train=loader)
    assert result.steps["applied"] == 4
    assert loader._iterator is held
