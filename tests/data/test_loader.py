"""A user's DataLoader gives the batches of a plain loop, from any step, and is left unchanged."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler

import heptane as hp
from heptane.base.randomness import epoch_seed
from heptane.data.batches import BatchTransform
from heptane.data.sources import as_loader, as_source
from heptane.distributed.workers import Worker

CPU = BatchTransform(torch.device("cpu"))


class Numbers(Dataset):
    """Sample i is (i plus noise, i); the noise comes from PyTorch's global generator, as that of transforms does."""

    def __init__(self, num_samples: int = 10, noise: float = 0.0) -> None:
        self.num_samples, self.noise = num_samples, noise

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        value = torch.tensor([float(index)])
        return value + self.noise * torch.rand(1) if self.noise else value, index


class Count(IterableDataset):
    """Claims a length, which need not be true."""

    def __init__(self, claimed: int, real: int) -> None:
        self.claimed, self.real = claimed, real

    def __len__(self) -> int:
        return self.claimed

    def __iter__(self):
        yield from ((torch.tensor([float(i)]), i) for i in range(self.real))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1), 0


class EpochSampler:
    """Its order is a function of the epoch that it was told."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 10

    def __iter__(self):
        return iter(torch.randperm(10, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def own() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def epoch_batches():
    sampler = EpochSampler()
    batches = BatchSampler(sampler, 4, drop_last=False)
    batches.set_epoch = sampler.set_epoch
    return batches


LOADERS = {
    "in order": lambda: DataLoader(Numbers(), batch_size=4),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=4, shuffle=True),
    "noisy": lambda: DataLoader(Numbers(noise=0.5), batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(Numbers(noise=0.5), batch_size=4, shuffle=True, generator=own()),
    "sampler's generator": lambda: DataLoader(Numbers(), batch_size=4, sampler=RandomSampler(range(10), generator=own())),
    "with replacement": lambda: DataLoader(
        Numbers(), batch_size=4, sampler=RandomSampler(range(10), replacement=True, num_samples=11, generator=own())
    ),
    "drop last": lambda: DataLoader(Numbers(), batch_size=4, shuffle=True, drop_last=True),
    "batch sampler": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(range(10), generator=own()), 4, drop_last=False)
    ),
    "epoch sampler": lambda: DataLoader(Numbers(), batch_size=4, sampler=EpochSampler()),
    "epoch batch sampler": lambda: DataLoader(Numbers(), batch_sampler=epoch_batches()),
    "batches made by the data": lambda: DataLoader(
        [(torch.full((3, 1), float(i)), torch.full((3,), i)) for i in range(4)], batch_size=None, shuffle=True
    ),
    "stream": lambda: DataLoader(Count(10, 10), batch_size=4, generator=own()),
    "workers": lambda: DataLoader(Numbers(noise=0.5), batch_size=4, shuffle=True, num_workers=2),
    "workers, own generator": lambda: DataLoader(
        Numbers(noise=0.5), batch_size=4, shuffle=True, num_workers=2, generator=own()
    ),
    "persistent workers": lambda: DataLoader(
        Numbers(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True, generator=own()
    ),
}


def source_of(name: str, window: int = 1, seed: int = 3):
    return as_source(LOADERS[name](), None, seed, window)


def taken(source, start: int, stop: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """The batches, with a training step between any two that draws from the global generator."""
    found = []
    for step, batch in source.batches(start, stop, CPU):
        found.append((step, *batch.take(slice(None))))
        torch.manual_seed(1000 + step)
        torch.rand(step)
    return found


def same(first: list, second: list) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in LOADERS if "noisy" not in name])
def test_batches_are_those_of_the_plain_loop(name):
    source, plain, seed = source_of(name, seed=3), LOADERS[name](), 3
    want, steps = [], len(plain)
    assert source.steps_per_epoch == steps
    for epoch in range(3):
        torch.manual_seed(epoch_seed(seed, epoch))
        for holder in (plain.sampler, plain.batch_sampler):
            if hasattr(holder, "set_epoch"):
                holder.set_epoch(epoch)
        want += [y for _, y in plain]
    found = taken(source, 0, 3 * steps)
    assert [step for step, _, _ in found] == list(range(3 * steps))
    assert all(torch.equal(y, other) for (_, _, y), other in zip(found, want, strict=True))


@pytest.mark.parametrize("name", LOADERS)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(name):
    stop = 3 * source_of(name).steps_per_epoch
    whole = taken(source_of(name), 0, stop)
    starts = (5, stop - 1) if "workers" in name else range(stop)
    for start in starts:
        torch.manual_seed(start)
        torch.rand(7)
        assert same(whole[start:], taken(source_of(name), start, stop)), start


@pytest.mark.parametrize("name", ["shuffled", "noisy", "own generator", "persistent workers", "stream"])
def test_a_run_in_phases_sees_what_one_in_one_piece_sees(name):
    whole = taken(source_of(name), 0, 7)
    source = source_of(name)
    assert same(whole, taken(source, 0, 2) + taken(source, 2, 3) + taken(source, 3, 7))


@pytest.mark.parametrize("rank", [0, 1])
def test_workers_of_a_run_see_the_same_global_batches(rank):
    found = []
    for step, batch in source_of("noisy").batches(0, 6, CPU):
        found.append((step, *batch.take(slice(None))))
        torch.manual_seed(step * 10 + rank)
    assert same(found, taken(source_of("noisy"), 0, 6))


def test_seed_and_epoch_change_the_order():
    orders = {tuple(torch.cat([y for _, _, y in taken(source_of("shuffled", seed=s), 0, 3)]).tolist()) for s in range(5)}
    assert len(orders) == 5
    source = source_of("shuffled")
    assert not same(taken(source, 0, 3), [(s - 3, x, y) for s, x, y in taken(source, 3, 6)])


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_window_joins_so_many_batches_and_the_last_what_is_left(window):
    plain = [y for _, y in DataLoader(Numbers(), batch_size=3)]  # 3 3 3 1
    source = as_source(DataLoader(Numbers(), batch_size=3), None, 0, window)
    assert source.steps_per_epoch == -(-4 // window)
    assert source.batch_size == min(3 * window, 10)
    found = taken(source, 0, 2 * source.steps_per_epoch)
    for index in range(2 * source.steps_per_epoch):
        at = index % source.steps_per_epoch * window
        assert torch.equal(found[index][2], torch.cat(plain[at : at + window]))
    sizes = [batch.size for _, batch in source.batches(0, source.steps_per_epoch, CPU)]
    assert sum(sizes) == 10


def test_batch_size_and_samples_are_the_real_ones():
    assert source_of("batch sampler").batch_size == 4  # the loader has none to say
    assert source_of("batches made by the data").batch_size == 3
    assert as_source(DataLoader(Numbers(3), batch_size=8), None, 0, 1).batch_size == 3
    assert source_of("shuffled").num_samples == source_of("stream").num_samples == 10
    assert source_of("shuffled").sample(3)[1].shape == (3,)
    assert source_of("shuffled").sample(99)[1].shape == (4,)


def test_structures_pass_through_and_are_joined():
    class Structured(Numbers):
        def __getitem__(self, index):
            return {"a": torch.tensor([index, 1]), "b": (index, [float(index)])}, {"y": index}

    loader = DataLoader(Structured(6), batch_size=2)
    ((_, x, y),) = taken(as_source(loader, None, 0, 3), 0, 1)
    assert y["y"].tolist() == list(range(6))
    assert x["a"][:, 0].tolist() == list(range(6))
    assert x["b"][0].tolist() == x["b"][1][0].tolist() == list(range(6))
    _, batch = next(as_source(loader, None, 0, 1).batches(0, 1, CPU))
    part, target = batch.take(slice(1, 2))
    assert part["a"].tolist() == [[1, 1]]
    assert target["y"].tolist() == [1]


def state_of_everything(loader: DataLoader) -> list:
    states = [torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return [*states, *([loader.generator.get_state().tolist()] if loader.generator else []), loader._iterator]


@pytest.mark.parametrize("name", ["noisy", "own generator", "workers, own generator", "persistent workers"])
def test_looking_at_a_sample_leaves_no_trace(name):
    class Careless(Numbers):
        def __getitem__(self, index):
            random.random()
            np.random.rand()
            return super().__getitem__(index)

    loader = LOADERS[name]()
    loader.dataset.__class__ = Careless
    before = state_of_everything(loader)
    source = as_source(loader, None, 3, 1)
    source.sample(2)
    assert state_of_everything(loader) == before


def test_a_step_more_than_asked_for_is_not_read():
    read = []

    class Recorded(Numbers):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    source = as_source(DataLoader(Recorded(), batch_size=2), None, 0, 1)
    taken(source, 0, 2)
    assert read == [0, 1, 2, 3]
    assert taken(source, 2, 2) == []
    assert len(read) == 4


# --- refusals


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (
            lambda: DataLoader(Endless(), batch_size=2),
            "training DataLoader has no length.*give its dataset a __len__",
        ),
        (lambda: DataLoader(Numbers(3), batch_size=4, drop_last=True), "training DataLoader is empty: is drop_last set"),
        (lambda: DataLoader(Numbers(0), batch_size=4), "DataLoader is empty"),
        (
            lambda: DataLoader(Numbers(), batch_size=2, sampler=DistributedSampler(Numbers(), num_replicas=2, rank=0)),
            "has a DistributedSampler for 2 replicas.*pass the DataLoader without it",
        ),
    ],
)
def test_loaders_that_cannot_be_planned_are_refused(loader, message):
    with pytest.raises(hp.InputError, match=message):
        as_source(loader(), None, seed=0, accumulate=1)


def test_a_distributed_sampler_of_one_is_harmless_and_of_two_is_refused_in_evaluation_too():
    one, two = (DistributedSampler(Numbers(), num_replicas=n, rank=0, shuffle=False) for n in (1, 2))
    as_source(DataLoader(Numbers(), batch_size=2, sampler=one), None, 0, 1)
    with pytest.raises(hp.InputError, match="DistributedSampler for 2 replicas"):
        list(as_loader(DataLoader(Numbers(), batch_size=2, sampler=two), 2, Worker().share))


def test_more_accumulation_than_batches_is_refused():
    with pytest.raises(hp.InputError, match="accumulate=4 exceeds the 3 batches"):
        source_of("shuffled", window=4)


@pytest.mark.parametrize("batch_size", [4, None])
def test_the_loaders_own_batch_size_may_be_repeated(batch_size):
    assert as_source(LOADERS["shuffled"](), batch_size, 0, 1).batch_size == 4


def test_another_batch_size_than_the_loaders_is_refused_with_both():
    with pytest.raises(hp.InputError, match="batch_size=8, but the DataLoader has batch_size=4"):
        as_source(LOADERS["shuffled"](), 8, 0, 1)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")  # PyTorch says it too, and goes on
@pytest.mark.parametrize(("real", "word"), [(5, "fewer"), (0, "fewer"), (13, "more")])
def test_a_length_that_is_not_true_ends_the_run_with_a_clear_error(real, word):
    source = as_source(DataLoader(Count(10, real), batch_size=2), None, 0, 1)
    with pytest.raises(hp.InputError, match=f"yielded {word} than the 5 batches.*correct the __len__"):
        taken(source, 0, 10)


def test_batches_that_cannot_be_joined_are_refused():
    ragged = [(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 4), torch.zeros(2))]
    with pytest.raises(hp.InputError, match=r"batches of shapes \(2, 3\), \(2, 4\) cannot be joined.*accumulate=1"):
        taken(as_source(DataLoader(ragged, batch_size=None), None, 0, 2), 0, 1)
    others = [((torch.zeros(2, 3), {1, 2}), torch.zeros(2))] * 2
    with pytest.raises(hp.InputError, match="batches that hold set cannot be joined"):
        taken(as_source(DataLoader(others, batch_size=None), None, 0, 2), 0, 1)
    assert len(taken(as_source(DataLoader(ragged, batch_size=None), None, 0, 1), 0, 2)) == 2


def test_columns_of_text_are_joined_like_the_rest():
    words = [((torch.zeros(2, 3), ["a", "b"]), torch.zeros(2))] * 2
    ((_, (_, found), _),) = taken(as_source(DataLoader(words, batch_size=None), None, 0, 2), 0, 1)
    assert found == ["a", "b", "a", "b"]


@pytest.mark.parametrize("sample", [torch.zeros(3), (torch.zeros(3),), {"x": torch.zeros(3), "y": 1}])
def test_batches_that_are_not_a_pair_are_refused(sample):
    with pytest.raises(hp.InputError, match=r"expected a pair \(inputs, targets\)"):
        taken(as_source(DataLoader([sample] * 4, batch_size=2), None, 0, 1), 0, 1)


def test_fit_trains_from_a_loader_and_resumes_the_plain_order():
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 10)
    plain = torch.nn.Linear(1, 10)
    plain.load_state_dict(model.state_dict())
    for _ in hp.train(model, LOADERS["own generator"](), optimizer=lambda p: torch.optim.SGD(p, lr=0.01), epochs=2):
        pass
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
    steps = taken(source_of("own generator", seed=0), 0, 6)
    for _, x, y in steps:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
    assert torch.equal(model.weight, plain.weight)
