"""Data without a length: trained for a number of steps, and resumed from any step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import weights
from torch.utils.data import DataLoader, IterableDataset

import heptane as hp

N = 22


class Endless(IterableDataset):  # type: ignore[type-arg]
    """A pass of 22 samples, with a random number in each."""

    def __iter__(self) -> Iterator[Any]:
        for index in range(N):
            yield torch.tensor([float(index), 1.0]) / N + torch.rand(2) * 0.1, index % 2


def fit_endless(data: Any = None, valid: Any = None, **settings: Any) -> hp.Result:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 2))
    settings = {"optimizer": "adamw", "batch_size": 8, "steps": 20, **settings}
    if isinstance(data, DataLoader):
        del settings["batch_size"]
    return hp.fit(model, Endless() if data is None else data, valid, **settings)


def test_a_stream_is_read_pass_after_pass_for_the_steps_asked_for() -> None:
    seen = [step.step for step in hp.train(torch.nn.Linear(2, 2), Endless(), optimizer="sgd", batch_size=8, steps=20)]
    assert seen == list(range(1, 21))  # three batches to a pass, the last of six
    result = fit_endless(valid=Endless(), tricks=hp.Tricks(cyclical=hp.Cyclical()))
    assert [record["step"] for record in result.history] == list(range(2, 21, 2))
    assert any("the data have no length: a tenth of the 20 steps, 2, counts as an epoch" in note for note in result.notes)
    assert "valid_accuracy" in result.metrics


def test_a_stream_in_a_loader_and_with_batches_joined() -> None:
    assert torch.equal(weights(fit_endless()), weights(fit_endless(DataLoader(Endless(), 8))))
    assert fit_endless(DataLoader(Endless(), 4), accumulate=2).steps["applied"] == 20


def test_the_first_step_is_a_plain_loops() -> None:
    torch.manual_seed(3)
    model = torch.nn.Linear(2, 2)
    twin = torch.nn.Linear(2, 2)
    twin.load_state_dict(model.state_dict())
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(args[0]) if module.training else None)
    hp.fit(model, Endless(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), batch_size=8, steps=1)
    hook.remove()
    torch.nn.functional.cross_entropy(twin(seen[-1]), torch.arange(8) % 2).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert torch.equal(model.weight, twin.weight)


def test_a_stream_that_was_stopped_goes_on_bitwise(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"valid": Endless(), "weights": "last"}
    whole = fit_endless(**settings)
    cut = fit_endless(run_dir=tmp_path, max_seconds=1e-9, **settings)
    assert cut.history[-1]["step"] < 20
    assert torch.equal(weights(whole), weights(fit_endless(run_dir=tmp_path, resume=True, **settings)))


def test_a_stream_needs_steps_and_one_that_is_used_up_is_an_error() -> None:
    with pytest.raises(hp.InputError, match="pass steps instead of epochs"):
        fit_endless(steps=None, epochs=2)

    class Once(Endless):
        done = False

        def __iter__(self) -> Iterator[Any]:
            yield from () if self.done else super().__iter__()
            self.done = True

    with pytest.raises(hp.InputError, match="yielded no batch"):
        fit_endless(Once())


def test_steps_of_data_with_a_length_are_as_many_epochs() -> None:
    data = torch.randn(32, 2), torch.arange(32) % 2
    assert torch.equal(weights(fit_endless(data, steps=10)), weights(fit_endless(data, steps=None, epochs=2.5)))
