"""The record of an examination, counted by hand, in JSON."""

from __future__ import annotations

import json

import pytest
import torch

from heptane.core.criterion import choose_criterion
from heptane.core.losses import CrossEntropy
from heptane.report.examination.collect import MAX_MISTAKES, Collector
from heptane.report.examination.summarise import summarise


def collected(logits: torch.Tensor, targets: torch.Tensor, loss: str = "cross_entropy", batch: int = 2) -> Collector:
    criterion, _ = choose_criterion(loss, logits, targets, None)
    collector = Collector(criterion)
    for start in range(0, len(targets), batch):
        part = slice(start, start + batch)
        assert collector.add(logits[part], logits[part], targets[part])
    return collector


def test_classes_counted_by_hand() -> None:
    truth = torch.tensor([0, 0, 0, 1, 2])
    logits = 4 * torch.eye(3)[[0, 0, 1, 1, 1]]
    logits[4] *= 2
    record = summarise(collected(logits, truth), ["cat", "dog"], ["a.png", "b.png", "c.png", "d.png", "e.png"])
    assert record is not None
    assert json.loads(json.dumps(record)) == record
    assert record["class_names"] == ["cat", "dog", "2"]
    assert record["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert record["accuracy"] == pytest.approx(3 / 5)
    assert record["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert (record["majority_share"], record["num_mistakes"]) == (3 / 5, 2)
    assert record["per_class"][0] == {"class": "cat", "count": 3, "correct": 2, "predicted": 2}
    assert [(row["file"], row["true"], row["predicted"]) for row in record["mistakes"]] == [
        ("e.png", "2", "dog"),
        ("c.png", "cat", "dog"),
    ], "the surest mistake comes first"
    assert record["mistakes"][0]["probability"] == pytest.approx(float(logits[4].softmax(0)[1]))


def test_a_class_without_samples_does_not_count_in_the_balanced_accuracy() -> None:
    record = summarise(collected(4 * torch.eye(3)[[0, 0]], torch.tensor([0, 1])))
    assert record is not None
    assert record["balanced_accuracy"] == 0.5
    assert record["per_class"][2]["count"] == 0


def test_only_the_worst_are_kept_with_their_inputs() -> None:
    size = 4 * MAX_MISTAKES
    logits = torch.stack([torch.linspace(0.1, 5, size), torch.zeros(size)], 1)
    collector = collected(logits, torch.ones(size, dtype=torch.long), batch=7)
    assert [index for _, index, _ in collector.worst] == list(range(size - 1, size - 1 - MAX_MISTAKES, -1))
    assert all(torch.equal(shown, logits[index]) for _, index, shown in collector.worst)


def test_numbers_their_errors_and_what_the_mean_would_have() -> None:
    truth, said = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 6.0])
    record = summarise(collected(said[:, None], truth, "mse"), ["price"])
    assert record is not None
    column = record["columns"][0]
    assert (column["name"], column["mean_absolute_error"], column["root_mean_square_error"]) == ("price", 0.5, 1.0)
    assert column["r2"] == pytest.approx(1 - 1 / 1.25)
    assert record["mistakes"][0] == {"index": 3, "true": 4.0, "predicted": 6.0}
    assert record["points"] == [[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 6.0]]]


def test_numbers_are_told_in_the_units_of_the_data() -> None:
    collector = collected(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 0.5]), "mse")
    record = summarise(collector, units=lambda values: 100 + 10 * values)
    assert record is not None
    assert record["columns"][0]["mean_absolute_error"] == 2.5
    assert record["mistakes"][0] == {"index": 1, "true": 105.0, "predicted": 110.0}


def test_predictions_that_are_not_finite_are_counted_and_left_out() -> None:
    record = summarise(collected(torch.tensor([[1.0], [torch.nan]]), torch.tensor([1.0, 2.0]), "mse"))
    assert record is not None
    assert (record["not_finite"], record["columns"][0]["mean_absolute_error"]) == (1, 0.0)
    lost = summarise(collected(torch.full((2, 2), torch.nan), torch.tensor([0, 1])))
    assert lost is not None
    assert [row["probability"] for row in lost["mistakes"]] == [None]


def test_several_labels() -> None:
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    said = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    record = summarise(collected(said, truth, "binary_cross_entropy"), ["sun", "sea"])
    assert record is not None
    assert record["per_class"][0] == {"class": "sun", "count": 2, "correct": 1, "predicted": 1}
    assert record["mistakes"][0] == {"index": 0, "true": ["sun"], "predicted": ["sun", "sea"]}


def test_many_classes_have_pairs_and_no_matrix() -> None:
    truth = torch.arange(200)
    record = summarise(collected(torch.eye(200)[(truth // 2) * 2], truth))
    assert record is not None
    assert record["confusion"] is None
    assert record["confused"][0] == {"true": "1", "predicted": "0", "count": 1}
    assert len(record["confused"]) == 15


def test_nothing_to_examine_is_no_record() -> None:
    assert summarise(Collector(CrossEntropy())) is None
    assert summarise(collected(torch.zeros(2, 2), torch.tensor([-100, -100]))) is None
