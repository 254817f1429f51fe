"""The contest of precisions measures the model itself and leaves it unchanged."""

from __future__ import annotations

import copy
import gc
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import mlp

import heptane as hp
from heptane.base.clock import median_seconds
from heptane.core.losses import CrossEntropy, Elementwise
from heptane.core.precision import choose as probe
from heptane.core.precision import comparison as variants
from heptane.core.precision.choose import choose_precision
from heptane.core.precision.trial_steps import TrialSteps
from heptane.distributed.layer_usage import observe_usage
from heptane.model.memory_format import to_channels_last

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
PAIRS = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path))


@pytest.fixture
def with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes bf16, whatever this one does."""
    monkeypatch.setattr(probe, "computes_bf16", lambda: True)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, with_units: None) -> dict[tuple[str, bool], float]:
    """Seconds per variant, in place of a clock; the step still runs."""
    seconds: dict[tuple[str, bool], float] = {}
    real, now = TrialSteps.step, [0.0]

    def step(self: TrialSteps, variant: tuple[str, bool], rows: int) -> None:
        real(self, variant, rows)
        now[0] += seconds[variant]

    monkeypatch.setattr(TrialSteps, "step", step)
    monkeypatch.setattr(variants, "_seconds", lambda device: now[0])
    monkeypatch.setattr(variants, "now", lambda: now[0] / 100)
    monkeypatch.setattr(variants, "run_queue_seconds", lambda: 0.0)
    return seconds


def test_the_first_call_is_not_counted_and_the_median_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, now = [100.0, 3.0, 1.0, 50.0], [0.0]
    monkeypatch.setattr("heptane.base.clock.time.perf_counter", lambda: now[0])

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
    choose_precision(trick, model, CrossEntropy(), (inputs, LABELS))
    unused(model, CrossEntropy(), inputs, LABELS)
    assert same(before, state(model))
    assert torch.equal(inputs, IMAGES)
    assert inputs.is_contiguous()


def test_what_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.Comparison, "run", lambda _: pytest.fail("measured"))
    trick = hp.MixedPrecision(dtype="bf16", channels_last="on")
    assert choose_precision(trick, convnet(), CrossEntropy(), (IMAGES, LABELS))[:3] == (
        "bf16",
        True,
        "bf16 channels last: asked for",
    )
    trick = hp.MixedPrecision(dtype="fp32")
    assert choose_precision(trick, mlp(), CrossEntropy(), (IMAGES, LABELS)) == ("fp32", False, "fp32: asked for", [])


VARIANTS = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]


@pytest.mark.parametrize("winner", VARIANTS)
def test_the_fastest_variant_that_pays_wins(winner: tuple[str, bool], timed: dict[tuple[str, bool], float]) -> None:
    timed |= dict.fromkeys(VARIANTS, 0.004) | {winner: 0.003}
    dtype, last, why, _ = choose_precision(hp.MixedPrecision(), convnet(), CrossEntropy(), (IMAGES, LABELS))
    assert (dtype, last) == winner
    assert "3 ms" in why
    assert why.count(" ms") >= 3


def test_what_is_hardly_faster_is_noise_and_plain_stays(timed: dict[tuple[str, bool], float]) -> None:
    timed |= {("fp32", False): 0.0100, ("bf16", False): 0.0093}
    dtype, last, why, _ = choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), (IMAGES, LABELS))
    assert (dtype, last) == ("fp32", False)
    assert why == "fp32: no variant is clearly faster here, timed on steps of 4 samples (fp32 10 ms, bf16 9.3 ms)"


def test_what_is_clearly_faster_is_taken(timed: dict[tuple[str, bool], float]) -> None:
    timed |= {("fp32", False): 0.0100, ("bf16", False): 0.0088}
    assert choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), (IMAGES, LABELS))[0] == "bf16"


def test_models_without_2d_convolutions_are_not_tried_channels_last(timed: dict[tuple[str, bool], float]) -> None:
    timed |= {("fp32", False): 1.0, ("bf16", False): 2.0}
    assert choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), (IMAGES, LABELS))[:2] == ("fp32", False)


def test_fp16_on_a_cpu_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.Comparison, "run", lambda _: pytest.fail("measured"))
    with pytest.raises(hp.InputError, match=r"fp16.* refused on a CPU.*GFLOP/s"):
        choose_precision(hp.MixedPrecision(dtype="fp16"), convnet(), CrossEntropy(), (IMAGES, LABELS))


def test_the_step_that_is_timed_is_a_training_step_in_the_variants_form(with_units: None) -> None:
    seen: list[Any] = []

    class Spy(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            formats = (x.is_contiguous(memory_format=torch.channels_last), self.weight.stride()[1] == 1)
            seen.append((self.training, out.dtype, *formats))
            return out

    model = torch.nn.Sequential(Spy(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()
    choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (torch.randn(4, 2, 8, 8), LABELS))
    fp32, bf16 = torch.float32, torch.bfloat16
    assert {found for found in seen if found[0]} == {  # in eval mode it is only tried
        *((True, fp32, False, False), (True, fp32, True, True)),
        *((True, bf16, False, False), (True, bf16, True, True)),
    }


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


def unused(model: torch.nn.Module, criterion: Any, inputs: Any, targets: Any) -> list[str]:
    def forward(given: Any, _: Any) -> Any:
        return model(given)

    return observe_usage(model, forward, criterion.mean, (inputs, targets), [], seed=0).unused


def test_unused_parameters_are_those_without_a_gradient_and_not_the_frozen() -> None:
    x, y = torch.randn(2, 2), torch.randn(2, 1)
    assert unused(Branches(), MSE, x, y) == ["unused.weight", "unused.bias"]
    assert unused(Branches().used, MSE, x, y) == []


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
    assert unused(Recurrent(), CrossEntropy(), torch.randn(1, 5, 3), torch.tensor([1])) == []
    torch.set_rng_state(before)


def test_no_copy_of_the_model_is_made_and_at_most_its_gradients_are_beside_it(with_units: None) -> None:
    most = []

    class Single(torch.nn.Conv2d):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there can be only one")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            alike = {
                t.untyped_storage()._cdata
                for t in gc.get_objects()
                if type(t) in (torch.Tensor, torch.nn.Parameter) and t.numel() == self.weight.numel()
            }
            most.append(len(alike))
            return super().forward(x)

    model = torch.nn.Sequential(Single(1, 37, 5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(37, 3))
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (IMAGES, LABELS))
    unused(model, CrossEntropy(), IMAGES, LABELS)
    assert max(most) <= 2


class Views(torch.nn.Module):
    """Fails where its images are stored channels last, or in 16 bits, or on the way back in one of them."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.conv, self.head, self.fails = torch.nn.Conv2d(2, 4, 3), torch.nn.Linear(144, 3), fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.fails == "bf16" and x.dtype == torch.bfloat16:
            raise TypeError("no 16 bits for me")
        if self.fails == "backward" and x.is_contiguous(memory_format=torch.channels_last):
            x.register_hook(lambda gradient: gradient.view(-1))
        return self.head(x.view(len(x), -1) if self.fails == "view" else x.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("fails", "out"), [("view", 2), ("bf16", 2), ("backward", 2)])
