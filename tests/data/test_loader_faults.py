"""Unusual loaders: the user's objects are used as they are, batch sizes are observed, duplicate samples noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.helpers import fit, sgd
from tests.workers import TWO, launch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, get_worker_info

import heptane as hp
from heptane.data.sources import as_source

X = torch.arange(256.0).reshape(64, 4) / 256
Y = torch.arange(64) % 3


class Seen(nn.Linear):
    """Remembers the samples that it was trained on, by their first number."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.seen: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += x[:, 0].tolist()
        return super().forward(x)


def fit_seen(loader: Any, valid: Any = None, **more: Any) -> tuple[list[float], hp.Result]:
    model = Seen()
    result = fit(model, loader, valid, **{"epochs": 1, **more})
    return model.seen, result


# The user's objects stay themselves


class Shifted(Dataset[Any]):
    def __init__(self) -> None:
        self.shift, self.reads = 0.0, 0

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        info = get_worker_info()
        assert info is None or type(info.dataset) is Shifted
        return X[index] + self.shift, Y[index]

    def first(self) -> torch.Tensor:
        return self[0][0]


class Many(Shifted):
    def __getitem__(self, index: int) -> Any:
        return X[index] + self.shift, Y[index]

    def __getitems__(self, indices: list[int]) -> Any:
        return [self[index] for index in indices]


def shift(reader: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, Shifted)
    assert info.dataset.first().shape == (4,)
    info.dataset.shift = 7.0


@pytest.mark.parametrize("kind", [Shifted, Many])
def test_what_worker_init_fn_sets_on_the_data_set_has_its_effect(kind: type[Shifted]) -> None:
    seen, _ = fit_seen(DataLoader(kind(), 16, num_workers=1, worker_init_fn=shift))
    assert min(seen) >= 7.0


def test_attributes_that_reading_changes_are_the_users_own() -> None:
    data = Shifted()
    fit_seen(DataLoader(data, 16))
    assert data.reads >= 64


def test_a_loader_with_an_iter_of_its_own_is_iterated_by_it() -> None:
    class Doubling(DataLoader[Any]):
        def __iter__(self) -> Iterator[Any]:
            for x, y in super().__iter__():
                yield x * 2, y

    seen, result = fit_seen(Doubling(TensorDataset(X, Y), 16), Doubling(TensorDataset(X, Y), 16))
    assert sorted(seen) == (2 * X[:, 0]).tolist()
    assert "valid_accuracy" in result.metrics


def test_collate_functions_and_samplers_keep_their_attributes() -> None:
    class Collate:
        calls = 0

        def __call__(self, items: list[Any]) -> Any:
            self.calls += 1
            return torch.utils.data.default_collate(items)

    class Backwards(Sampler[int]):
        passes = 0

        def __len__(self) -> int:
            return 64

        def __iter__(self) -> Iterator[int]:
            self.passes += 1
            return iter(range(63, -1, -1))

    collate, sampler = Collate(), Backwards()
    seen, _ = fit_seen(DataLoader(TensorDataset(X, Y), 16, sampler=sampler, collate_fn=collate))
    assert seen == X.flip(0)[:, 0].tolist()
    assert collate.calls >= 4
    assert sampler.passes >= 1


def test_what_a_data_set_reads_at_once_goes_to_its_collate_function_as_it_is() -> None:
    class AtOnce(Shifted):
        def __getitem__(self, index: int) -> Any:
            raise NotImplementedError

        def __getitems__(self, indices: list[int]) -> Any:
            return X[indices], Y[indices]

    loader = DataLoader(AtOnce(), 16, collate_fn=lambda batch: batch)
    seen, result = fit_seen(loader, loader)
    assert seen == X[:, 0].tolist()
    assert "valid_accuracy" in result.metrics


# How large a batch is


