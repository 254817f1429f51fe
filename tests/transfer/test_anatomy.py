"""Layers grouped by a list, a library's own grouping or order of use, against lists written by hand."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import heptane as hp
from heptane import Anatomy, InputError, Transfer
from heptane.pretrained.models import resnet
from heptane.pretrained.usage import trace_usage


def named(groups: Anatomy, model: nn.Module) -> dict[str, list[str]]:
    """The parameters of each group, each found once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(p)] for p in group.parameters] for group in groups.groups(model)]
    assert Counter(name for inside in found for name in inside) == Counter(names.values())
    return dict(zip([layer.name for layer in groups.layers], found, strict=True))


def under(model: nn.Module, *prefixes: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


class Backwards(nn.Module):
    """Registered from the output to the input; an auxiliary head, used in training only, is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv2d(1, 4, 3)])
        self.aux = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        for conv, norm in zip(reversed(self.convs), reversed(self.norms), strict=True):
            x = norm(conv(x)).relu()
        x = x.mean((2, 3))
        return (self.out(x), self.aux(x)) if self.training else self.out(x)


IMAGES = torch.zeros(2, 1, 8, 8)


def test_groups_are_in_the_order_of_use_whatever_the_order_of_registration() -> None:
    model = Backwards()
    groups = hp.anatomy(model, IMAGES)
    assert (groups.by, groups.head) == ("order of use", "out")
    assert named(groups, model) == {
        "convs.1": ["norms.1.weight", "norms.1.bias", "convs.1.weight", "convs.1.bias"],
        "convs.0": ["convs.0.weight", "convs.0.bias"],
        "out": ["out.weight", "out.bias", "aux.weight", "aux.bias"],
    }
    assert [layer.bare_norms for layer in groups.layers] == [(), ("norms.0",), ()]
    assert hp.anatomy(model).by == "order of registration"
    assert hp.anatomy(model).head == "aux"


def test_the_order_of_use_reaches_freezing_rates_modes_and_the_new_head_through_fit() -> None:
    model = Backwards()
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 5
    before = copy.deepcopy(model.state_dict())
    rates = {}
    model.aux = nn.Linear(4, 5)

    class Main(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: Any = self.net(x)
            return found[0] if self.training else found

    trick = Transfer(freeze=2, rate_factor=2)
    for step in hp.train(
        *(Main(), (x, y)), optimizer=lambda p: torch.optim.SGD(p, lr=0.4), epochs=1, batch_size=8,
        tricks=hp.Tricks(transfer=trick),
    ):  # fmt: skip
        rates = {group["name"]: group["lr"] for group in step.run.optimizer.param_groups}
    assert rates == {"net.convs.1": 0.1, "net.convs.0": 0.2, "net.out": 0.4}
    assert (model.out.out_features, model.aux.out_features) == (5, 5)
    for name in ("convs.0.weight", "convs.1.weight", "norms.1.weight", "norms.0.running_mean", "norms.1.running_mean"):
        assert torch.equal(model.state_dict()[name], before[name]), name


def test_a_head_is_used_last_on_the_way_to_the_output() -> None:
    class Shown(nn.Module):
        """Its projection comes after the head, for a log; the head's weights are used without calling it."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.shown = nn.Linear(3, 2), nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.body(x.to(self.head.weight.dtype))
            logits = torch.zeros(len(x), 2)
            logits[:] = nn.functional.linear(x, self.head.weight, self.head.bias)
            self.shown(x).sum()
            return {"logits": logits}

    groups = hp.anatomy(Shown(), torch.zeros(2, 4))
    assert [layer.name for layer in groups.layers] == ["body", "shown", "head"]


@pytest.mark.parametrize(
    ("layers", "head"),
    [
        ([nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(192, 2)], "2"),
        ([nn.Flatten(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 1)], "3"),
        ([nn.Flatten(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3)], "1"),
        ([nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3)], None),
    ],
)
def test_a_convolution_is_a_head_where_it_is_1x1_and_used_last(layers: list[nn.Module], head: str | None) -> None:
    assert hp.anatomy(nn.Sequential(*layers), IMAGES).head == head


