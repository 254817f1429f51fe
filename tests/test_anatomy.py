"""Groups by a list, a library's own grouping or the order of use, on many a model: against lists written by hand."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import heptane as hp
from heptane import Anatomy, InputError, Transfer
from heptane.models import resnet
from heptane.usage import watch


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
    watch(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [True, False, True]
    assert int(model.seen) == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_cannot_be_seen_is_taken_as_registered() -> None:
    model = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2)))  # type: ignore[no-untyped-call]
    assert hp.anatomy(model, IMAGES).by == "order of registration"


# a list


def test_a_users_list_of_names_and_patterns() -> None:
    model = resnet(10)
    groups = hp.anatomy(model, groups=("*.conv", "stem", "block*", "block2.second"))
    assert groups.by == "your list"
    assert named(groups, model) == {
        "*.conv": ["down1.conv.weight", "down2.conv.weight"],
        "stem": [],
        "block*": [],
        "block2.second": under(model, "block2.second"),
        "head": ["head.weight", "head.bias"],
    }
