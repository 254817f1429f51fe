"""The moving average of the weights: its equation, evaluation, saving, and no effect on training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import TRAIN, VALID, assert_equal_weights, fit_mlp, mlp, sgd, shuffled, steps_by_hand
from tests.workers import launch

import heptane as hp
from heptane.model.averaging import Average

pytestmark = pytest.mark.usefixtures("undrawn")


def averaged(decay: float | None, **settings: Any) -> hp.Result:
    return fit_mlp(test=VALID, average_decay=decay, epochs=3, **settings)


def averaged_by_hand(decay: float) -> tuple[list[torch.Tensor], torch.nn.Module]:
    model = mlp()
    average = [p.detach().clone() for p in model.parameters()]
    loop = steps_by_hand(model, shuffled(TRAIN, 16, epochs=3), sgd(model.parameters()))
    for number, _ in enumerate(loop, 1):
        d = min(decay, (1 + number) / (10 + number))
        average = [d * a + (1 - d) * p.detach() for a, p in zip(average, model.parameters(), strict=True)]
    return average, model


@pytest.mark.parametrize("decay", [0.1, 0.4, 0.999])
def test_it_is_the_equation_s_and_it_is_what_is_evaluated_and_returned(decay: float) -> None:
    result = averaged(decay)
    average, _ = averaged_by_hand(decay)
    for ours, theirs in zip(result.model.parameters(), average, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-6)
    assert hp.evaluate(result.model, VALID)["loss"] == pytest.approx(result.metrics["valid_loss"], abs=1e-7)
    assert result.metrics["test_loss"] == result.metrics["valid_loss"]


def test_training_does_not_notice_it() -> None:
    with_it, without = averaged(0.9), averaged(None)
    for ours, theirs in zip(with_it.history, without.history, strict=True):
        assert ours["train_loss"] == theirs["train_loss"]
        assert ours["valid_loss"] != theirs["valid_loss"]
    _, plain = averaged_by_hand(0.9)
    assert_equal_weights(without.model, plain)


def test_it_is_in_place_for_a_while_and_leaves_no_trace() -> None:
    model = mlp()
    average = Average(model, 0.5)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    average.update(100)
    with average.in_place():
        for p, old in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), old + 0.5)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old + 1.0)


def test_it_goes_on_from_a_checkpoint_and_one_without_it_is_refused(tmp_path: Path) -> None:
    averaged(0.9, run_dir=tmp_path / "run", target=("valid_loss", 1e9))
    again, whole = averaged(0.9, run_dir=tmp_path / "run", resume=True), averaged(0.9)
    assert_equal_weights(again.model, whole.model)
    averaged(None, run_dir=tmp_path / "other", target=("valid_loss", 1e9))
    with pytest.raises(hp.InputError, match=r"was written without average_decay, and this run has 0\.9"):
        averaged(0.9, run_dir=tmp_path / "other", resume=True)


def over_workers() -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for strategy in ("ddp", "fsdp"):
        tricks = hp.Tricks(data_parallel=hp.DataParallel(strategy=strategy))
        found[strategy] = dict(averaged(0.9, tricks=tricks).model.state_dict())
    return found


def test_over_workers_it_is_the_same() -> None:
    whole = dict(averaged(0.9).model.state_dict())
    for state in launch(over_workers, {}, 2).values():
        for name, value in whole.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan"), "much"])
def test_a_decay_out_of_range_is_refused(decay: Any) -> None:
    with pytest.raises(hp.InputError, match=r"average_decay=.*expected a number in \(0, 1\)"):
        averaged(decay)
