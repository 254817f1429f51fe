"""Batches of similar lengths, and padding."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import heptane as hp
from heptane.data.batches import epoch_order

LENGTHS = torch.randint(1, 50, (333,), generator=torch.Generator().manual_seed(0)).tolist()


def batches(epoch: int = 0, **settings):
    sampler = hp.LengthBatches(LENGTHS, **{"batch_size": 8, **settings})
    sampler.set_epoch(epoch)
    return list(sampler)


def test_each_sample_is_in_one_batch_and_all_but_one_are_full():
    found = batches()
    assert sorted(index for batch in found for index in batch) == list(range(333))
    assert sorted(map(len, found)) == [5] + [8] * 41
    assert len(hp.LengthBatches(LENGTHS, 8)) == len(found) == 42


def test_the_order_is_a_function_of_seed_and_epoch():
    assert batches(1) == batches(1)
    assert batches(0) != batches(1)
    assert batches(0) != batches(0, seed=1)


def test_no_draw_of_one_seed_is_one_of_the_next():
    """Batches of one sample, all of one length: the order is the shuffle of the samples, put in the order of the batches."""
    draws = []
    for seed in (0, 1):
        shuffled = epoch_order(200, seed, 0)
        found = torch.tensor([batch[0] for batch in hp.LengthBatches([1] * 200, 1, seed)])
        of_batches = shuffled.argsort()[found]  # at which place of the shuffle each batch was
        assert torch.equal(shuffled[of_batches], found)
        draws += [shuffled, of_batches]
    assert not any(torch.equal(draws[a], draws[b]) for a in range(4) for b in range(a))


def test_a_batch_holds_samples_of_like_length():
    padding = sum(max(LENGTHS[i] for i in b) * len(b) for b in batches()) / sum(LENGTHS)
    at_random = sum(max(LENGTHS[i] for i in b.tolist()) * len(b) for b in torch.arange(333).split(8)) / sum(LENGTHS)
    assert padding < 1.1 < 1.5 < at_random


def test_short_and_long_batches_come_in_random_order():
    means = [sum(LENGTHS[i] for i in b) / len(b) for b in batches()]
    assert means != sorted(means)
    assert torch.corrcoef(torch.stack([torch.tensor(means), torch.arange(len(means)).float()]))[0, 1].abs() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1), "empty"),
        (([1, 2], 3), "batch_size=3 is larger"),
        (([1, 2], 0), "batch_size"),
        (([[1], [2]], 1), "lengths of shape"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(hp.InputError, match=message):
        hp.LengthBatches(*arguments)


def test_padding_keeps_what_is_there_and_fills_the_rest():
    inputs, targets = hp.pad_batch([(torch.ones(2, 3), [4, 5]), (torch.ones(4, 3), [6])], value=-1, multiple=3)
    assert inputs.shape == (2, 6, 3)
    assert inputs[0, :2].eq(1).all()
    assert inputs[0, 2:].eq(-1).all()
    assert targets.tolist() == [[4, 5, -100], [6, -100, -100]]


def test_nested_dicts_and_tuples_are_padded():
    inputs, targets = hp.pad_batch([({"ids": [1, 2], "n": 2}, ([1], 1)), ({"ids": [3], "n": 1}, ([1, 2], 2))])
    assert inputs["ids"].tolist() == [[1, 2], [3, 0]]
    assert inputs["n"].tolist() == [2, 1]
    assert isinstance(targets, tuple)
    assert targets[0].tolist() == [[1, -100], [1, 2]]
    assert targets[1].tolist() == [1, 2]


def test_samples_that_do_not_go_together_are_named():
    with pytest.raises(hp.InputError, match=r"inputs are .*\(2, 3\) and .*\(2, 4\)"):
        hp.pad_batch([(torch.ones(2, 3), 0), (torch.ones(2, 4), 0)])
    with pytest.raises(hp.InputError, match="the same keys"):
        hp.pad_batch([{"a": [1]}, {"b": [1]}])
    with pytest.raises(hp.InputError, match="type int"):
        hp.pad_batch([1, 2])


class Text(torch.utils.data.Dataset):
    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        ids = torch.full((LENGTHS[index],), index % 5 + 1)
        return {"ids": ids, "attention_mask": torch.ones(len(ids))}, index % 5 % 2


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 2)

    def forward(self, ids, attention_mask):
        hidden = self.embedding(ids) * attention_mask[..., None]
        return self.head(hidden.sum(1) / attention_mask.sum(1, keepdim=True))


def fitted(tmp_path=None, epochs=2, **settings):
    loader = torch.utils.data.DataLoader(Text(), batch_sampler=hp.LengthBatches(LENGTHS, 8), collate_fn=hp.pad_batch)
    model = Net()
    optimizer = partial(torch.optim.AdamW, lr=0.02)
    result = hp.fit(model, loader, optimizer=optimizer, epochs=epochs, run_dir=tmp_path, **settings)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), result


def test_training_on_them_learns_and_a_resumed_run_is_the_same(tmp_path):
    whole, result = fitted()
    assert result.history[-1]["train_accuracy"] > 0.95
    assert result.steps["applied"] == 84
    taken = []

    def stop_late(model, data):
        taken.append(len(taken))
        if len(taken) == 3:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises((hp.Interrupted, KeyboardInterrupt)):
        fitted(
            tmp_path / "run",
            valid=hp.pad_batch([Text()[i] for i in range(8)]),
            metrics={"m": stop_late},
            evaluate_every_epochs=0.6,
        )
    again, _ = fitted(tmp_path / "run", resume=True, evaluate_every_epochs=0.6)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("paired", [True, False])
def test_masks_are_padded_with_what_leaves_padding_out_whatever_pads_the_rest(paired: bool):
    samples = [
        {"ids": [5, 6], "attention_mask": [1, 1], "src_key_padding_mask": [False, False]},
        {"ids": [7], "attention_mask": [1], "src_key_padding_mask": [False]},
    ]
    found = hp.pad_batch([(sample, 0) for sample in samples], value=1)[0] if paired else hp.pad_batch(samples, value=1)
    assert found["ids"].tolist() == [[5, 6], [7, 1]]
    assert found["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert found["src_key_padding_mask"].tolist() == [[False, False], [False, True]]
