"""Probes measure on copies, decide by the measurement, and leave no mark."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import mlp

import heptane as hp
from heptane import probe
from heptane.criterion import CrossEntropy, Elementwise
from heptane.probe import choose_precision, median_seconds, to_channels_last, unused_parameters

MSE = Elementwise("mse", torch.nn.functional.mse_loss)


def convnet() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Dropout(0.5),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 3),
    )


IMAGES, LABELS = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def state(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
        "strides": [p.stride() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return bool((a == b).all())
    return bool(a == b)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, bool], float]:
    """Seconds per variant, in place of a clock; the step still runs, once."""
    seconds: dict[tuple[str, bool], float] = {}
    real = probe._step_seconds

    def step_seconds(trick: Any, *args: Any) -> float:
        real(trick, *args[:-1], 1)
        return seconds[args[4]]

    monkeypatch.setattr(probe, "_step_seconds", step_seconds)
    return seconds


def test_the_first_call_is_not_counted_and_the_median_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, now = [100.0, 3.0, 1.0, 50.0], [0.0]
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += lengths.pop(0)

    assert median_seconds(work, repeats=3) == 3.0
    assert lengths == []


@pytest.mark.parametrize(
    "trick", [hp.MixedPrecision(), hp.MixedPrecision(channels_last="on"), hp.MixedPrecision(dtype="bf16")]
)
def test_a_probe_leaves_no_mark(trick: hp.MixedPrecision) -> None:
    model = convnet()
    model[0].eval()
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before, inputs = state(model), IMAGES.clone()
    choose_precision(trick, model, CrossEntropy(), inputs, LABELS, repeats=1)
    unused_parameters(model, CrossEntropy(), inputs, LABELS)
    assert same(before, state(model))
    assert torch.equal(inputs, IMAGES)
    assert inputs.is_contiguous()


def test_what_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_step_seconds", lambda *_: pytest.fail("measured"))
    trick = hp.MixedPrecision(dtype="bf16", channels_last="on")
    assert choose_precision(trick, convnet(), CrossEntropy(), IMAGES, LABELS) == (
        "bf16",
        True,
        "bf16 channels last: asked for",
    )
    trick = hp.MixedPrecision(dtype="fp32")
    assert choose_precision(trick, mlp(), CrossEntropy(), IMAGES, LABELS) == ("fp32", False, "fp32: asked for")


VARIANTS = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]


@pytest.mark.parametrize("winner", VARIANTS)
def test_the_fastest_variant_that_pays_wins(winner: tuple[str, bool], timed: dict[tuple[str, bool], float]) -> None:
    timed |= dict.fromkeys(VARIANTS, 0.004) | {winner: 0.003}
    dtype, last, why = choose_precision(hp.MixedPrecision(), convnet(), CrossEntropy(), IMAGES, LABELS)
    assert (dtype, last) == winner
    assert "3 ms" in why
    assert why.count(" ms") == 4


def test_what_is_hardly_faster_is_noise_and_plain_stays(timed: dict[tuple[str, bool], float]) -> None:
    timed |= {("fp32", False): 0.0100, ("bf16", False): 0.0096}
    dtype, last, why = choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), IMAGES, LABELS)
    assert (dtype, last) == ("fp32", False)
    assert why == "fp32: no other variant pays here, by the time of a step (fp32 10 ms, bf16 9.6 ms)"
    timed[("bf16", False)] = 0.0094
    assert choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), IMAGES, LABELS)[0] == "bf16"


def test_models_without_2d_convolutions_are_not_tried_channels_last(timed: dict[tuple[str, bool], float]) -> None:
    timed |= {("fp32", False): 1.0, ("bf16", False): 2.0}
    assert choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), IMAGES, LABELS)[:2] == ("fp32", False)


def test_fp16_on_a_cpu_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_step_seconds", lambda *_: pytest.fail("measured"))
    with pytest.raises(hp.InputError, match=r"fp16.* refused on a CPU.*GFLOP/s"):
        choose_precision(hp.MixedPrecision(dtype="fp16"), convnet(), CrossEntropy(), IMAGES, LABELS)


def test_the_step_that_is_timed_is_a_training_step_in_the_variants_form(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Spy(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            formats = (x.is_contiguous(memory_format=torch.channels_last), self.weight.stride()[1] == 1)
            seen.append((self.training, out.dtype, *formats))
            return out

    model = torch.nn.Sequential(Spy(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()
    choose_precision(hp.MixedPrecision(), model, CrossEntropy(), torch.randn(4, 2, 8, 8), LABELS, repeats=1)
    fp32, bf16 = torch.float32, torch.bfloat16
    assert list(dict.fromkeys(seen)) == [
        *((True, fp32, False, False), (True, fp32, True, True)),
        *((True, bf16, False, False), (True, bf16, True, True)),
    ]


def test_only_images_are_stored_channels_last() -> None:
    assert to_channels_last(IMAGES.expand(4, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    tokens, pair = torch.ones(4, 8), (IMAGES, IMAGES)
    assert to_channels_last(tokens) is tokens
    assert to_channels_last(pair) is pair


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        self.frozen = torch.nn.Linear(2, 1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.used(x)
        return out


def test_unused_parameters_are_those_without_a_gradient_and_not_the_frozen() -> None:
    x, y = torch.randn(2, 2), torch.randn(2, 1)
    assert unused_parameters(Branches(), MSE, x, y) == ["unused.weight", "unused.bias"]
    assert unused_parameters(Branches().used, MSE, x, y) == []


def test_unused_parameters_of_a_single_sample_and_of_recurrent_nets() -> None:
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True)
            self.norm, self.head = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.rnn.training, "cuDNN has no backward for it in eval mode"
            out: torch.Tensor = self.head(self.norm(self.rnn(x)[0][:, -1]))
            return out

    before = torch.get_rng_state()
    assert unused_parameters(Recurrent(), CrossEntropy(), torch.randn(1, 5, 3), torch.tensor([1])) == []
    torch.set_rng_state(before)


def test_a_model_that_cannot_be_copied_is_refused_with_the_way_out() -> None:
    class Single(torch.nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there can be only one")

    model = Single(64, 3)
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    flat = IMAGES.flatten(1)
    with pytest.raises(hp.InputError, match=r"cannot be copied \(there can be only one\).*name dtype and channels_last"):
        choose_precision(hp.MixedPrecision(), model, CrossEntropy(), flat, LABELS)
    with pytest.raises(hp.InputError, match=r"cannot be copied .*train with one worker"):
        unused_parameters(model, CrossEntropy(), flat, LABELS)
    assert choose_precision(hp.MixedPrecision(dtype="bf16"), model, CrossEntropy(), flat, LABELS)[0] == "bf16"
