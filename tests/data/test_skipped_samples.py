"""Unreadable samples: named by index and file, skipped up to a limit, the same on every worker."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import assert_equal_weights, by_hand, checkpoint_steps, fit, make_images, mlp, rows_by_step, sgd
from tests.workers import launch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import heptane as hp
from heptane.base import storage
from heptane.base.errors import DataError
from heptane.data.loaders.safe_loader import safe_loader
from heptane.data.loaders.skipped_samples import SkippedSamples, labels_beyond
from heptane.distributed.workers import this_worker

pytestmark = pytest.mark.usefixtures("undrawn")

X, Y = make_images(48)


class Files(Dataset[Any]):
    """Some samples do something else than be read."""

    def __init__(self, odd: dict[int, Any], after: int = 0) -> None:
        self.odd, self.after, self.reads = odd, after, 0
        self.samples = [(f"photos/{i:03}.png", int(label)) for i, label in enumerate(Y)]

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        found = self.odd.get(index)
        if found is None or self.reads <= self.after:
            return X[index], int(Y[index])
        return found()


class Many(Files):
    """The same, read several at a time."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def fails() -> Any:
    raise OSError("cannot identify image file")


USUAL = r"\(float32 \(1, 8, 8\), int\)"
ODD: dict[str, tuple[Any, str]] = {
    "raises": (fails, r"'photos/007\.png': OSError: cannot identify image file"),
    "another shape": (
        lambda: (X[7][:, :5], 0),
        r"it is \(float32 \(1, 5, 8\), int\), other samples are \(float32 \(1, 8, 8\), int\)",
    ),
    "another type": (
        lambda: (X[7].double(), 0),
        r"it is \(float64 \(1, 8, 8\), int\), other samples are \(float32 \(1, 8, 8\), int\)",
    ),
    "a label too high": (lambda: (X[7], 4), r"label 4 is out of range: labels are 0 to 3"),
    "a label below 0": (lambda: (X[7], -1), r"label -1 is out of range: labels are 0 to 3"),
    "nothing": (lambda: None, rf"it is NoneType, other samples are {USUAL}"),
}
HOW: dict[str, Any] = {
    "dataset": lambda data: data,
    "many at once": lambda data: Many(data.odd, data.after),
    "loader": lambda data: DataLoader(data, 16, shuffle=True),
    "loader with processes": lambda data: DataLoader(data, 16, num_workers=1, multiprocessing_context="fork"),
}


def fit_on(data: Any, **settings: Any) -> hp.Result:
    return fit(mlp(), data, **{"epochs": 3, **settings})


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("how", HOW)
def test_a_bad_sample_is_named_and_may_be_left_out(how: str, kind: str) -> None:
    odd, reason = ODD[kind]
    with pytest.raises(DataError, match=rf"^training sample 7 cannot be used \({reason}\): repair or remove it, or") as e:
        fit_on(HOW[how](Files({7: odd})))
    assert "\n" not in str(e.value)
    assert multiprocessing.active_children() == []  # though the traceback keeps the loader's iterator
    result = fit_on(HOW[how](Files({7: odd})), skip_bad=1)
    (note,) = [note for note in result.notes if "was skipped" in note]
    assert note.startswith("training sample 7 was skipped: ")
    assert result.steps["applied"] == 9
    assert all(record["train_loss"] == record["train_loss"] for record in result.history)


def test_what_is_left_is_trained_as_if_the_others_had_not_been_there() -> None:
    model = mlp()
    hp.fit(model, Files({7: fails, 30: fails}), optimizer=sgd, epochs=2, batch_size=16, device="cpu", skip_bad=2)
    left = (rows[(rows != 7) & (rows != 30)] for rows in rows_by_step(48, 16, epochs=2))
    assert_equal_weights(model, by_hand(mlp(), ((X[rows], Y[rows]) for rows in left)))


def test_past_the_limit_it_is_an_error_that_names_those_before() -> None:
    first, second = sorted((7, 30), key=hp.epoch_order(48, 0, 0).tolist().index)
    with pytest.raises(DataError, match=rf"sample {second} .*: it is one more than skip_bad=1 allows, after .*{first}$"):
        fit_on(Files({7: fails, 30: fails}), skip_bad=1)


