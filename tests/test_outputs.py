"""Which part of a model's answer is its output: the same in training, evaluation, metrics and 16 bits."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.helpers import fit
from torch import nn
from torch.nn import functional

import heptane as hp

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
Pair = namedtuple("Pair", ["logits", "aux"])


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class Net(nn.Module):
    """A linear model with an answer of some form, in training and in evaluation."""

    def __init__(self, training: Any = None, evaluation: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.aux = nn.Linear(4, 2), nn.Linear(4, 2)
        self.forms = training or (lambda out, aux: out), evaluation or (lambda out, aux: out)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.forms[0 if self.training else 1](self.head(inputs), self.aux(inputs).detach())


FORMS = {
    "tuple": lambda out, aux: (out, aux),
    "list": lambda out, aux: [out, aux],
    "tuple of one": lambda out, aux: (out,),
    "nested": lambda out, aux: ((out, aux), aux),
    "logits": lambda out, aux: {"aux": aux, "logits": out},
    "out": lambda out, aux: {"out": out, "aux": aux},
    "one entry": lambda out, aux: {"scores": out, "name": "x"},
    "named tuple": lambda out, aux: Pair(out, aux),
    "dataclass": lambda out, aux: Answer(out, aux),
}


def fit_net(model: nn.Module, **settings: Any) -> hp.Result:
    return fit(model, (X, Y), (X, Y), **settings)


def same(first: hp.Result, second: hp.Result) -> None:
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    assert first.metrics == second.metrics


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("where", ["both", "training", "evaluation"])
def test_an_answer_of_any_form_trains_as_the_output_alone(name: str, where: str) -> None:
    forms = [FORMS[name] if where in ("both", mode) else None for mode in ("training", "evaluation")]
    result = fit_net(Net(*forms))
    same(result, fit_net(Net()))
    if where != "training":
        assert any("the output is " in note for note in result.notes)
        assert hp.evaluate(result.model, (X, Y))["accuracy"] == result.metrics["valid_accuracy"]


@pytest.mark.parametrize("tricks", [{"mixup": hp.Mixup()}, {"mixed_precision": hp.MixedPrecision(dtype="bf16")}], ids=str)
@pytest.mark.parametrize("name", ["tuple", "logits", "dataclass"])
def test_with_mixup_and_in_16_bits(name: str, tricks: dict[str, Any]) -> None:
    settings = {"tricks": hp.Tricks(**tricks), "accumulate": 2}
    same(fit_net(Net(FORMS[name], FORMS[name]), **settings), fit_net(Net(), **settings))


def test_a_loss_of_ones_own_gets_the_whole_answer_if_it_takes_it() -> None:
    both = FORMS["tuple"]

    def deep(answer: Any, targets: torch.Tensor) -> torch.Tensor:
        out, aux = answer
        return functional.cross_entropy(out, targets) + functional.cross_entropy(aux, targets)

    result = fit_net(Net(both, both), loss=deep)
    assert result.metrics["valid_loss"] > fit_net(Net()).metrics["valid_loss"] + 0.3
    assert "valid_accuracy" in result.metrics


def test_a_loss_of_ones_own_gets_the_first_if_it_takes_only_that() -> None:
    own = {"loss": lambda output, targets: functional.cross_entropy(output, targets)}
    for forms in ((FORMS["tuple"], FORMS["tuple"]), (FORMS["tuple"], None), (FORMS["dataclass"], None)):
        result = fit_net(Net(*forms), **own)
        same(result, fit_net(Net(), **own))
        assert any("the output is " in note for note in result.notes)


def test_a_loss_that_takes_the_answer_of_one_mode_only_is_asked_about() -> None:
    def deep(answer: Any, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(answer[0], targets) + functional.cross_entropy(answer[1], targets)

    with pytest.raises(hp.InputError, match="tuple in training and Tensor in evaluation, and the loss fails on that"):
        fit_net(Net(FORMS["tuple"]), loss=deep)

    def either(answer: Any, targets: torch.Tensor) -> torch.Tensor:
        return deep(answer, targets) if isinstance(answer, tuple) else functional.cross_entropy(answer, targets)

    assert fit_net(Net(FORMS["tuple"]), loss=either).metrics["valid_accuracy"] > 0.5


def test_several_outputs_in_training_and_one_in_evaluation_are_refused_where_none_is_the_output() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return {"scores": self.linear(x), "inner": x} if self.training else self.linear(x)

    data = torch.randn(16, 4), torch.randint(0, 3, (16,))
    with pytest.raises(hp.InputError, match="'scores', 'inner' in training, and it is not known which"):
        hp.fit(Both(), data, optimizer="sgd", epochs=1, batch_size=8)
