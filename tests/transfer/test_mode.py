"""How much of a model trains: the phases of each mode, and what "auto" chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import sgd
from torch import nn

import heptane as hp
from heptane import InputError, Transfer
from heptane.pretrained.choose_mode import ridge_accuracy


@pytest.mark.parametrize(
    ("trick", "expected"),
    [
        (Transfer(mode="head"), [(0, 4)]),
        (Transfer(mode="full"), [(0, 0)]),
        (Transfer(mode="head-first"), [(0, 4), (10, 0)]),
        (Transfer(mode="head-first", head_epochs=0.25), [(0, 4), (3, 0)]),
        (Transfer(mode="head-first", head_epochs=4), [(0, 4)]),
        (Transfer(mode="gradual"), [(0, 4), (5, 3), (10, 2), (15, 1), (20, 0)]),
    ],
)
def test_phases_of_forty_steps_of_ten_an_epoch_and_five_groups(trick: Transfer, expected: list[tuple[int, int]]) -> None:
    assert trick.phases(40, 10, 5) == expected
    assert trick.phases(40, 10, 1) == [(0, 0)]


@pytest.mark.parametrize("other", [{"freeze": 1}, {"freeze": -1, "unfreeze_every_epochs": 1}, {"lora_rank": 2}])
def test_a_mode_and_what_else_says_what_is_frozen_exclude_each_other(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"Transfer\.mode='full' and {next(iter(other))}=.* set one"):
        Transfer(mode="full", **other)


@pytest.mark.parametrize(("field", "bad"), [("mode", "ful"), ("head_epochs", 0), ("head_epochs", float("nan"))])
def test_bad_fields_are_refused(field: str, bad: Any) -> None:
    with pytest.raises(InputError, match=rf"Transfer\.{field}={bad!r}"):
        Transfer(**{field: bad})


def data(per_class: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around three corners."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(per_class)
    return nn.functional.one_hot(y, 3).float() + noise * torch.randn(len(y), 3, generator=generator), y


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.eye_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    return net


def decision(train: Any, net: nn.Module | None = None, **settings: Any) -> tuple[str | None, str]:
    settings = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1), "epochs": 1, "batch_size": 8, **settings}
    step = next(hp.train(net or model(), train, tricks=hp.Tricks(transfer=Transfer(mode="auto")), **settings))
    return step.run.stages.mode, " ".join(step.run.notes)


def loader(x: torch.Tensor, y: torch.Tensor, **settings: Any) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 32, **settings)


@pytest.mark.parametrize(
    ("per_class", "noise", "mode", "reason"),
    [
        (100, 0.05, "head", "head: the features suffice without training"),
        (8, 0.5, "head", "8 labels per class, below 10"),
        (100, 0.5, "gradual", "100 labels per class, between 10 and 1000"),
        (1000, 0.5, "full", "1000 labels per class, at least 1000"),
        (100, 100.0, "full", "full: the features need training"),
    ],
)
@pytest.mark.parametrize("kind", ["tensors", "loader", "shuffled loader"])
def test_auto_goes_by_labels_per_class_and_a_probe_and_says_why(
    per_class: int, noise: float, mode: str, reason: str, kind: str
) -> None:
    given = data(per_class, noise)
    train = given if kind == "tensors" else loader(*given, shuffle=kind == "shuffled loader")
    found, notes = decision(train, batch_size=8 if kind == "tensors" else None)
    assert found == mode
    assert reason in notes
    assert "a ridge classifier on features of" in notes


def test_auto_where_nothing_can_be_measured_says_so() -> None:
    x, y = data(10, 0.1)
    mode, notes = decision((x, x))
    assert mode == "full"
    assert "nothing was measured, since" in notes
    mode, notes = decision((x, torch.zeros_like(y)))
    assert mode == "full"
    assert "nothing was measured, since 30 training samples have fewer than two classes" in notes


def test_a_loader_may_give_its_samples_class_by_class_in_batches_of_any_size() -> None:
    x, y = data(100, 0.5)
    by_class = y.argsort(stable=True)
    mode, notes = decision(loader(x[by_class], y[by_class]), batch_size=None)
    assert mode == "gradual"
    assert "a ridge classifier on features of 150 samples" in notes


@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_a_probe_leaves_no_mark(kind: str) -> None:
    from heptane.data.batches import BatchTransform
    from heptane.data.sources import as_source
    from heptane.pretrained.choose_mode import choose_mode

    net = model()
    before = [parameter.clone() for parameter in net.parameters()]
    own, given = torch.Generator().manual_seed(5), data(20, 0.5)
    train = given if kind == "tensors" else loader(*given, shuffle=True, generator=own)
    source = as_source(train, 8 if kind == "tensors" else None, 0, 1)
    states = [torch.get_rng_state(), own.get_state()]
    choose_mode(net, hp.anatomy(net), source, BatchTransform(torch.device("cpu")))
    assert all(map(torch.equal, [torch.get_rng_state(), own.get_state()], states))
    assert not net[1]._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_a_resumed_run_keeps_what_auto_came_to(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": sgd, "batch_size": 60, "epochs": 4}
    settings["tricks"] = hp.Tricks(transfer=Transfer(mode="auto"))
    train = data(100, 0.5)
    torch.manual_seed(3)
    weights = model().state_dict()

    def fresh() -> nn.Module:
        net = model()
        net.load_state_dict(weights)
        return net

    whole = hp.fit(fresh(), train, **settings).model
    first = hp.fit(fresh(), train, train, target=("valid_loss", 1e9), run_dir=tmp_path / "run", **settings)
    assert first.steps["applied"] == 5
    other = fresh()
    nn.init.zeros_(other[0].weight)  # on which a probe would say otherwise
    second = hp.fit(other, train, run_dir=tmp_path / "run", resume=True, **settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("per_class", "mode"), [(8, "head"), (100, "gradual")])
def test_two_workers_come_to_the_same_and_to_the_same_new_head(per_class: int, mode: str) -> None:
    found = []
    for workers in (1, 2):
        net = nn.Sequential(model()[0], nn.Linear(3, 7))
        nn.init.zeros_(net[1].weight)
        tricks = hp.Tricks(
            transfer=Transfer(mode="auto"), data_parallel=hp.DataParallel(workers=workers) if workers > 1 else None
        )
        result = hp.fit(net, data(per_class, 0.5), optimizer=sgd, batch_size=12, epochs=3, tricks=tricks)
        assert result.model is net
        assert net[1].out_features == 3
        assert any(f"{mode}: " in note for note in result.notes)
        found.append(torch.cat([parameter.flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_ridge_classifier_against_its_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 4)
    mean, spread = x[:6].mean(0), x[:6].std(0)
    z = (x - mean) / spread
    hot = torch.eye(3, dtype=torch.float64)[y[:6]]
    beta = torch.linalg.solve(z[:6].T @ z[:6] / 3 + 0.1 * torch.eye(3), z[:6].T @ (hot - hot.mean(0)) / 3)
    expected = ((z[6:] @ beta + hot.mean(0)).argmax(1) == y[6:]).double().mean()
    assert ridge_accuracy(x, y, 6) == float(expected)
