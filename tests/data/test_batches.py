"""Tensors in memory: global batches, shares of evaluation data, errors."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import heptane as hp
from heptane.base.tree import tree_map
from heptane.data.batches import BatchTransform, TensorSource, count_samples, epoch_order
from heptane.data.sources import as_loader, as_source
from heptane.distributed.workers import Worker

CPU = BatchTransform(torch.device("cpu"))
Pair = namedtuple("Pair", "left right")


class Squares(Dataset):
    """Sample i is (i, i * i)."""

    def __init__(self, num_samples: int = 10) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        return torch.tensor([float(index)]), index * index


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.zeros(1), 0) for _ in range(4))


def taken(source, start: int, stop: int, positions: slice = slice(None)) -> list:
    return [(step, *batch.take(positions)) for step, batch in source.batches(start, stop, CPU)]


# --- order


@pytest.mark.parametrize("num_samples", [0, 1, 2, 7, 1000])
def test_order_is_a_permutation(num_samples):
    indices = epoch_order(num_samples, seed=0, epoch=0)
    assert indices.dtype == torch.int64
    assert torch.equal(indices.sort().values, torch.arange(num_samples))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = epoch_order(50, seed=1, epoch=2)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(epoch_order(50, seed=1, epoch=2), first)
    others = [epoch_order(50, seed=seed, epoch=epoch) for seed, epoch in [(2, 1), (1, 1), (0, 2), (1, 3)]]
    assert all(not torch.equal(first, other) for other in others)
    assert torch.equal(hp.epoch_order(50, seed=1, epoch=2), first)


def test_order_is_the_same_on_every_machine():
    assert epoch_order(8, seed=0, epoch=0).tolist() == [0, 7, 1, 3, 4, 2, 6, 5]
    assert epoch_order(8, seed=7, epoch=3).tolist() == [2, 7, 3, 6, 5, 4, 1, 0]


def test_every_position_is_equally_likely():
    places = torch.stack([epoch_order(5, seed=0, epoch=epoch) for epoch in range(4000)])
    for column in range(5):
        share = torch.bincount(places[:, column], minlength=5) / 4000
        assert torch.allclose(share, torch.full((5,), 0.2), atol=0.03)


# --- Tensors


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (12, 4), (5, 5), (1, 1), (9, 1), (7, 6)])
def test_an_epoch_holds_each_sample_once_and_its_last_batch_what_is_left(num_samples, batch_size):
    x = torch.arange(num_samples).float()[:, None]
    source = as_source((x, torch.arange(num_samples)), batch_size, seed=5, accumulate=1)
    steps = source.steps_per_epoch
    assert steps == -(-num_samples // batch_size)
    for epoch in range(2):
        found = taken(source, epoch * steps, (epoch + 1) * steps)
        assert [step for step, _, _ in found] == list(range(epoch * steps, (epoch + 1) * steps))
        assert [len(y) for _, _, y in found][:-1] == [batch_size] * (steps - 1)
        labels = torch.cat([y for _, _, y in found])
        assert torch.equal(labels, epoch_order(num_samples, 5, epoch))
        assert torch.equal(torch.cat([x for _, x, _ in found])[:, 0], labels.float())


def test_any_step_can_be_entered_and_gives_what_an_uninterrupted_run_gives():
    source = TensorSource(torch.randn(11, 2), torch.arange(11), batch_size=4, seed=1)
    whole = taken(source, 0, 9)
    for start in range(9):
        for (step, x, y), (other, x2, y2) in zip(whole[start:], taken(source, start, 9), strict=True):
            assert step == other
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
    assert taken(source, 4, 4) == []


def test_parts_of_a_batch_are_rows_of_the_whole():
    source = TensorSource(torch.randn(7, 2), torch.arange(7), batch_size=7, seed=1)
    _, batch = next(source.batches(0, 1, CPU))
    x, y = batch.take(slice(None))
    assert batch.size == 7
    assert torch.equal(batch.targets(), y)
    for positions in (slice(0, 0), slice(2, 5), torch.tensor([6, 0, 0])):
        assert torch.equal(batch.take(positions)[0], x[positions])
        assert torch.equal(batch.take(positions)[1], y[positions])


def test_nested_inputs_and_targets_keep_their_kinds():
    inputs = {"ids": torch.arange(6), "pair": Pair(torch.arange(6.0).double(), [torch.arange(12).view(6, 2)]), "name": "x"}
    targets = OrderedDict(a=torch.arange(6), b=torch.arange(6) > 2)
    source = as_source((inputs, targets), 4, seed=0, accumulate=1)
    for _, x, y in taken(source, 0, 2):
        rows = x["ids"]
        assert x["name"] == "x"
        assert type(x["pair"]) is Pair
        assert isinstance(x["pair"].right, list)
        assert x["pair"].left.dtype == torch.float64
        assert torch.equal(x["pair"].left, rows.double())
        assert torch.equal(x["pair"].right[0], inputs["pair"].right[0][rows])
        assert type(y) is OrderedDict
        assert torch.equal(y["a"], rows)
        assert torch.equal(y["b"], rows > 2)
    assert torch.equal(source.sample(2)[0]["ids"], torch.tensor([0, 1]))


def test_the_users_structure_is_not_changed():
    inputs = {"a": torch.arange(4), "b": [torch.arange(4)]}
    list(TensorSource(inputs, torch.arange(4), batch_size=2, seed=0).batches(0, 2, CPU))
    assert tree_map(lambda t: t + 1, inputs)["b"][0].tolist() == [1, 2, 3, 4]
    assert inputs["b"][0].tolist() == [0, 1, 2, 3]


def test_rows_that_are_not_contiguous_are_gathered():
    x = torch.randn(3, 8).t()
    source = TensorSource(x, torch.arange(8).flip(0), batch_size=8, seed=0)
    _, got, labels = taken(source, 0, 1)[0]
    assert torch.equal(got, x[7 - labels])


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(4), "5 inputs and 4 targets"),
        (torch.zeros(0, 2), torch.zeros(0), "empty: 0 samples"),
        (torch.tensor(1.0), torch.zeros(4), "inputs are a single number"),
        (torch.zeros(4), torch.tensor(1), "targets are a single number"),
        ({"a": torch.zeros(4), "b": torch.zeros(3, 2)}, torch.zeros(4), r"shape \(3, 2\) beside 4 samples"),
        ({"a": torch.zeros(4), "b": torch.tensor(1)}, torch.zeros(4), r"shape \(\) beside 4 samples"),
        (torch.zeros(4), (torch.zeros(4), torch.zeros(5)), r"shape \(5,\) beside 4 samples"),
        ([1, 2, 3, 4], torch.zeros(4), "data of type int: expected a torch.Tensor"),
        (torch.zeros(4).numpy(), torch.zeros(4), "data of type ndarray: expected a torch.Tensor"),
        ({}, torch.zeros(4), "data of type dict"),
        (None, torch.zeros(4), "data of type NoneType"),
    ],
)
def test_pairs_that_do_not_fit_together_are_refused_in_training_and_evaluation(inputs, targets, message):
    with pytest.raises(hp.InputError, match=message):
        as_source((inputs, targets), 2, seed=0, accumulate=1)
    if "empty" not in message:
        with pytest.raises(hp.InputError, match=message):
            list(as_loader((inputs, targets), 2, Worker().share))


# --- as_source


@pytest.mark.parametrize("data", [TensorDataset(torch.zeros(6, 1), torch.zeros(6)), (torch.zeros(6, 1), torch.zeros(6))])
def test_tensors_stay_tensors(data):
    assert isinstance(as_source(data, 4, seed=0, accumulate=3), TensorSource)


def test_a_dataset_gives_the_same_batches_as_its_tensors():
    data = Squares(10)
    source = as_source(data, 4, seed=3, accumulate=2)
    tensors = as_source((torch.arange(10.0)[:, None], torch.arange(10) ** 2), 4, seed=3, accumulate=2)
    assert (source.steps_per_epoch, source.batch_size, source.num_samples) == (3, 4, 10)
    for (step, x, y), (other, x2, y2) in zip(taken(source, 0, 9), taken(tensors, 0, 9), strict=True):
        assert step == other
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    for start in (1, 4, 5):
        assert all(torch.equal(a[1], b[1]) for a, b in zip(taken(source, start, 9), taken(tensors, start, 9), strict=True))


@pytest.mark.parametrize("kind", [Squares, lambda n: (torch.zeros(n, 1), torch.zeros(n))])
def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(kind):
    as_source(kind(10), 10, seed=0, accumulate=1)
    with pytest.raises(hp.InputError, match="batch_size=11 is larger than the data: expected at most its 10"):
        as_source(kind(10), 11, seed=0, accumulate=1)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "4"])
def test_a_bad_batch_size_is_refused(batch_size):
    with pytest.raises(hp.InputError, match="batch_size="):
        as_source((torch.zeros(10, 1), torch.zeros(10)), batch_size, seed=0, accumulate=1)


def test_a_batch_size_is_needed_unless_a_loader_brings_its_own():
    with pytest.raises(hp.InputError, match="batch_size=None: only a DataLoader has its own"):
        as_source((torch.zeros(10, 1), torch.zeros(10)), None, seed=0, accumulate=1)


@pytest.mark.parametrize(
    "data",
    [
        {"x": torch.zeros(4), "y": torch.zeros(4)},
        "fashion-mnist",
        torch.zeros(4, 2),
        None,
        3,
        set(),
    ],
)
def test_what_is_no_data_is_refused_by_its_type_in_training_and_evaluation(data):
    for attempt in (lambda: as_source(data, 2, 0, 1), lambda: list(as_loader(data, 2, Worker().share))):
        with pytest.raises(hp.InputError, match=f"data of type {type(data).__name__}: expected a pair of tensors"):
            attempt()


def test_an_empty_dataset_is_refused():
    with pytest.raises(hp.InputError, match="empty: 0 samples"):
        as_source(Squares(0), 1, seed=0, accumulate=1)


@pytest.mark.parametrize("data", [(torch.zeros(4),), (torch.zeros(4),) * 3, TensorDataset(*[torch.zeros(4)] * 3)])
def test_other_than_two_things_are_refused_with_their_number(data):
    with pytest.raises(hp.InputError, match=r"data of [13] items: expected a pair \(inputs, targets\)"):
        taken(as_source(data, 2, seed=0, accumulate=1), 0, 1)


# --- as_loader


def kinds_of(num_samples: int) -> dict:
    x, y = torch.arange(num_samples).float()[:, None], torch.arange(num_samples) ** 2
    return {
        "tensors": (x, y),
        "list": [x, y],
        "tensor dataset": TensorDataset(x, y),
        "dataset": Squares(num_samples),
        "loader": DataLoader(Squares(num_samples), batch_size=3),
        "shuffled loader": DataLoader(Squares(num_samples), batch_size=3, shuffle=True),
    }


@pytest.mark.parametrize("kind", kinds_of(1))
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("num_samples", [1, 7, 12])
def test_evaluation_reads_each_sample_once_over_all_workers(kind, workers, num_samples):
    found = []
    for rank in range(workers):
        torch.manual_seed(rank)  # each worker process has its own random state
        for x, y in as_loader(kinds_of(num_samples)[kind], 4, Worker(rank, workers).share):
            assert len(x) == len(y) > 0
            assert torch.equal(x[:, 0] ** 2, y.float())
            found += y.tolist()
    assert sorted(found) == [i * i for i in range(num_samples)]


@pytest.mark.parametrize("kind", [k for k in kinds_of(1) if k != "shuffled loader"])
def test_one_worker_reads_in_order_in_batches_of_the_size_asked_for(kind):
    batches = list(as_loader(kinds_of(7)[kind], 3, Worker().share))
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    assert torch.cat([x for x, _ in batches])[:, 0].tolist() == list(range(7))


@pytest.mark.parametrize("kind", kinds_of(1))
def test_evaluation_leaves_the_global_random_state_alone(kind):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for _ in as_loader(kinds_of(7)[kind], 3, Worker().share):
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_empty_evaluation_data_is_no_batch():
    for data in ((torch.zeros(0, 2), torch.zeros(0)), Squares(0), DataLoader(Squares(0), batch_size=2)):
        assert list(as_loader(data, 2, Worker().share)) == []


def test_a_worker_without_a_share_reads_nothing_and_is_no_error():
    for data in ((torch.zeros(1, 2), torch.zeros(1)), Squares(1), DataLoader(Squares(1), batch_size=2)):
        assert list(as_loader(data, 2, Worker(0, 2).share)) == []


@pytest.mark.parametrize("batch_size", [0, -3, 1.5])
def test_a_bad_batch_size_for_evaluation_is_refused(batch_size):
    with pytest.raises(hp.InputError, match=f"batch_size={batch_size}"):
        list(as_loader((torch.zeros(4, 2), torch.zeros(4)), batch_size, Worker().share))


def test_evaluation_needs_no_length_of_a_loader():
    assert len(list(as_loader(DataLoader(Stream(), batch_size=3), 2, Worker().share))) == 2


def test_nested_evaluation_data_is_cut_alike():
    data = {"a": torch.arange(5), "b": (torch.arange(5),)}, {"y": torch.arange(5)}
    batches = list(as_loader(data, 2, Worker(1, 2).share))
    assert [y["y"].tolist() for _, y in batches] == [[2, 3], [4]]
    assert all(torch.equal(x["a"], y["y"]) and torch.equal(x["b"][0], y["y"]) for x, y in batches)
    shared = DataLoader([({"a": i, "b": i}, i) for i in range(4)], batch_size=4, collate_fn=collate_with_a_scalar)
    ((x, y),) = as_loader(shared, 2, Worker(1, 2).share)
    assert x["a"].tolist() == y.tolist() == [2, 3]
    assert x["scale"].item() == 2.0


def collate_with_a_scalar(samples):
    labels = torch.tensor([y for _, y in samples])
    return {"a": labels, "scale": torch.tensor(2.0)}, labels


def test_counting_asks_every_tensor():
    assert count_samples(({"a": torch.zeros(3, 2)}, [torch.zeros(3), torch.zeros(3, 0)])) == 3


# --- Place


@pytest.mark.parametrize("channels_last", [True, False])
def test_only_images_take_the_memory_format(channels_last):
    place = BatchTransform(torch.device("cpu"), channels_last=channels_last)
    images, rows = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)
    assert place.inputs(images, None).is_contiguous(memory_format=torch.channels_last) == channels_last
    assert place.inputs(rows, None) is rows
    structure = {"a": images}
    assert place.inputs(structure, None) is structure


def test_another_device_gets_every_tensor_of_a_structure():
    moved = BatchTransform(torch.device("meta")).move({"a": torch.zeros(2), "b": [torch.zeros(3)]})
    assert moved["a"].device.type == moved["b"][0].device.type == "meta"
