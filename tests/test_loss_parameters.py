"""A loss with parameters is trained, saved and resumed; an optimizer of other parameters is an error."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import fit, on_output, seeded, sgd, shuffled, steps_by_hand
from torch import nn

import heptane as hp

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Centres(nn.Module):
    """Distances to centres that learn, over a temperature that learns; with a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([[0.0, 0.1, 0.2], [0.2, 0.1, 0.0]]))
        self.temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return nn.functional.cross_entropy(-torch.cdist(output, self.centres) / self.temperature, targets)


def fit_with(loss: Any, model: nn.Module | None = None, **settings: Any) -> hp.Result:
    return fit(model or seeded(1), (X, Y), (X, Y), loss=loss, weights="last", **{"epochs": 4, **settings})


def plain_loop(model: nn.Module, loss: nn.Module) -> Iterator[torch.Tensor]:
    """Four epochs; the parameters of ``loss`` are trained too."""
    optimizer = sgd([*model.parameters(), *loss.parameters()])
    return steps_by_hand(model, shuffled((X, Y), 16, epochs=4), optimizer, on_output(loss))


def trained_by_hand() -> tuple[nn.Module, Centres]:
    model, loss = seeded(1), Centres()
    for _ in plain_loop(model, loss):
        pass
    return model, loss


@pytest.mark.parametrize(
    "factory",
    [
        lambda loss: sgd,
        lambda loss: lambda p: sgd([*p, *loss.parameters()]),
    ],
    ids=["as given", "put in by the factory"],
)
def test_a_loss_is_trained_as_by_hand(factory: Any) -> None:
    model, expected = trained_by_hand()
    loss = Centres()
    result = fit_with(loss, optimizer=factory(loss))
    assert torch.equal(loss.centres, expected.centres)
    assert torch.equal(loss.temperature, expected.temperature)
    assert torch.equal(result.model.weight, model.weight)
    assert any("2 parameter(s) of the loss Centres are trained" in note for note in result.notes)


def test_a_method_and_a_partial_of_a_loss_count_too() -> None:
    for wrap in (lambda loss: loss.forward, lambda loss: partial(loss)):
        loss = Centres()
        fit_with(wrap(loss))
        assert torch.equal(loss.centres, trained_by_hand()[1].centres)


def test_a_loss_is_resumed(tmp_path: Path) -> None:
    whole, cut, resumed = Centres(), Centres(), Centres()
    result = fit_with(whole, run_dir=tmp_path / "whole")
    fit_with(cut, run_dir=tmp_path / "cut", max_seconds=1e-9)
    again = fit_with(resumed, run_dir=tmp_path / "cut", resume=True)
    assert torch.equal(whole.centres, resumed.centres)
    assert torch.equal(whole.calls, resumed.calls)
    assert torch.equal(result.model.weight, again.model.weight)


def test_a_step_that_was_passed_over_leaves_no_mark_in_a_loss() -> None:
    bad = X.clone()
    torch.manual_seed(1)
    loss = Centres()
    loss.register_forward_pre_hook(lambda module, args: (args[0] * torch.nan, args[1]) if module.calls == 2 else None)
    hp.fit(nn.Linear(4, 3), (bad, Y), loss=loss, optimizer="sgd", steps=4, batch_size=16, nan_limit=9)
    assert loss.calls == 2
    assert bool(loss.centres.isfinite().all())


def test_a_loss_with_transfer_has_a_group_of_its_own() -> None:
    loss = Centres()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    fit_with(loss, model, tricks=hp.Tricks(transfer=hp.Transfer(rate_factor=2.0, swap_head=False)))
    assert not torch.equal(loss.centres, Centres().centres)


def test_an_optimizer_of_another_model_is_an_error() -> None:
    other = nn.Linear(4, 3)
    for factory in (
        lambda p: torch.optim.SGD(other.parameters(), lr=0.1),
        lambda p: torch.optim.SGD([*p, other.weight], lr=0.1),
        lambda p: torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1),
    ):
        with pytest.raises(hp.InputError, match=r"the optimizer holds \d of \d parameters that are not Linear's"):
            fit_with(None, optimizer=factory)


