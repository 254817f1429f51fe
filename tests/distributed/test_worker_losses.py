"""The loss of a batch that is split over workers and micro-batches is that of the whole batch, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers import random_data
from tests.workers import TWO, fit_epoch
from torch import nn

import heptane as hp

# What the model's own loss is a mean over


class Language(nn.Module):
    """A causal language model: its loss leaves out the first label of each row, and those that are -100."""

    def __init__(self, shifts: bool = True, penalty: float = 0.0) -> None:
        super().__init__()
        self.embed, self.out, self.shifts, self.penalty = nn.Embedding(11, 8), nn.Linear(8, 11), shifts, penalty

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.out(self.embed(input_ids).cumsum(1))
        if labels is None:
            return {"logits": logits}
        scores, truth = (logits[:, :-1], labels[:, 1:]) if self.shifts else (logits, labels)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), truth.flatten()) + self.penalty
        return Answer(loss=loss, logits=logits)


class Answer(dict[str, Any]):
    """As transformers answer."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def tokens(padded: bool = True) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 11, (32, 6), generator=draws)
    lengths = torch.randint(1, 7, (32, 1), generator=draws)
    return {"input_ids": ids, "labels": torch.where(torch.arange(6) < lengths, ids, -100) if padded else ids.clone()}


def language(**kind: Any) -> Language:
    torch.manual_seed(0)
    return Language(**kind)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("shifts", [True, False])
def test_a_language_models_own_loss_is_the_same_over_workers_and_micro_batches(shifts: bool) -> None:
    settings: dict[str, Any] = {"loss": "model", "epochs": 2, "batch_size": 8}
    models = [language(shifts=shifts) for _ in range(3)]
    fit_epoch(models[0], tokens(), tricks=hp.Tricks(), **settings)
    fit_epoch(models[1], tokens(), tricks=TWO, **settings)
    fit_epoch(models[2], tokens(), tricks=hp.Tricks(), accumulate=3, **settings)
    for other in models[1:]:
        torch.testing.assert_close(other.state_dict(), models[0].state_dict(), atol=1e-5, rtol=0)
    losses = {round(hp.evaluate(models[0], tokens(), loss="model", batch_size=size)["loss"], 5) for size in (3, 8, 32)}
    assert len(losses) == 1


def test_transformers_gpt2_is_counted_as_it_counts() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    losses = {round(hp.evaluate(model, tokens(), loss="model", batch_size=size)["loss"], 5) for size in (3, 8, 32)}
    assert len(losses) == 1


def test_a_mean_over_nobody_knows_what_is_refused_in_parts() -> None:
    with pytest.raises(hp.InputError, match="what the model averages over is unknown"):
        fit_epoch(language(penalty=1.0), tokens(), tricks=hp.Tricks(), loss="model", accumulate=2)
    fit_epoch(language(penalty=1.0), tokens(), tricks=hp.Tricks(), loss="model")
    fit_epoch(language(penalty=1.0), tokens(padded=False), tricks=hp.Tricks(), loss="model", accumulate=2)


class OwnPadding(Language):
    """Leaves out labels of 0, which nobody else knows; or takes the mean of each row's mean."""

    def __init__(self, by_row: bool = False) -> None:
        super().__init__()
        self.by_row = by_row

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        answer = super().forward(input_ids)
        if labels is not None:
            pieces = [(answer["logits"], labels)]
            if self.by_row:
                pieces = [(answer["logits"][at : at + 1], labels[at : at + 1]) for at in range(len(labels))]
            losses = [nn.functional.cross_entropy(s.flatten(0, 1), own.flatten(), ignore_index=0) for s, own in pieces]
            answer = Answer(loss=torch.stack(losses).mean(), logits=answer["logits"])
        return answer


def test_the_models_own_padding_is_refused_in_parts_and_a_mean_over_samples_is_not() -> None:
    data = tokens()
    data["labels"] = data["labels"].clamp(min=0)
    data["labels"][:, 0] = 1  # no row is empty
    torch.manual_seed(0)
    with pytest.raises(hp.InputError, match="what the model averages over is unknown"):
        fit_epoch(OwnPadding(), data, tricks=hp.Tricks(), loss="model", accumulate=2, batch_size=8)
    models = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        models.append(OwnPadding(by_row=True))
        fit_epoch(models[-1], data, tricks=hp.Tricks(), loss="model", accumulate=accumulate, batch_size=8)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), atol=1e-5, rtol=0)


# A loss of the user's that is no mean over samples


def masked(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    known = targets > -1
    return ((output - targets) ** 2)[known].mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mean_over_unmasked_positions_is_noticed_where_a_batch_is_split(accumulate: int) -> None:
    targets = random_data()[0].clamp(-0.99, 1)
    targets[::2, :3] = -1
    result = fit_epoch(nn.Linear(4, 4), (random_data()[0], targets), tricks=hp.Tricks(), loss=masked, accumulate=accumulate)
    assert any("not a mean over samples" in note for note in result.notes) == (accumulate > 1)
    plain = fit_epoch(
        nn.Linear(4, 4), (random_data()[0], random_data()[0]), tricks=hp.Tricks(), loss=nn.HuberLoss(), accumulate=accumulate
    )
    assert not any("not a mean" in note for note in plain.notes)


def masked_late() -> tuple[torch.Tensor, Any]:
    targets = random_data()[0].clamp(-0.99, 1)
    targets[40:, :3] = -1  # not among the first
    return targets, masked


def overlap() -> tuple[torch.Tensor, Any]:
    def dice(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        likely = output.sigmoid()
        return 1 - 2 * (likely * targets).sum() / (likely.sum() + targets.sum())

    return (random_data()[0] > 0).float(), dice


def contrast() -> tuple[torch.Tensor, Any]:
    def over_pairs(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert len(output) > 1, "there are no pairs"
        return nn.functional.cross_entropy(output @ output.T, torch.arange(len(output)))

    return random_data()[1], over_pairs


@pytest.mark.parametrize("make", [masked_late, overlap, contrast])
def test_losses_that_are_no_mean_over_samples_are_noticed_wherever_it_shows(make: Any) -> None:
    targets, loss = make()
    result = fit_epoch(nn.Linear(4, 4), (random_data()[0], targets), tricks=hp.Tricks(), loss=loss, accumulate=2)
    assert any("not a mean over samples" in note for note in result.notes)


class Parts(nn.Module):
    """Gives several outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"first": self.linear(x), "second": 2 * self.linear(x)}


@pytest.mark.parametrize(("given", "noticed"), [(masked, True), (nn.functional.smooth_l1_loss, False)])
def test_a_loss_of_several_outputs_is_tried_too(given: Any, noticed: bool) -> None:
    def both(output: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return given(output["first"], targets) + given(output["second"], targets)

    result = fit_epoch(Parts(), (random_data()[0], masked_late()[0]), tricks=hp.Tricks(), loss=both, accumulate=2)
    assert any("not a mean over samples" in note for note in result.notes) == noticed
