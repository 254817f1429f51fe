"""Which modules of a model are sharded; the sharding itself is tested in tests/tricks/test_data_parallel.py."""

from __future__ import annotations

import torch
from torch import nn

from heptane.distributed.sharding import allocate, full_tensor, is_sharded, meta_copy, shard_like, units
from heptane.pretrained.models import resnet


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


class Encoder(nn.Module):
    """As transformers writes one: blocks in a ModuleList of a module that is not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(3))


class Model(nn.Module):
    """Embedding, encoder, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.drop, self.head = nn.Embedding(5, 4), Encoder(), nn.Dropout(), nn.Linear(4, 2)


def test_a_unit_is_a_layer_or_a_block_and_never_a_part_of_one() -> None:
    assert [type(unit).__name__ for unit in units(Model())] == ["Embedding", "Block", "Block", "Block", "Linear"]
    names = [type(unit).__name__ for unit in units(resnet())]
    assert names.count("Residual") == 2
    assert "Conv2d" in names


def test_layers_that_share_a_parameter_are_one_unit() -> None:
    model = Model()
    model.head.weight = nn.Parameter(torch.zeros(5, 4))
    model.embed.weight = model.head.weight
    assert units(model) == []


def test_an_outline_has_the_parameters_without_their_memory_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].requires_grad_(False)
    made = meta_copy(model)
    assert all(parameter.is_meta for parameter in made.parameters())
    assert [parameter.requires_grad for parameter in made.parameters()] == [False, False, True, True]
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not is_sharded(model)


def test_what_is_not_sharded_stays_as_it_is() -> None:
    value = torch.arange(3.0)
    assert full_tensor(value) is value
    assert shard_like(value, torch.zeros(3)) is value
    assert full_tensor(7) == 7
    assert allocate([2, 3], torch.float64).dtype is torch.float64