def test_a_batch_of_which_nothing_is_left_is_passed_over() -> None:
    chosen = hp.epoch_order(48, 0, 0)[16:32].tolist()
    result = fit_on(Files(dict.fromkeys(chosen, fails)), skip_bad=16, epochs=1)
    assert result.steps["applied"] == 2
    assert len([note for note in result.notes if "was skipped" in note]) == 16
    first = dict.fromkeys(hp.epoch_order(48, 0, 0)[:16].tolist(), fails)
    assert fit_on(Files(first), skip_bad=16, epochs=1).steps["applied"] == 2
    with pytest.raises(hp.InputError, match="the training data has no usable sample"):
        fit_on(Files(dict.fromkeys(range(48), fails)), skip_bad=48)


def test_bad_samples_of_the_validation_data_are_named_as_such_and_count_too() -> None:
    with pytest.raises(DataError, match=r"^validation sample 7 cannot be used \('photos/007\.png': OSError"):
        fit_on((X, Y), valid=Files({7: fails}))
    result = fit_on((X, Y), valid=DataLoader(Files({7: fails}), 16), test=Files({3: fails}), skip_bad=2)
    assert sorted(note.split(":")[0] for note in result.notes if "was skipped" in note) == [
        "test sample 3 was skipped",
        "validation sample 7 was skipped",
    ]


def test_data_that_goes_bad_in_hour_nine_costs_nothing_that_was_trained(tmp_path: Path) -> None:
    data = Files({7: fails}, after=132)
    with pytest.raises(DataError, match=r"; saved at step \d+, from where resume goes on$") as caught:
        fit_on(data, run_dir=tmp_path / "run")
    at = checkpoint_steps(tmp_path / "run" / "checkpoints")[0]
    assert at in (6, 7, 8)
    assert f"saved at step {at}," in str(caught.value)
    repaired = fit_on(Files({}), run_dir=tmp_path / "run", resume=True)
    whole = fit_on(Files({}))
    assert_equal_weights(repaired.model, whole.model)


def test_what_was_left_out_before_a_stop_is_listed_after_it(tmp_path: Path) -> None:
    fit_on(Files({7: fails}), run_dir=tmp_path / "run", skip_bad=1, valid=(X, Y), target=("valid_loss", 1e9))
    again = fit_on(Files({}), run_dir=tmp_path / "run", skip_bad=1, valid=(X, Y), resume=True)
    assert [note for note in again.notes if note.startswith("training sample 7 was skipped")]


def test_a_reading_process_that_is_killed_is_said_in_one_line() -> None:
    data = DataLoader(
        Files({7: lambda: os.kill(os.getpid(), signal.SIGKILL)}), 16, num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(DataError, match=r"^a DataLoader worker was killed \(.*\): out of memory\? lower"):
        fit_on(data)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(X[:20], Y[:20], strict=True)
        raise OSError("the line went dead")

    def __len__(self) -> int:
        return 48


def test_of_samples_without_an_index_the_reason_is_given() -> None:
    with pytest.raises(DataError, match=r"^the data cannot be read \(OSError: the line went dead\)"):
        fit_on(DataLoader(Stream(), 16))


def test_the_file_of_a_subset_is_that_of_the_whole() -> None:
    with pytest.raises(DataError, match=r"^training sample 2 cannot be used \('photos/007\.png': OSError"):
        fit_on(Subset(Files({7: fails}), [5, 6, 7, *range(20, 40)]))


def test_a_guarded_loader_is_a_copy_and_the_users_is_as_it_was() -> None:
    loader = DataLoader(TensorDataset(X, Y), 16)
    before = dict(vars(loader))
    made = safe_loader(loader)
    assert made is not loader
    assert safe_loader(made) is made
    assert vars(loader) == before
    assert next(iter(made)).indices == list(range(16))
    unbatched = DataLoader(TensorDataset(X, Y), batch_size=None)
    assert safe_loader(unbatched) is unbatched


def test_labels_beyond_are_found_row_by_row() -> None:
    assert labels_beyond(torch.tensor([0, 2, 1]), 3, -100) == []
    assert labels_beyond(torch.tensor([0, 3, -100, -1]), 3, -100) == [(1, 3), (3, -1)]
    assert labels_beyond(torch.tensor([[0, -100], [2, 5]]), 3, -100) == [(1, 5)]
    assert labels_beyond(torch.tensor([0.5]), 1, -100) == []
    assert labels_beyond([1, 2], 1, -100) == []


def test_one_sample_counts_once() -> None:
    bad = SkippedSamples(limit=1)
    for _ in range(3):
        bad.add("training", [(7, "torn")])
    assert bad.found == {"training sample 7": "torn"}


class OnOne(Files):
    """A sample that only the second worker cannot read."""

    def __getitem__(self, index: int) -> Any:
        if index == 7 and this_worker().rank == 1:
            fails()
        return X[index], int(Y[index])


def over_workers() -> Any:
    tricks = hp.Tricks(data_parallel=hp.DataParallel())
    result = hp.fit(mlp(), OnOne({}), optimizer=sgd, epochs=2, batch_size=16, tricks=tricks, device="cpu", skip_bad=1)
    return result.notes, dict(result.model.state_dict())


def test_every_worker_leaves_out_what_one_cannot_read() -> None:
    notes, state = launch(over_workers, {}, 2)
    assert [note for note in notes if note.startswith("training sample 7 was skipped: ")]
    alone = hp.fit(mlp(), Files({7: fails}), optimizer=sgd, epochs=2, batch_size=16, device="cpu", skip_bad=1)
    for key, value in alone.model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5)