def test_parameters_that_are_left_out_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    result = fit_with(None, model, optimizer=lambda p: torch.optim.SGD(model[1].parameters(), lr=0.1))
    assert "the optimizer leaves out 2 parameter(s) that could train: 0.weight, 0.bias" in result.notes
    model[0].requires_grad_(False)
    result = fit_with(None, model, optimizer=lambda p: torch.optim.SGD(model[1].parameters(), lr=0.1))
    assert not any("leaves out" in note for note in result.notes)


# Sparse gradients


class Bag(nn.Module):
    def __init__(self, kind: str, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.EmbeddingBag(9, 3, sparse=sparse) if kind == "bag" else nn.Embedding(9, 3, sparse=sparse)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.table(tokens)
        return self.head(found if found.ndim == 2 else found.mean(1))


TOKENS = torch.randint(0, 9, (32, 5), generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2


@pytest.mark.parametrize("kind", ["bag", "embedding"])
@pytest.mark.parametrize("clip_norm", [0.05, 100.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_of_sparse_gradients_is_that_of_dense_ones(kind: str, clip_norm: float, accumulate: int) -> None:
    found = []
    for sparse in (True, False):
        settings = {"clip_norm": clip_norm, "accumulate": accumulate, "epochs": 3, "batch_size": 8}
        result = hp.fit(Bag(kind, sparse), TOKENS, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), **settings)
        found.append([p.detach() for p in result.model.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (torch.optim.AdamW, r"optimizer AdamW does not take the sparse gradients of layer 'table'"),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), r"SGD with weight_decay does not take the sparse"),
    ],
)
def test_what_sparse_gradients_do_not_go_with_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        hp.fit(Bag("bag", True), TOKENS, optimizer=factory, epochs=1, batch_size=8)


def test_an_optimizer_for_sparse_gradients_alone_is_refused_for_dense_ones() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4, sparse=True), torch.nn.Linear(4, 3))
    data = torch.randint(0, 5, (16,)), torch.randint(0, 3, (16,))
    factory = lambda params: torch.optim.SparseAdam(list(params))  # noqa: E731
    with pytest.raises(hp.InputError, match="SparseAdam takes sparse gradients only"):
        hp.fit(model, data, optimizer=factory, epochs=1, batch_size=8)
    table = torch.nn.Embedding(5, 3, sparse=True)
    assert hp.fit(table, data, optimizer=factory, epochs=1, batch_size=8).steps["applied"] == 2


class Holder:
    """Is no module, and holds one."""

    def __init__(self) -> None:
        self.inner = Centres()

    def __call__(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.inner(output, targets)


GLOBAL = Centres()


def hidden() -> dict[str, Any]:
    centres, free = Centres(), torch.ones((), requires_grad=True)
    return {
        "a closure": lambda output, targets: centres(output, targets),
        "a global name": lambda output, targets: GLOBAL(output, targets),
        "an object": Holder(),
        "a keyword": partial(lambda output, targets, within: within(output, targets), within=centres),
        "a free tensor": lambda output, targets: nn.functional.cross_entropy(output * free, targets),
    }


@pytest.mark.parametrize("where", hidden())
def test_parameters_that_a_loss_hides_are_refused(where: str) -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(hp.InputError, match=r"reaches \d parameter\(s\) that no optimizer trains"):
        fit_with(hidden()[where], model)
    assert torch.equal(model.weight, before)


def test_parameters_that_no_gradient_reaches_are_let_be() -> None:
    teacher, still = nn.Linear(4, 3), nn.Linear(3, 3).requires_grad_(False)

    def distilled(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(torch.zeros(len(output), 4))
        return nn.functional.mse_loss(still(output), wanted) + nn.functional.cross_entropy(output, targets)

    model = nn.Linear(4, 3)
    regular = lambda output, targets: nn.functional.cross_entropy(output, targets) + model.weight.square().sum()  # noqa: E731
    fit_with(distilled)
    fit_with(regular, model)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_best_weights_are_those_of_the_loss_too(resumed: bool, tmp_path: Path) -> None:
    scores = (
        [0.0, 0.9, 0.1, 0.0, 0.2, 0.3] if resumed else [0.0, 0.9, 0.1, 0.2, 0.3]
    )  # each fit_with tries its metrics first
    seen, loss = list[torch.Tensor](), Centres()

    def score(model: Any, data: Any) -> float:
        seen.append(loss.centres.detach().clone())
        return scores[len(seen) - 1]

    settings: dict[str, Any] = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.3), "batch_size": 16, "loss": loss}
    settings |= {"metrics": {"f1": score}, "target": ("valid_f1", 2.0), "run_dir": tmp_path}
    torch.manual_seed(1)
    if resumed:
        hp.fit(nn.Linear(4, 3), (X, Y), (X, Y), epochs=2, **settings)
    result = hp.fit(nn.Linear(4, 3), (X, Y), (X, Y), epochs=4, resume=resumed, **settings)
    assert result.best_step == 4
    assert torch.equal(loss.centres, seen[1])
    assert not torch.equal(loss.centres, seen[-1])