def test_a_variant_that_fails_is_out_with_a_note(fails: str, out: int, with_units: None) -> None:
    model = Views(fails)
    before = state(model)
    notes = choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (PAIRS, LABELS)).notes
    assert same(before, state(model))
    assert len(notes) == out
    word = "bf16" if fails == "bf16" else "channels last"
    assert all(word in note and "left out: the model fails with it" in note for note in notes)
    again = choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (PAIRS, LABELS))
    assert again.notes == notes, "a decision that was kept says so too"


@pytest.mark.parametrize("trick", [hp.MixedPrecision(), hp.Tricks.recommended().mixed_precision])
def test_a_model_that_views_trains_with_the_trick(trick: hp.MixedPrecision) -> None:
    result = hp.fit(
        Views("view"), (PAIRS, LABELS), epochs=1, batch_size=4, optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        tricks=hp.Tricks(mixed_precision=trick),
    )  # fmt: skip
    assert any("channels last left out" in note for note in result.notes)


def test_what_was_asked_for_and_does_not_run_is_refused_with_the_remedy() -> None:
    trick = hp.MixedPrecision(dtype="fp32", channels_last="on")
    with pytest.raises(hp.InputError, match=r"channels_last='on': the model fails with it \(view.*use 'auto'"):
        choose_precision(trick, Views("view"), CrossEntropy(), (PAIRS, LABELS))
    trick = hp.MixedPrecision(dtype="bf16", channels_last="off")
    with pytest.raises(hp.InputError, match=r"dtype='bf16': the model fails with it \(no 16 bits for me\)"):
        choose_precision(trick, Views("bf16"), CrossEntropy(), (PAIRS, LABELS))


def test_three_dimensional_convolutions_beside_images_stay_as_they_are() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.deep = torch.nn.Conv2d(2, 2, 3), torch.nn.Conv3d(1, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.deep(self.flat(x)[:, None]).mean((2, 4))  # type: ignore[no-any-return]

    trick = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"))
    data = PAIRS, torch.tensor([0, 1, 0, 1])
    model = torch.nn.Sequential(Both(), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    hp.fit(model, data, epochs=1, batch_size=4, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), tricks=trick)


def test_emulated_16_bits_are_never_run_but_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    monkeypatch.setattr(probe, "computes_bf16", lambda: False)
    model = mlp()
    model[1].register_forward_hook(lambda _, given, output: seen.add(output.dtype))
    dtype, last, why, _ = choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (IMAGES, LABELS))
    assert (dtype, last, why) == ("fp32", False, "fp32: this processor has no units for 16 bits")
    assert torch.bfloat16 not in seen
    dtype, _, _, notes = choose_precision(hp.MixedPrecision(dtype="bf16"), model, CrossEntropy(), (IMAGES, LABELS))
    assert dtype == "bf16"
    assert "emulates them" in notes[0]


