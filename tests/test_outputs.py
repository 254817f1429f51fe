"""Whatever holds a model's outputs, the loss sees them in 32 bits."""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import heptane as hp
from heptane.outputs import in_32_bits

HALF = torch.ones(2, dtype=torch.bfloat16)


@dataclass
class Output:
    logits: torch.Tensor
    name: str = "a"


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor


@dataclass(frozen=True, slots=True)
class Slotted:
    logits: torch.Tensor


class Own:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class InSlots:
    __slots__ = ("logits", "unset")

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


Named = namedtuple("Named", "logits")
KINDS = [Output, Frozen, Slotted, Own, InSlots, Named, lambda logits: SimpleNamespace(logits=logits)]


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_are_brought_to_32_bits_in_a_copy_of_the_same_class(kind: Any) -> None:
    given = kind(HALF)
    made = in_32_bits(given)
    assert type(made) is type(given)
    assert made.logits.dtype == torch.float32
    assert given.logits.dtype == torch.bfloat16
    assert in_32_bits(made) is made


def test_in_any_depth_and_with_what_is_beside() -> None:
    given = {"a": Output(HALF, "b"), "b": [Frozen((HALF, {"c": HALF}))], "d": deque([HALF], 3)}  # type: ignore[arg-type]
    made = in_32_bits(given)
    assert made["a"].name == "b"
    assert made["b"][0].logits[1]["c"].dtype == made["d"][0].dtype == torch.float32
    assert made["d"].maxlen == 3


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType])
def test_mappings_keep_their_class(kind: Any) -> None:
    made = in_32_bits(kind({"logits": HALF}))
    assert type(made) is kind
    assert made["logits"].dtype == torch.float32


def test_distributions_and_objects_that_hold_themselves() -> None:
    normal = in_32_bits(torch.distributions.Normal(HALF, HALF, validate_args=False))
    assert normal.loc.dtype == normal.scale.dtype == torch.float32
    own: Any = Own(HALF)
    own.me = own
    assert in_32_bits(own).logits.dtype == torch.float32
    module = nn.Linear(2, 2).bfloat16()
    assert in_32_bits({"model": module})["model"].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_ones_own_is_computed_in_32_bits(kind: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return kind(self.layer(x))

    dtypes = []

    def loss(output: Any, targets: torch.Tensor) -> torch.Tensor:
        dtypes.append(output.logits.dtype)
        return nn.functional.cross_entropy(output.logits, targets)

    data = torch.randn(16, 4), torch.randint(0, 3, (16,))
    hp.fit(
        Model(), data, data, epochs=1, batch_size=8, loss=loss, optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        tricks=hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16", channels_last="off")),
    )  # fmt: skip
    assert set(dtypes) == {torch.float32}