def test_looking_leaves_no_mark() -> None:
    class Counting(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return super().forward(x + torch.randn(()))

    model = Counting().train()
    model[1].eval()
    random = torch.get_rng_state()
    trace_usage(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [True, False, True]
    assert int(model.seen) == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_seen_is_taken_as_registered() -> None:
    model = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2)))  # type: ignore[no-untyped-call]
    assert hp.anatomy(model, IMAGES).by == "order of registration"


# a list


def test_a_users_list_of_names_and_patterns_gives_each_parameter_to_the_longest() -> None:
    model = resnet(10)
    groups = hp.anatomy(model, groups=("stem", "d*1", "d*", "block*", "block2.second"))
    assert groups.by == "your list"
    assert named(groups, model) == {
        "stem": ["stem.conv.weight", "stem.norm.weight", "stem.norm.bias"],
        "d*1": under(model, "down1."),
        "d*": under(model, "down2."),
        "block*": under(model, "block1.", "block2.first."),
        "block2.second": under(model, "block2.second."),
        "head": ["head.weight", "head.bias"],
    }
    listed = hp.anatomy(model, groups=("stem", "down*", "block*", "head"))
    assert [len(layer.parameters) for layer in listed.layers] == [3, 6, 12, 2]


def test_a_name_is_no_prefix_of_a_longer_name() -> None:
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2), "out": nn.Linear(2, 2)})
    groups = hp.anatomy(model, groups=("layer1", "layer10"))
    assert groups.layers[0].parameters == ("layer1.weight", "layer1.bias")


def test_a_heads_weight_that_an_embedding_shares_is_the_heads() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5)})
    model["out"].weight = model["words"].weight
    assert named(hp.anatomy(model, groups=("body",)), model) == {
        "body": ["body.weight", "body.bias"],
        "out": ["words.weight", "out.bias"],
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("stem", "donw1"), r"groups: 'donw1' matches none of the model's names \(did you mean down1\?\)"),
        (("stem", "down*"), r"groups: no group contains block1\.first\.conv\.weight, .* and 8 more: list the modules"),
        (("head", "stem", "down*", "block*"), r"groups: 'head' contains the head 'head': list the head last"),
        (("*", "stem", "down1", "down2", "block*", "head"), r"groups: '\*' is covered by longer names or by the head"),
    ],
)
def test_a_list_that_does_not_fit_the_model_is_refused(groups: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hp.anatomy(resnet(10), groups=groups)


@pytest.mark.parametrize("bad", ["stem", ("",), (1,), ("stem", "stem")])
def test_a_list_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"Transfer\.groups"):
        Transfer(groups=bad)


# three architectures, by hand