def dropping(items: list[Any]) -> Any:
    """As many write it: what could not be read is None, and left out."""
    return torch.utils.data.default_collate([item for item in items if item is not None])


def test_a_collate_function_that_leaves_out_is_let_be() -> None:
    result = fit_on(DataLoader(Files({7: lambda: None}), 16, collate_fn=dropping))
    assert result.steps["applied"] == 9
    with pytest.raises(DataError, match=r"^label 9 is out of range: labels are 0 to 3; it is in row \d+ of a batch"):
        fit_on(DataLoader(Files({7: lambda: None, 8: lambda: (X[8], 9)}), 48, collate_fn=dropping), skip_bad=5)


def twice(items: list[Any]) -> Any:
    x, y = torch.utils.data.default_collate(items)
    return torch.cat([x, x + 1]), torch.cat([y, y])


def test_one_that_adds_samples_is_too() -> None:
    bad = DataLoader(Files({7: lambda: (X[7] * float("nan"), 0)}, after=50), 16, collate_fn=twice)
    assert fit_on(bad).steps["nonfinite"] >= 1


class Pairs(torch.utils.data.Sampler[Any]):
    def __len__(self) -> int:
        return 48

    def __iter__(self) -> Any:
        return iter([(index, "key") for index in range(48)])


class ByPair(Files):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index[0])


def test_an_index_may_be_anything() -> None:
    assert fit_on(DataLoader(ByPair({}), 16, sampler=Pairs())).steps["applied"] == 9
    with pytest.raises(DataError, match=r"^training sample \(7, 'key'\) cannot be used"):
        fit_on(DataLoader(ByPair({7: fails}), 16, sampler=Pairs()))


def test_numbers_of_several_kinds_are_numbers() -> None:
    assert fit_on(Files({7: lambda: (X[7], np.int64(1)), 9: lambda: (X[9], True)})).steps["applied"] == 9


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("how", ["dataset", "loader"])
def test_labels_out_of_range_are_named_in_evaluation_data_too(part: str, how: str) -> None:
    name = {"valid": "validation", "test": "test"}[part]
    data = HOW[how](Files({40: lambda: (X[40], 7)}))
    with pytest.raises(DataError, match=rf"^{name} sample 40 cannot be used \(label 7 is out of range: labels are 0 to 3\)"):
        fit_on((X, Y), **{part: data})
    assert any(f"{name} sample 40 was skipped" in note for note in fit_on((X, Y), skip_bad=1, **{part: data}).notes)


def test_a_whole_batch_of_another_shape_is_named() -> None:
    odd = dict.fromkeys(range(32, 48), lambda: (torch.zeros(1, 9, 9), 0))
    with pytest.raises(
        DataError, match=r"^training samples 32, 33, 34, 35, \.\.\. are of shape \(1, 9, 9\), the first were"
    ):
        fit_on(DataLoader(Files(odd), 16))


class Draws(Files):
    """From every global generator there is."""

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return X[index] + noise, int(Y[index])


class Shuffles(torch.utils.data.Sampler[int]):
    def __len__(self) -> int:
        return 48

    def __iter__(self) -> Any:
        order = list(range(48))
        random.shuffle(order)
        return iter(order)


def test_what_is_drawn_from_python_and_numpy_is_drawn_again_after_a_stop(tmp_path: Path) -> None:
    def go(**settings: Any) -> hp.Result:
        return fit_on(DataLoader(Draws({}), 8, sampler=Shuffles()), **settings)

    whole = go()
    go(run_dir=tmp_path / "run", checkpoint_every=1, keep_checkpoints=99)
    for step in range(9, 19):
        storage.remove(tmp_path / "run" / "checkpoints" / f"step-{step:09d}")
    again = go(run_dir=tmp_path / "run", resume=True)
    assert_equal_weights(again.model, whole.model)
