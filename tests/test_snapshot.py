"""A model that was tried is restored exactly, whatever state it keeps."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import sgd, shuffled, steps_by_hand
from torch import nn

import heptane as hp
from heptane.model.probe import probe_output
from heptane.model.snapshot import COPIED_BYTES, preserved_model


class Keeps(nn.Module):
    """A module that changes in ``forward`` in every way that is seen in the wild."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("later", None)
        self.hidden: torch.Tensor | None = None
        self.plain, self.calls, self.ema = torch.zeros(3), 0, 0.5
        self.memory: deque[Any] = deque([torch.zeros(2)], maxlen=3)
        self.states, self.table, self.seen = [torch.zeros(2)], OrderedDict(a=1, b=2), {1}
        self.counts, self.pair = np.zeros(2), (torch.zeros(2), [0])
        self.draws, self.python, self.numpy = torch.Generator(), random.Random(0), np.random.default_rng(0)
        self.cache = SimpleNamespace(keys=None, inner=SimpleNamespace(size=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, self.hidden = self.gru(
            x[:, None], None if self.hidden is None else self.hidden.detach()[:, :1].repeat(1, len(x), 1)
        )
        self.mean = 0.9 * self.mean + x.detach().mean(0)  # assigned anew
        self.later = self.hidden.detach()
        self.register_buffer("new", torch.ones(1))
        self.plain.add_(1)
        self.calls, self.ema = self.calls + 1, self.ema * 0.9
        self.memory.append(self.hidden)
        self.states[0] = self.states[0] + 1
        self.states[0].mul_(2)
        self.table.move_to_end("a")
        self.table["c"] = 3
        self.seen.add(len(x))
        self.counts += 1
        self.pair[0].add_(1)
        self.pair[1].append(1)
        torch.rand(1, generator=self.draws)
        self.python.random()
        self.numpy.random()
        self.cache.keys, self.cache.inner.size = self.hidden, 7
        random.random()
        np.random.rand()
        torch.rand(1)
        with torch.no_grad():
            self.layer.weight.renorm_(2, 0, 0.1)
        self.layer.bias.data.mul_(2)
        self.train(not self.training)
        self.layer.requires_grad_(False)
        return self.layer(out[:, 0])  # type: ignore[no-any-return]


def picture(value: Any, seen: set[int] | None = None) -> Any:
    """What a model holds, as values that compare; which object a tensor is counts too."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        return id(value), tuple(value.stride()), value.detach().tolist(), value.requires_grad
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return [(key, picture(held, seen)) for key, held in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value).__name__, [picture(held, seen) for held in value]
    if isinstance(value, (nn.Module, SimpleNamespace)):
        return id(value), picture(vars(value), seen)
    return value


def randoms() -> Any:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("train", [True, False])
def test_whatever_a_forward_pass_changes_is_put_back(train: bool) -> None:
    model = Keeps().train(train)
    model(torch.randn(2, 4))  # so that there is state to spoil
    model.layer.requires_grad_(True)
    model.layer.weight.grad = torch.ones(3, 4)
    grad, before, draws = model.layer.weight.grad, picture(model), randoms()
    with preserved_model(model):
        for _ in range(2):
            model(torch.randn(3, 4, requires_grad=True)).sum().backward()
    assert picture(model) == before
    assert randoms() == draws
    assert model.layer.weight.grad is grad
    assert torch.equal(grad, torch.ones(3, 4))


def test_an_error_in_the_middle_is_no_excuse() -> None:
    model = Keeps()
    before = picture(model)
    with contextlib.suppress(ZeroDivisionError), preserved_model(model):
        model(torch.randn(3, 4))
        raise ZeroDivisionError
    assert picture(model) == before


def test_parameters_are_copied_only_when_something_writes_to_them() -> None:
    model = nn.Sequential(nn.Embedding(50, 4, max_norm=0.1), nn.Linear(4, 4), nn.utils.spectral_norm(nn.Linear(4, 2)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with preserved_model(model) as snapshot:
        model(torch.tensor([1, 2]))
        copied = [t.tensor for t in snapshot._tensors if t.copy is not None and isinstance(t.tensor, nn.Parameter)]
        assert [id(p) for p in copied] == [id(model[0].weight)]
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameters_that_were_given_other_data_get_their_own_back() -> None:
    model = nn.Conv2d(3, 4, 3)
    pointer, strides = model.weight.data_ptr(), model.weight.stride()
    with preserved_model(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.double()
    assert (model.weight.data_ptr(), model.weight.stride(), model.weight.dtype) == (pointer, strides, torch.float32)


def test_a_large_tensor_is_copied_only_when_it_is_written_to() -> None:
    class Table(nn.Module):
        def __init__(self, writes: bool) -> None:
            super().__init__()
            self.table, self.writes = torch.zeros(COPIED_BYTES // 4 + 1), writes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.writes:
                self.table[3:5].add_(1)
            return x + self.table[:1]

    for writes in (False, True):
        model = Table(writes)
        with preserved_model(model) as snapshot:
            model(torch.zeros(1))
            assert [t.copy is not None for t in snapshot._tensors] == [writes]
        assert not model.table.any()


def test_what_a_first_call_builds_stays() -> None:
    class Builds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.lazy, self.ready = None, nn.LazyLinear(3), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.ready:
                self.head, self.ready = nn.Linear(3, 2), True  # type: ignore[assignment]
            return self.head(self.lazy(x))  # type: ignore[misc, no-any-return]

    model = Builds()
    output = probe_output(model, torch.ones(2, 5))
    assert model.lazy.weight.shape == (3, 5)
    assert torch.equal(model(torch.ones(2, 5)), output)
    assert model.training


class Remembers(nn.Module):
    """A GRU that goes on from where the last batch ended."""

    def __init__(self, keep: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head, self.keep = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3), keep
        self.hidden: Any = {"attribute": None, "list": [], "dict": {}}[keep]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past = self.hidden if self.keep == "attribute" else (list(self.hidden) if self.hidden else [None])[0]
        past = past if self.keep != "dict" else self.hidden.get("h")
        out, hidden = self.gru(x[:, None], past)
        if self.keep == "attribute":
            self.hidden = hidden.detach()
        elif self.keep == "list":
            self.hidden[:] = [hidden.detach()]
        else:
            self.hidden["h"] = hidden.detach()
        return self.head(out[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("keep", ["attribute", "list", "dict"])
def test_a_network_that_keeps_its_state_trains_and_evaluates_as_if_it_had_not_been_tried(keep: str) -> None:
    x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))
    result = hp.fit(Remembers(keep), (x, y), (x[:16], y[:16]), epochs=1, batch_size=16, optimizer=sgd)
    assert result.steps["applied"] == 2
    model, steps = Remembers(keep), []
    for step in hp.train(model, (x, y), epochs=1, batch_size=16, optimizer=sgd):
        steps.append(float(step.loss))
    plain = Remembers(keep)
    losses = steps_by_hand(plain, shuffled((x, y), 16), sgd(plain.parameters()))
    assert steps == [float(loss) for loss in losses]
