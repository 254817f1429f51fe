"""A model's head and the depth of its parameters, against lists written by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from heptane import InputError
from heptane.pretrained.layers import depth_groups, find_head
from heptane.pretrained.models import resnet


class Bert(nn.Module):
    """An encoder with learned positions, two equal layers, and its own initial and final normalisation."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(5, 8))
        self.words = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.pooler = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inner = self.encoder(self.norm(self.words(tokens) + self.positions))
        return self.classifier(self.pooler(inner[:, 0]).tanh())


def named(model: nn.Module) -> list[tuple[str, list[str]]]:
    """The groups with the names of their parameters; each parameter is found exactly once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [(group.name, [names[id(p)] for p in group.parameters]) for group in depth_groups(model)]
    assert Counter(name for _, inside in groups for name in inside) == Counter(names.values())
    return groups


def under(model: nn.Module, *prefixes: str) -> list[str]:
    return [name for prefix in prefixes for name, _ in model.named_parameters() if name.startswith(prefix)]


def test_the_groups_of_the_built_in_resnet() -> None:
    model = resnet(10)
    assert named(model) == [
        ("stem.conv", ["stem.conv.weight", "stem.norm.weight", "stem.norm.bias"]),
        ("down1.conv", under(model, "down1.")),
        ("block1", under(model, "block1.")),
        ("down2.conv", under(model, "down2.")),
        ("block2", under(model, "block2.")),
        ("head", ["head.weight", "head.bias"]),
    ]


def test_the_groups_of_a_bert_like_encoder() -> None:
    model = Bert()
    assert named(model) == [
        ("words", ["positions", "words.weight", "norm.weight", "norm.bias"]),
        ("encoder.layers.0", under(model, "encoder.layers.0.")),
        ("encoder.layers.1", under(model, "encoder.layers.1.", "encoder.norm.")),
        ("pooler", ["pooler.weight", "pooler.bias"]),
        ("classifier", ["classifier.weight", "classifier.bias"]),
    ]


@pytest.mark.parametrize("norm", [nn.LayerNorm([2, 4, 4]), nn.RMSNorm([2, 4, 4]), nn.BatchNorm2d(2), nn.PReLU(2)])
def test_a_normalisation_of_any_shape_joins_the_layer_before_it(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), norm, nn.Flatten(), nn.Linear(32, 2))
    assert [name for name, _ in named(model)] == ["0", "3"]


def test_a_normalisation_before_the_first_layer_joins_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(3, 2))
    assert named(model) == [("1", ["0.weight", "0.bias", "1.weight", "1.bias"]), ("2", ["2.weight", "2.bias"])]


def test_a_normalisation_without_parameters_is_kept_with_its_group() -> None:
    norm = nn.BatchNorm1d(3, affine=False)
    model = nn.Sequential(nn.Linear(4, 3), norm, nn.Linear(3, 2))
    assert [group.bare_norms for group in depth_groups(model)] == [[norm], []]


def test_the_head_is_last_wherever_it_was_registered() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 2)
            self.scale = nn.Parameter(torch.ones(()))
            self.body = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())

    assert named(HeadFirst()) == [("body.0", ["scale", "body.0.weight", "body.0.bias"]), ("out", ["out.weight", "out.bias"])]


def test_a_wrapper_is_opened() -> None:
    model = nn.ModuleDict({"module": resnet(10)})
    assert [name for name, _ in named(model)] == [
        f"module.{n}" for n in ("stem.conv", "down1.conv", "block1", "down2.conv", "block2", "head")
    ]


def test_a_parameter_shared_with_the_head_is_the_heads() -> None:
    words, body, out = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
    out.weight = words.weight
    assert named(nn.Sequential(words, body, out)) == [("1", ["1.weight", "1.bias"]), ("2", ["0.weight"])]


def test_parameters_and_statistics_that_no_layer_follows_join_the_group_that_there_is() -> None:
    class Tail(nn.Sequential):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.scale = nn.Parameter(torch.ones(()))

    assert named(Tail(nn.Linear(3, 2))) == [("0", ["scale", "0.weight", "0.bias"])]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Tail(nn.ReLU()))
    assert named(model) == [("0", ["1.scale", "0.weight", "0.bias"])]
    norm = nn.BatchNorm2d(1, affine=False)
    assert depth_groups(nn.Sequential(norm, nn.Flatten(), nn.Linear(4, 2)))[0].bare_norms == [norm]


def test_a_block_used_twice_is_one_group() -> None:
    layer = nn.Linear(3, 3)
    assert [name for name, _ in named(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 2)))] == ["0", "3"]


def test_models_of_one_layer_of_none_and_of_bare_parameters() -> None:
    assert named(nn.Linear(3, 2)) == [("", ["weight", "bias"])]
    assert named(nn.ReLU()) == []
    assert named(nn.LSTM(3, 2))[0][0] == ""
    assert named(nn.BatchNorm1d(2)) == [("", ["weight", "bias"])]
    assert named(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))) == [
        ("0", ["0.weight", "0.bias"]),
        ("1", ["1.weight", "1.bias"]),
    ]


def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has lazy layers that are not initialized; run one batch"):
        depth_groups(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())), "1.0"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 5, 1)), "1"),
        (nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 5, 1)), "0"),
        (nn.Sequential(nn.LazyConv2d(5, 1)), "0"),
        (nn.Linear(2, 2), ""),
        (Bert(), "classifier"),
        (nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)), "0"),
    ],
)
def test_the_head_is_the_last_linear_or_else_the_last_1x1_convolution(model: nn.Module, name: str) -> None:
    found = find_head(model)
    assert found is not None
    assert found[0] == name
    assert model.get_submodule(name) is found[1]


@pytest.mark.parametrize(
    "model",
    [
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3)),
        nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)),
        nn.MultiheadAttention(4, 2),
        nn.LSTM(2, 2),
    ],
)
def test_a_model_without_a_classifier_has_no_head(model: nn.Module) -> None:
    assert find_head(model) is None