def test_a_network_that_keeps_its_state_is_measured_from_its_own_state(with_units: None) -> None:
    class Remembers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head, self.hidden = torch.nn.GRU(8, 6, batch_first=True), torch.nn.Linear(6, 3), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, hidden = self.gru(x[:, 0], self.hidden)
            self.hidden = hidden.detach()
            return self.head(out[:, -1])  # type: ignore[no-any-return]

    model = Remembers()
    assert choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (IMAGES, LABELS)).notes == []
    assert model.hidden is None


def test_a_decision_is_kept_and_holds_for_this_model_shapes_and_machine(
    timed: dict[tuple[str, bool], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed |= {("fp32", False): 0.01, ("bf16", False): 0.005}
    first = choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), (IMAGES, LABELS))
    timed |= {("fp32", False): 0.01, ("bf16", False): 0.5}
    again = choose_precision(hp.MixedPrecision(), mlp(seed=3), CrossEntropy(), (IMAGES, LABELS))
    assert first[0] == again[0] == "bf16"
    assert again[2] == first[2] + ", measured once on this machine"
    others = [(mlp(num_classes=5), IMAGES, LABELS), (mlp(), IMAGES[:3], LABELS[:3])]
    assert [choose_precision(hp.MixedPrecision(), m, CrossEntropy(), (x, y))[0] for m, x, y in others] == ["fp32"] * 2
    monkeypatch.setattr(probe, "describe", lambda device: "another machine")
    assert choose_precision(hp.MixedPrecision(), mlp(), CrossEntropy(), (IMAGES, LABELS))[0] == "fp32"


def test_a_kept_decision_that_no_longer_runs_is_measured_anew(timed: dict[tuple[str, bool], float]) -> None:
    timed |= dict.fromkeys(VARIANTS, 0.01) | {("fp32", True): 0.005}
    model = Views("")
    assert choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (PAIRS, LABELS))[:2] == ("fp32", True)
    model.fails = "view"
    for _ in range(2):
        assert choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (PAIRS, LABELS))[:2] == ("fp32", False)


def test_the_same_call_gives_bitwise_the_same_weights_whatever_a_second_measurement_would_say(
    timed: dict[tuple[str, bool], float],
) -> None:
    weights = []
    for bf16 in (0.005, 0.5):
        timed |= {("fp32", False): 0.01, ("bf16", False): bf16}
        model = mlp()
        hp.fit(
            model, (IMAGES, LABELS), epochs=3, batch_size=4, optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            tricks=hp.Tricks(mixed_precision=hp.MixedPrecision()),
        )  # fmt: skip
        weights.append(model[1].weight.clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_slow_step_ends_with_the_budget_and_plain_stays(where: str, with_units: None) -> None:
    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if where == "forward":
                time.sleep(0.15)
            else:
                x.register_hook(lambda gradient: time.sleep(0.15))
            return x

    layers = [layer for _ in range(12) for layer in (torch.nn.Linear(64, 64), Slow())]
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(64, 3))
    began = time.perf_counter()
    dtype, last, why, _ = choose_precision(hp.MixedPrecision(), model, CrossEntropy(), (IMAGES, LABELS), planned_steps=3)
    assert time.perf_counter() - began < 2.7
    assert (dtype, last) == ("fp32", False)
    assert "a step takes too long" in why


class ViewsWhere(torch.nn.Module):
    """Calls ``view`` in one mode, or on one size of batch, only."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.conv, self.head, self.where = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(144, 4), where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        short, training = len(x) == 6, self.training
        views = {"evaluation": not training, "last batch": short, "last in training": short and training}[self.where]
        return self.head(x.view(len(x), -1) if views else x.flatten(1))


@pytest.mark.parametrize("where", ["evaluation", "last batch", "last in training"])
def test_a_model_that_views_elsewhere_is_not_stored_channels_last(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"dtype": "fp32", "channels_last": True, "why": "", "notes": []}
    monkeypatch.setattr("heptane.core.precision.choose._answer", lambda *args: chosen)
    data = torch.randn(38, 3, 8, 8), torch.randint(0, 4, (38,))
    settings: dict[str, Any] = {"optimizer": "sgd", "epochs": 1, "batch_size": 16}

    def fitted(last: str) -> hp.Result:
        tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last=last))
        return hp.fit(ViewsWhere(where), data, data, tricks=tricks, **settings)

    result = fitted("auto")
    assert result.steps["applied"] == 3
    assert any("channels last left out: the model fails with it in" in note for note in result.notes)
    assert fitted("off").steps["applied"] == 3
    with pytest.raises(hp.InputError, match=r"channels_last='on': the model fails with it in .* samples .*view"):
        fitted("on")
