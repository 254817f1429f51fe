"""Non-finite gradients: the step is skipped, the origin is named, and the run skips, stops or rewinds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import assert_equal_weights, by_hand, fit, make_images, mlp, rows_by_step, sgd
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.core.loop import steps
from heptane.session.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("undrawn")

X, Y = make_images(48)
BAD_SAMPLE = 7
BAD_STEP = hp.epoch_order(48, 0, 0).tolist().index(BAD_SAMPLE) // 16


def spoilt(value: float = math.nan) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample turns bad after the data was looked at, as a file does that is read anew."""
    x = X.clone()
    x[BAD_SAMPLE, 0, 0, 0] = value
    return x, Y


class Turns(torch.nn.Module):
    """Its first layer gives NaN for samples whose first pixel is above 100."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        nn = torch.nn
        self.norm, self.flat, self.first, self.head = nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(self.flat(self.norm(x) * torch.where(x[:, :1, :1, :1] > 100, math.nan, 1.0)))
        out: torch.Tensor = self.head(hidden)
        return out


def four_epochs(model: torch.nn.Module, data: Any, **settings: Any) -> hp.Result:
    return fit(model, data, **{"epochs": 4, **settings})


def test_a_bad_batch_is_passed_over_as_if_it_had_not_been_there() -> None:
    model = Turns()
    result = four_epochs(model, spoilt(200.0))
    good = (rows for rows in rows_by_step(48, 16, epochs=4) if BAD_SAMPLE not in rows)
    assert_equal_weights(model, by_hand(Turns(), ((X[rows], Y[rows]) for rows in good)))
    assert result.steps == {"planned": 12, "applied": 8, "skipped": 0, "nonfinite": 4, "left_out": 0}
    assert all(math.isfinite(record["train_loss"]) for record in result.history)
    assert "the gradients are not finite; it began in the output of layer 'flat' (Flatten)" in result.notes[-4]
    assert f"; sample {BAD_SAMPLE}; passed over" in result.notes[-4]


def test_stop_stops_before_anything_is_spoilt_and_says_where_and_what_to_try() -> None:
    model = Turns()
    with pytest.raises(FloatingPointError) as caught:
        four_epochs(model, spoilt(200.0), on_nan="stop")
    assert str(caught.value) == (
        f"step {BAD_STEP}: the gradients are not finite; it began "
        f"in the output of layer 'flat' (Flatten); sample {BAD_SAMPLE}: lower the learning rate, clip gradients "
        "(clip_norm=1.0), or look at the inputs of that step"
    )
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_after_so_many_in_a_row_it_stops_and_names_the_first() -> None:
    x = X.clone()
    x[:, 0, 0, 0] = 200.0
    with pytest.raises(
        FloatingPointError, match=r"^3 steps in a row, the first at step 0: .*'flat'.*; samples \d+, .*, \.\.\.:"
    ):
        four_epochs(Turns(), (x, Y), nan_limit=3)


class Rooted(torch.nn.Module):
    """Its loss is finite, and its gradient is not: the slope of a root at 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.low, self.head = torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head((self.low(self.flat(x)) * 0).abs().sqrt())
        return out


def test_what_goes_wrong_on_the_way_back_is_found_too() -> None:
    with pytest.raises(
        FloatingPointError, match=r"^step 0: the gradients are not finite; it began on the way back, at layer 'low'"
    ):
        four_epochs(Rooted(), (X, Y), on_nan="stop")


def test_inputs_that_turn_bad_are_named_by_their_samples() -> None:
    data = spoilt()
    run = assemble(mlp(), (X.clone(), Y), Plan.of(optimizer=sgd, epochs=1, batch_size=48, on_nan="stop", device="cpu"))
    run.source.inputs[BAD_SAMPLE] = data[0][BAD_SAMPLE]
    with pytest.raises(FloatingPointError, match=rf"its inputs are not; sample {BAD_SAMPLE}:"):
        next(steps(run))


