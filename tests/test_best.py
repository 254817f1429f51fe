"""A run returns the weights of its best evaluation, or the last ones on request; early stopping."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import TRAIN, VALID, fit, mlp, sgd

import heptane as hp
from heptane.session.history import best_step, since_better

SCORES = [0.2, 0.7, 0.5, 0.6]  # the second evaluation of four is the best


class Scored:
    """A metric that gives what it is told, and keeps what the model had when it was asked."""

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.seen, self.tried = list(scores), [], False  # type: ignore[var-annotated]

    def __call__(self, model: torch.nn.Module, data: Any) -> float:
        if not self.tried:  # a run tries its metrics before it trains
            self.tried = True
            return self.scores[0] if self.scores else 0.0
        self.seen.append({name: value.detach().clone() for name, value in tensors(model).items()})
        return self.scores[len(self.seen) - 1]


class Odd(torch.nn.Module):
    """BatchNorm, a buffer that is not saved, one that is assigned anew, and state of its own."""

    def __init__(self, persistent: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8))
        self.head, self.passes = torch.nn.Linear(8, 4), 0
        self.register_buffer("mean", torch.zeros(8), persistent=persistent)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.layers(inputs)
        if self.training:
            self.passes += 1
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        out: torch.Tensor = self.head(hidden - self.mean)
        return out

    def get_extra_state(self) -> Any:
        return {"passes": self.passes}

    def set_extra_state(self, state: Any) -> None:
        self.passes = state["passes"]


class ScheduleFree(torch.optim.SGD):
    """Keeps other weights for training than for evaluation, as schedule-free optimizers do; switching rounds."""

    def eval(self) -> None:
        self._scale(1 / 1.1)

    def train(self) -> None:
        self._scale(1.1)

    def _scale(self, factor: float) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(factor)


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def fit_scored(model: torch.nn.Module, score: Scored, **settings: Any) -> hp.Result:
    return fit(model, TRAIN, VALID, metrics={"f1": score}, **{"epochs": 4, "target": ("valid_f1", 2.0), **settings})


def same(model: torch.nn.Module, seen: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, seen[name]) for name, value in tensors(model).items())


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"average_decay": 0.9},
    "schedule-free": {"optimizer": lambda params: ScheduleFree(params, lr=0.05)},
    "frozen part": {"tricks": hp.Tricks(transfer=hp.Transfer(freeze=1, unfreeze_every_epochs=2, rate_factor=1.0))},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_model_has_the_weights_and_buffers_of_the_best_evaluation(name: str) -> None:
    score = Scored(SCORES)
    result = fit_scored(mlp() if name == "frozen part" else Odd(), score, **SETTINGS[name])
    assert (result.best_step, result.weights_step) == (6, 6)
    if name == "schedule-free":  # one switch more than the evaluation saw, which rounds
        assert all(torch.allclose(v, score.seen[1][n], rtol=1e-6) for n, v in tensors(result.model).items())
    else:
        assert same(result.model, score.seen[1])
        assert not same(result.model, score.seen[3])
    if isinstance(result.model, Odd):
        assert result.model.passes == 6  # of 12
    assert result.metrics["valid_f1"] == 0.7
    assert result.metrics["valid_loss"] == result.history[1]["valid_loss"]
    assert any("weights: those of step 6" in note and "0.6 after the last step, 12" in note for note in result.notes)


def test_the_test_part_is_evaluated_with_the_weights_that_are_delivered() -> None:
    result = hp.fit(
        mlp(), TRAIN, VALID, test=VALID, metrics={"f1": Scored([*SCORES, 0.1])}, target=("valid_f1", 2.0), optimizer=sgd,
        epochs=4, batch_size=16, device="cpu",
    )  # fmt: skip
    assert result.metrics["test_loss"] == result.history[1]["valid_loss"]


def test_the_last_weights_on_request_and_where_there_is_no_validation_data() -> None:
    score = Scored(SCORES)
    result = fit_scored(mlp(), score, weights="last")
    assert same(result.model, score.seen[3])
    assert (result.best_step, result.weights_step, result.metrics["valid_f1"]) == (6, 12, 0.6)
    alone = hp.fit(mlp(), TRAIN, optimizer=sgd, epochs=4, batch_size=16, device="cpu")
    assert (alone.best_step, alone.weights_step) == (None, 12)
    assert same(alone.model, score.seen[3])
    with pytest.raises(hp.InputError, match=r"weights='first'.*best"):
        fit_scored(mlp(), score, weights="first")


def test_of_equal_evaluations_the_last_counts_and_what_is_not_finite_never_does() -> None:
    result = fit_scored(mlp(), Scored([0.5, 0.7, 0.7, 0.1]))
    assert result.best_step == 9
    records = [{"step": step, "valid_loss": value} for step, value in enumerate([float("nan"), 2.0, 1.0, 1.0, 3.0])]
    assert best_step(records, None) == 3
    assert [since_better(records[:count], None) for count in range(6)] == [0, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("name", ["plain", "averaged", "schedule-free"])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_weights_survive_a_resume(name: str, keep: int, tmp_path: Path, undrawn: None) -> None:
    settings = {**SETTINGS[name], "keep_checkpoints": keep}
    whole = fit_scored(Odd(persistent=True), Scored(SCORES), **settings)

    class Stops(Scored):
        def __call__(self, model: torch.nn.Module, data: Any) -> float:
            if len(self.seen) == 3:
                raise KeyboardInterrupt
            return super().__call__(model, data)

    with pytest.raises(KeyboardInterrupt):
        fit_scored(Odd(persistent=True), Stops(SCORES), run_dir=tmp_path, **settings)
    again = fit_scored(Odd(persistent=True), Scored(SCORES[3:]), run_dir=tmp_path, resume=True, **settings)
    assert again.best_step == 6
    assert same(again.model, tensors(whole.model))
    assert again.model.passes == 6
    last = fit_scored(
        Odd(persistent=True), Scored([]), run_dir=tmp_path, resume=True, **settings
    )  # nothing is left to train
    assert same(last.model, tensors(again.model))


def test_where_the_best_checkpoint_is_damaged_it_is_said(tmp_path: Path, undrawn: None) -> None:
    fit_scored(mlp(), Scored(SCORES[:3]), run_dir=tmp_path, epochs=3)
    (tmp_path / "checkpoints" / "step-000000006" / "facts.json").write_text("{}")
    score = Scored([0.6])
    again = fit_scored(mlp(), score, run_dir=tmp_path, resume=True)
    assert any("best evaluation so far is of step 6, whose checkpoint cannot be used" in note for note in again.notes)
    assert same(again.model, score.seen[-1])
    assert again.weights_step == 12


def test_it_stops_early_after_so_many_evaluations_without_an_improvement(tmp_path: Path, undrawn: None) -> None:
    scores = [0.2, 0.7, 0.5, 0.7, 0.8, 0.1]
    score = Scored(scores)
    result = fit_scored(mlp(), score, epochs=6, patience=2, run_dir=tmp_path)
    assert result.history[-1]["step"] == 12  # a tie is no improvement
    assert result.weights_step == 12
    assert any(note.startswith("stopped early after step 12 of 18: valid_f1 was not better in 2") for note in result.notes)
    again = fit_scored(mlp(), Scored([]), epochs=6, patience=2, run_dir=tmp_path, resume=True)
    assert again.history == result.history  # it does not go on
    more = fit_scored(mlp(), Scored(scores[4:]), epochs=6, patience=4, run_dir=tmp_path, resume=True)
    assert (len(more.history), more.best_step) == (6, 15)


@pytest.mark.parametrize(("settings", "message"), [({"patience": 0}, "patience=0"), ({"patience": 1.5}, "patience=1.5")])
def test_a_patience_that_is_none_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        fit_scored(mlp(), Scored(SCORES), **settings)
    with pytest.raises(hp.InputError, match=r"patience=2 .* pass valid"):
        hp.fit(mlp(), TRAIN, optimizer=sgd, epochs=1, batch_size=16, patience=2)


def test_of_a_sharded_model_each_worker_keeps_its_part(forked: None) -> None:
    found: Callable[[str], hp.Result] = lambda which: hp.fit(  # noqa: E731
        copy.deepcopy(mlp()), TRAIN, VALID, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), epochs=3, batch_size=16,
        weights=which, device="cpu", tricks=hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy="fsdp")),
    )  # fmt: skip
    best = found("best")
    record = next(record for record in best.history if record["step"] == best.best_step)
    assert hp.evaluate(best.model, VALID)["loss"] == pytest.approx(record["valid_loss"], rel=1e-5)
    assert best.metrics["valid_loss"] == record["valid_loss"]