def test_an_optimizer_of_what_is_frozen_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3))
    with pytest.raises(hp.InputError, match=r"holds 2 parameter\(s\), and none that trains"):
        fit_with(None, model, optimizer=lambda p: torch.optim.SGD(list(p)[:2], lr=0.1))


def used_up(params: Any) -> torch.optim.Optimizer:
    assert len(list(params)) == 2
    return sgd(params)


def test_a_factory_may_look_at_its_parameters_first() -> None:
    assert torch.equal(fit_with(None, optimizer=used_up).model.weight, fit_with(None).model.weight)
    loss = Centres()
    fit_with(loss, optimizer=lambda p: sgd([{"params": filter(lambda q: q.requires_grad, p)}]))
    assert torch.equal(loss.centres, trained_by_hand()[1].centres)


ONCE = nn.Linear(4, 3).parameters()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda p: torch.optim.SGD([*p, p[0]], lr=0.1), r"lists 1 parameter\(s\) twice in group 0"),
        (lambda p: torch.optim.AdamW([{"params": p}, {"params": p[:1]}]), "failed .*more than one parameter group.*once"),
        (lambda p: torch.optim.SGD([], lr=0.1), "failed .*empty parameter list"),
        (lambda p: torch.optim.SGD(x for x in list(ONCE)[9:]), "failed .*empty parameter list"),
        (lambda p: torch.optim.Adam(p, lr=-1.0), r"failed .*Invalid learning rate: -1.0"),
    ],
)
def test_what_pytorch_refuses_of_a_factory_is_one_clear_error(factory: Any, message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        fit_with(None, optimizer=factory)


WEIGHT = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHT), r"CrossEntropyLoss: weight of shape \(3,\) requires .*weight.detach"),
        (nn.NLLLoss(weight=WEIGHT), "NLLLoss: weight"),
        (nn.MultiMarginLoss(weight=WEIGHT), "MultiMarginLoss: weight"),
        (lambda o, t: nn.functional.cross_entropy(o, t, WEIGHT), r"argument .weight.*call requires_grad_\(False\) on it"),
    ],
)
def test_weights_of_a_loss_that_ask_for_a_gradient_are_refused_and_detached_ones_taken(loss: Any, message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        fit_with(loss)
    fit_with(nn.CrossEntropyLoss(weight=WEIGHT.detach()), epochs=1)


def test_the_average_is_of_the_losss_parameters_too(tmp_path: Path) -> None:
    loss = Centres()
    average = loss.centres.detach().clone()
    for number, _ in enumerate(plain_loop(seeded(1), loss), 1):
        average = average.lerp(loss.centres.detach(), 1 - min(0.9, (1 + number) / (10 + number)))
    ours, cut, resumed = Centres(), Centres(), Centres()
    whole = fit_with(ours, average_decay=0.9)
    torch.testing.assert_close(ours.centres.detach(), average, rtol=0, atol=1e-6)
    shown = nn.functional.cross_entropy(-torch.cdist(whole.model(X), ours.centres) / ours.temperature, Y)
    assert whole.metrics["valid_loss"] == pytest.approx(float(shown.detach()), abs=1e-6), (
        "the averages were evaluated together"
    )
    fit_with(cut, average_decay=0.9, run_dir=tmp_path, max_seconds=1e-9)
    again = fit_with(resumed, average_decay=0.9, run_dir=tmp_path, resume=True)
    assert torch.equal(resumed.centres, ours.centres)
    assert torch.equal(again.model.weight, whole.model.weight)