class Stream(IterableDataset[Any]):
    """Samples without an index."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(*spoilt(200.0), strict=True)))

    def __len__(self) -> int:
        return 48


def test_of_a_loaders_batch_the_sample_is_named_or_its_place_in_the_batch() -> None:
    loader = DataLoader(TensorDataset(*spoilt(200.0)), 16, shuffle=True)
    with pytest.raises(FloatingPointError, match=rf"'flat' \(Flatten\); sample {BAD_SAMPLE}:"):
        four_epochs(Turns(), loader, batch_size=None, on_nan="stop")
    with pytest.raises(FloatingPointError, match=rf"'flat' \(Flatten\); at {BAD_SAMPLE} of its batch:"):
        four_epochs(Turns(), DataLoader(Stream(), 48), batch_size=None, on_nan="stop")


def test_ignored_they_go_into_the_weights_as_in_a_plain_loop_until_losses_were_not_finite_for_long() -> None:
    model = Turns()
    with pytest.raises(
        FloatingPointError, match=r"^the loss was not finite in 2\d consecutive steps, first at step \d+: check"
    ):
        four_epochs(model, spoilt(200.0), on_nan="ignore", epochs=20)
    assert not model.head.weight.isfinite().all()


def test_rewinding_goes_back_to_the_last_checkpoint_and_past_the_batch(tmp_path: Path) -> None:
    result = four_epochs(Turns(), spoilt(200.0), on_nan="rewind", run_dir=tmp_path / "back", checkpoint_every=2)
    skipped = four_epochs(Turns(), spoilt(200.0), on_nan="skip")
    assert_equal_weights(result.model, skipped.model)
    assert result.steps == skipped.steps
    assert "went back to the last checkpoint, then past it" in " ".join(result.notes)
    events = [json.loads(line) for line in (tmp_path / "back" / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "fault" for event in events) == 4


@pytest.mark.parametrize("every", [1, 5, 1000])
def test_how_far_back_it_goes_changes_nothing(every: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"average_decay": 0.9, "evaluate_every_epochs": 2}
    result = four_epochs(
        Turns(), spoilt(200.0), on_nan="rewind", run_dir=tmp_path / "run", checkpoint_every=every, **settings
    )
    skipped = four_epochs(Turns(), spoilt(200.0), on_nan="skip", **settings)
    assert_equal_weights(result.model, skipped.model)
    assert [record["train_loss"] for record in result.history] == [record["train_loss"] for record in skipped.history]


def test_rewinding_stops_too_after_so_many_in_a_row(tmp_path: Path) -> None:
    x = X.clone()
    x[hp.epoch_order(48, 0, 0)[8:]] = 200.0
    with pytest.raises(FloatingPointError, match=r"^3 steps in a row, the first at step 1: .*'flat'"):
        four_epochs(
            Turns(), (x, Y), batch_size=8, on_nan="rewind", nan_limit=3, run_dir=tmp_path / "run", checkpoint_every=1000
        )


def test_rewinding_needs_somewhere_to_go_back_to() -> None:
    with pytest.raises(hp.InputError, match=r"on_nan='rewind' goes back to a checkpoint, and there is none: pass run_dir"):
        four_epochs(Turns(), (X, Y), on_nan="rewind")
    with pytest.raises(hp.InputError, match="use skip or stop"):
        next(hp.train(Turns(), (X, Y), optimizer=sgd, epochs=1, batch_size=16, on_nan="rewind"))


@pytest.mark.parametrize(
    ("setting", "message"), [({"on_nan": "hope"}, "on_nan='hope' is not known"), ({"nan_limit": 0}, "nan_limit=0")]
)
def test_other_words_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        four_epochs(Turns(), (X, Y), **setting)


def test_a_run_that_diverges_says_so_once() -> None:
    def rates(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=1.5)

    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = x @ torch.randn(4, 1)
    grows = hp.Tricks(cyclical=hp.Cyclical(warm_fraction=0.99, cycle_momentum=False))
    result = hp.fit(torch.nn.Linear(4, 1), (x, y), optimizer=rates, epochs=12, batch_size=8, tricks=grows, device="cpu")
    said = [note for note in result.notes if note.startswith("diverging: the training loss is ")]
    assert len(said) == 1
    assert "lower the learning rate" in said[0]
    calm = hp.fit(
        torch.nn.Linear(4, 1), (x, y), optimizer=partial(torch.optim.SGD, lr=0.01), epochs=12, batch_size=8, device="cpu"
    )
    assert not any("diverging" in note for note in calm.notes)


class Hungry(torch.nn.Module):
    """Takes no more than so many samples at once."""

    def __init__(
        self, most: int, word: str = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ) -> None:
        super().__init__()
        self.inner, self.most, self.word = mlp(), most, word

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > self.most:
            raise RuntimeError(self.word)
        out: torch.Tensor = self.inner(x)
        return out


def test_where_memory_is_short_the_batch_is_kept_in_smaller_parts_and_it_is_said() -> None:
    model = Hungry(5)
    result = four_epochs(model, (X, Y))
    whole = four_epochs(mlp(), (X, Y))
    for ours, theirs in zip(model.inner.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    said = [note for note in result.notes if "not enough memory" in note]
    start, end = "step 0: not enough memory for a batch of 16: from here on each is computed in", "over a micro-batch"
    assert said == [f"{start} {parts} micro-batches; BatchNorm normalises {end}" for parts in (2, 4)]
    assert result.steps == whole.steps


def test_another_error_of_the_model_is_not_taken_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"^no such luck$"):
        four_epochs(Hungry(5, "no such luck"), (X, Y))
    with pytest.raises(RuntimeError, match=r"can.t allocate"):
        four_epochs(Hungry(0), (X, Y))


class Larger(Dataset[Any]):
    """From some step on the images are larger: BatchNorm takes them, and the layer after it does not."""

    def __init__(self, from_step: int) -> None:
        self.odd = set(hp.epoch_order(48, 0, 0)[16 * from_step :].tolist())

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        return (torch.full((1, 9, 9), 50.0) if index in self.odd else X[index]), int(Y[index])


def test_a_step_that_fails_on_its_way_leaves_no_trace_in_what_is_saved_after_it(tmp_path: Path) -> None:
    with pytest.raises(hp.InputError, match=r"are of shape \(1, 9, 9\), .*; saved at step 2, from where resume goes on"):
        four_epochs(Turns(), Larger(from_step=2), epochs=1, run_dir=tmp_path / "failed")
    four_epochs(Turns(), (X, Y), epochs=1, run_dir=tmp_path / "whole", checkpoint_every=1, keep_checkpoints=3)
    found, wanted = (
        load_file(RunFolder.checkpoints_of(tmp_path / name) / "step-000000002" / "state.safetensors")
        for name in ("failed", "whole")
    )
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