class Whole(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return X[32 * index : 32 * index + 32], Y[32 * index : 32 * index + 32]


class Uneven(Sampler[list[int]]):
    """Batches of 4, 20, 20 and 20."""

    def __iter__(self) -> Iterator[list[int]]:
        yield list(range(4))
        for start in (4, 24, 44):
            yield list(range(start, start + 20))

    def __len__(self) -> int:
        return 4


def test_a_batch_is_as_large_as_what_is_seen() -> None:
    whole = as_source(DataLoader(Whole(), batch_size=None), None, 0, 1)
    assert (whole.batch_size, whole.num_samples, whole.steps_per_epoch) == (32, 64, 2)
    uneven = as_source(DataLoader(TensorDataset(X, Y), batch_sampler=Uneven()), None, 0, 1)
    assert (uneven.batch_size, uneven.num_samples) == (16, 64)
    assert as_source(DataLoader(TensorDataset(X, Y), batch_sampler=Uneven()), None, 0, 2).batch_size == 32


def test_the_rate_is_scaled_by_the_batch_that_is_seen() -> None:
    tricks = hp.Tricks(lr_scaling=hp.LRScaling(reference_batch=16, warmup_epochs=0))
    _, result = fit_seen(DataLoader(Whole(), batch_size=None), tricks=tricks)
    assert result.schedule["learning_rate"][-1] == pytest.approx(0.2)
    _, result = fit_seen(DataLoader(TensorDataset(X, Y), batch_sampler=Uneven()), tricks=tricks)
    assert result.schedule["learning_rate"][-1] == pytest.approx(0.1)


def glued(items: list[Any]) -> Any:
    return torch.cat([x for x, _ in items]), torch.cat([y for _, y in items])


class Halves(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:
        for x, y in super().__iter__():
            yield x[:8], y[:8]


class Sized(Dataset[Any]):
    """Batches of these sizes."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        return X[: self.sizes[index]], Y[: self.sizes[index]]


def padded(items: list[Any]) -> Any:
    return torch.utils.data.default_collate(items)


SIZES: dict[str, tuple[Any, tuple[int, int]]] = {
    "several items put together": (lambda: DataLoader(Sized(8, 8, 8, 8), 2, collate_fn=glued), (16, 32)),
    "an __iter__ that leaves samples out": (lambda: Halves(TensorDataset(X, Y), 16), (8, 32)),
    "batches of other sizes": (lambda: DataLoader(Sized(8, 24, 16, 16), batch_size=None), (16, 64)),
    "a short last batch": (lambda: DataLoader(Sized(16, 4), batch_size=None), (16, 32)),
    "a sampler of some samples": (lambda: DataLoader(TensorDataset(X, Y), 8, sampler=range(16)), (8, 16)),
    "a collate function of single samples": (lambda: DataLoader(TensorDataset(X, Y), 16, collate_fn=padded), (16, 64)),
}


@pytest.mark.parametrize("kind", SIZES)
def test_the_size_of_a_batch_is_that_of_what_comes_out_of_the_loader(kind: str) -> None:
    made, expected = SIZES[kind]
    source = as_source(made(), None, 0, 1)
    assert (source.batch_size, source.num_samples) == expected


def test_the_size_of_a_stream_s_batches_too() -> None:
    stream = as_source(DataLoader(Endless(), 2, collate_fn=glued), None, 0, 1, steps=4)
    assert stream.batch_size == 16


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield X[:8], Y[:8]


def test_a_bad_sample_may_be_skipped_where_the_size_of_a_batch_is_measured() -> None:
    class First(Shifted):
        def __getitem__(self, index: int) -> Any:
            if index == 0:
                raise OSError("unreadable")
            return X[index], Y[index]

    _, result = fit_seen(DataLoader(First(), 16, collate_fn=padded), skip_bad=1)
    assert result.steps["applied"] == 4


# Readers that do not share the work


class Stream(IterableDataset[Any]):
    def __init__(self, count: int, split: bool = False, noise: bool = False) -> None:
        self.count, self.split, self.noise = count, split, noise

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info is not None and self.split else (0, 1)
        for index in range(start, self.count, step):
            yield X[index] + (torch.rand(()) if self.noise else 0), Y[index]


def test_readers_that_each_give_all_samples_are_noticed_in_training_and_in_evaluation() -> None:
    with pytest.raises(
        hp.InputError, match=r"training IterableDataset yields the same samples: each of its 2 DataLoader workers"
    ):
        fit_seen(DataLoader(Stream(64), 16, num_workers=2))
    with pytest.raises(hp.InputError, match="validation IterableDataset yields the same samples"):
        fit_seen(DataLoader(TensorDataset(X, Y), 16), DataLoader(Stream(50), 16, num_workers=2))
    with pytest.raises(hp.InputError, match="more samples than the 50 of its length"):
        hp.evaluate(nn.Linear(4, 3), DataLoader(Stream(50, noise=True), 16, num_workers=2))


def test_readers_that_share_the_samples_are_let_be() -> None:
    seen, result = fit_seen(
        DataLoader(Stream(64, split=True), 16, num_workers=2), DataLoader(Stream(64, True), 16, num_workers=2)
    )
    assert sorted(seen) == X[:, 0].tolist()
    assert "valid_accuracy" in result.metrics


@pytest.mark.parametrize("more", [{}, {"drop_last": True}], ids=["all", "drop_last"])
def test_readers_that_repeat_are_noticed_in_the_first_epoch_also_where_the_samples_are_augmented(more: Any) -> None:
    with pytest.raises(hp.InputError, match="more samples than the 64 of its length"):
        fit_seen(DataLoader(Stream(64, noise=True), 16, num_workers=2, **more))


def test_readers_whose_last_batches_are_short_are_all_read() -> None:
    seen, result = fit_seen(DataLoader(Stream(40, split=True), 16, num_workers=2), epochs=2)
    assert sorted(seen[:40]) == sorted(seen[40:]) == X[:40, 0].tolist()
    assert result.steps["planned"] == 8


class WithoutLength(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def test_a_validation_loader_without_a_length_is_evaluated() -> None:
    _, result = fit_seen(DataLoader(TensorDataset(X, Y), 16), DataLoader(WithoutLength(), 16))
    expected = hp.evaluate(result.model, (X, Y))
    assert result.metrics["valid_accuracy"] == expected["accuracy"]


# One buffer that is filled again and again


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_collate_function_that_fills_one_buffer_again_and_again(accumulate: int) -> None:
    buffer = torch.zeros(16, 4), torch.zeros(16, dtype=torch.long)

    def collate(items: list[Any]) -> Any:
        for row, (x, y) in enumerate(items):
            buffer[0][row], buffer[1][row] = x, y
        return buffer

    seen, result = fit_seen(DataLoader(TensorDataset(X, Y), 16, collate_fn=collate), accumulate=accumulate)
    assert sorted(seen) == X[:, 0].tolist()
    plain = fit_seen(DataLoader(TensorDataset(X, Y), 16), accumulate=accumulate)[1]
    assert result.history[0].keys() == plain.history[0].keys()


class Refilling(DataLoader[Any]):
    """Its ``__iter__`` fills one buffer, as loaders that move batches to a device ahead of time do."""

    def __iter__(self) -> Iterator[Any]:
        x, y = torch.zeros(16, 4), torch.zeros(16, dtype=torch.long)
        for inputs, targets in super().__iter__():
            yield x.copy_(inputs), y.copy_(targets)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_fills_one_buffer_again_and_again(workers: int) -> None:
    def same(predictions: torch.Tensor, targets: torch.Tensor) -> float:
        return float((predictions.argmax(1) == targets).float().mean())

    made = Refilling(TensorDataset(X, Y), 16, num_workers=workers)
    seen, result = fit_seen(made, made, accumulate=2, metrics={"same": same})
    assert sorted(seen) == X[:, 0].tolist()
    assert result.metrics["valid_same"] == pytest.approx(result.metrics["valid_accuracy"])


# The draws of one seed are no other's


def test_no_two_seeds_and_epochs_shuffle_alike() -> None:
    orders = set()
    for seed in range(3):
        seen, _ = fit_seen(DataLoader(TensorDataset(X, Y), 16, shuffle=True), epochs=3, seed=seed)
        orders |= {tuple(seen[start : start + 64]) for start in (0, 64, 128)}
    assert len(orders) == 9


# Readers that were started before


def test_persistent_readers_that_were_used_before() -> None:
    loader = DataLoader(TensorDataset(X, Y), 16, num_workers=1, persistent_workers=True, shuffle=True)
    next(iter(loader))
    seen, _ = fit_seen(loader, loader)
    assert sorted(seen) == X[:, 0].tolist()


# Several workers


class ByRank(Sampler[int]):
    """Shuffles by a generator of its own, which is seeded differently in each process."""

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Iterator[int]:
        own = torch.Generator().manual_seed(int(os.environ.get("RANK", "0")))
        return iter(torch.randperm(64, generator=own).tolist())


class ByRankData(Dataset[Any]):
    """Its list of samples comes out in another order in each process, as that of a set may; or only their inputs do."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        other = (index + 7 * int(os.environ.get("RANK", "0"))) % 64
        return X[other], Y[index if self.what == "inputs" else other]


@pytest.mark.usefixtures("forked")
def test_a_sampler_that_differs_between_workers_is_refused() -> None:
    with pytest.raises(
        hp.InputError, match=r"workers read different samples, .* in worker 0 and .* in worker 1.*sort lists of files"
    ):
        hp.fit(nn.Linear(4, 3), DataLoader(TensorDataset(X, Y), 16, sampler=ByRank()), optimizer=sgd, epochs=1, tricks=TWO)


@pytest.mark.usefixtures("forked")
def test_a_data_set_in_another_order_in_each_worker_is_refused_and_other_inputs_are_said() -> None:
    with pytest.raises(hp.InputError, match="different targets in workers 1 and 0"):
        hp.fit(nn.Linear(4, 3), ByRankData("all"), optimizer=sgd, epochs=1, batch_size=16, tricks=TWO)
    result = hp.fit(nn.Linear(4, 3), ByRankData("inputs"), optimizer=sgd, epochs=1, batch_size=16, tricks=TWO)
    assert any("different inputs in each worker" in note for note in result.notes)


class Rotten(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        if index in (3, 60):  # one in each worker's share
            raise OSError("unreadable")
        return X[index], Y[index]


@pytest.mark.usefixtures("forked")
def test_the_bad_validation_samples_of_all_workers_are_named_and_counted() -> None:
    settings = {"optimizer": sgd, "epochs": 1, "batch_size": 16, "tricks": TWO}
    result = hp.fit(nn.Linear(4, 3), (X, Y), Rotten(), skip_bad=2, **settings)
    named = [note for note in result.notes if "validation sample" in note]
    assert len(named) == 2
    assert "sample 3" in "".join(named)
    assert "sample 60" in "".join(named)
    with pytest.raises(hp.InputError, match="one more than skip_bad=1 allows"):
        hp.fit(nn.Linear(4, 3), (X, Y), Rotten(), skip_bad=1, **settings)


class Labelled(Dataset[Any]):
    """Data of one length whose labels are another list in each process, as a list of files made from a set gives."""

    def __init__(self, shift: int) -> None:
        self.inputs, self.labels = torch.arange(40.0)[:, None], torch.arange(40).roll(shift) % 3

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.labels[index]


def evaluated_on(kind: str) -> str:
    rank = int(os.environ["RANK"])
    own: Any = Labelled(rank)
    if kind == "split":
        own = torch.utils.data.random_split(Labelled(0), [30, 10], torch.Generator().manual_seed(rank))[0]
    if kind == "sampler":
        drawn = torch.utils.data.RandomSampler(Labelled(0), generator=torch.Generator().manual_seed(rank))
        own = DataLoader(Labelled(0), 8, sampler=drawn)
    tricks = hp.Tricks(data_parallel=hp.DataParallel())
    try:
        torch.manual_seed(0)
        hp.fit(torch.nn.Linear(1, 3), Labelled(0), own, optimizer="sgd", epochs=1, batch_size=8, tricks=tricks)
    except hp.InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["labels", "split", "sampler"])
def test_evaluation_data_that_differ_between_workers_are_refused(kind: str) -> None:
    assert "data of workers 1 and 0 differs: make them equal" in launch(evaluated_on, {"kind": kind}, 2)