def check_rates_and_freezing(model: nn.Module, groups: Anatomy, expected: dict[str, list[str]]) -> None:
    """Rates fall by the factor from the last group, and all but it are frozen and thawed one by one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rated = hp.param_groups(model, 0.5, 2.6, groups)
    assert {g["name"]: [names[id(p)] for p in g["params"]] for g in rated} == expected
    rate = 0.5
    for group in reversed(rated):
        assert group["lr"] == pytest.approx(rate, rel=1e-12)
        rate /= 2.6
    order = list(expected)
    for count in (-1, len(order) - 2, 1, 0):
        assert hp.freeze(model, count, groups) == order[: count % len(order) if count >= 0 else len(order) - 1]
        frozen = [n for name in (order[:count] if count >= 0 else order[:-1]) for n in expected[name]]
        assert sorted(n for n, p in model.named_parameters() if not p.requires_grad) == sorted(frozen)


def test_efficientnet_lite0() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0", num_classes=10)
    expected = {
        "_conv_stem": ["_conv_stem.weight", "_bn0.weight", "_bn0.bias"],
        **{f"_blocks.{index}": under(model, f"_blocks.{index}.") for index in range(16)},
        "_conv_head": ["_conv_head.weight", "_bn1.weight", "_bn1.bias"],
        "_fc": ["_fc.weight", "_fc.bias"],
    }
    groups = hp.anatomy(model, torch.zeros(1, 3, 32, 32))
    assert (groups.by, groups.head) == ("order of use", "_fc")
    check_rates_and_freezing(model, groups, expected)
    hp.freeze(model, 2, groups)
    hp.train_mode(model, groups)
    assert [model._bn0.training, model._blocks[0].training, model._blocks[1].training] == [False, False, True]


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config)
    expected = {
        "bert.embeddings": under(model, "bert.embeddings."),
        **{f"bert.encoder.layer.{index}": under(model, f"bert.encoder.layer.{index}.") for index in range(3)},
        "bert.pooler": ["bert.pooler.dense.weight", "bert.pooler.dense.bias"],
        "classifier": ["classifier.weight", "classifier.bias"],
    }
    for inputs in (None, {"input_ids": torch.zeros(2, 5, dtype=torch.long)}):
        groups = hp.anatomy(model, inputs)
        assert (groups.by, groups.head) == ("the grouping of transformers", "classifier")
    check_rates_and_freezing(model, groups, expected)


def test_the_built_in_resnet() -> None:
    model = resnet(10)
    expected = {
        "stem.conv": ["stem.conv.weight", "stem.norm.weight", "stem.norm.bias"],
        "down1.conv": under(model, "down1."),
        "block1": under(model, "block1."),
        "down2.conv": under(model, "down2."),
        "block2": under(model, "block2."),
        "head": ["head.weight", "head.bias"],
    }
    check_rates_and_freezing(model, hp.anatomy(model, torch.zeros(2, 1, 28, 28)), expected)


@pytest.mark.parametrize("name", ["GPT2ForSequenceClassification", "RobertaForSequenceClassification", "BertModel"])
def test_other_models_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    if name.startswith("GPT2"):
        config = transformers.GPT2Config(
            vocab_size=20, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=1
        )
    else:
        config = getattr(transformers, "RobertaConfig" if "Roberta" in name else "BertConfig")(**small)
    model = getattr(transformers, name)(config)
    by_hand = {
        "GPT2ForSequenceClassification": {
            "transformer": ["transformer.wte.weight", "transformer.wpe.weight"],
            "transformer.h.0": under(model, "transformer.h.0."),
            "transformer.h.1": under(model, "transformer.h.1.", "transformer.ln_f."),
            "score": ["score.weight"],
        },
        "RobertaForSequenceClassification": {
            "roberta.embeddings": under(model, "roberta.embeddings."),
            "roberta.encoder.layer.0": under(model, "roberta.encoder.layer.0."),
            "roberta.encoder.layer.1": under(model, "roberta.encoder.layer.1."),
            "classifier": under(model, "classifier."),
        },
        "BertModel": {
            "embeddings": under(model, "embeddings."),
            "encoder.layer.0": under(model, "encoder.layer.0."),
            "encoder.layer.1": under(model, "encoder.layer.1."),
            "pooler.dense": under(model, "pooler."),
        },
    }
    assert named(hp.anatomy(model), model) == by_hand[name]


def test_timms_own_grouping() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18", num_classes=4, in_chans=1)
    groups = hp.anatomy(model, torch.zeros(2, 1, 32, 32))
    assert (groups.by, groups.head) == ("timm's own grouping", "fc")
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert named(groups, model) == {
        "conv1": ["conv1.weight", "bn1.weight", "bn1.bias"],
        **{block: under(model, f"{block}.") for block in blocks},
        "fc": ["fc.weight", "fc.bias"],
    }
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, depth=2, img_size=32)
    assert [layer.name for layer in hp.anatomy(model).layers] == ["cls_token", "blocks.0", "blocks.1", "head"]
