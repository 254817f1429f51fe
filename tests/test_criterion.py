"""Losses and targets: mean, total and count agree, mixup and smoothing compose, choices are explained."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import heptane as hp
from heptane.core.criterion import choose_criterion
from heptane.core.custom_losses import CustomLoss
from heptane.core.losses import CrossEntropy, Ctc, Elementwise, safe_divisor
from heptane.core.targets import MixedTargets

IGNORE = -100
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)


def chosen(loss, output, targets, eps=0.0):
    return choose_criterion(loss, output, targets, eps or None)[0]


def mixed(targets: torch.Tensor, lam=None, seed: int = 1) -> MixedTargets:
    random = torch.Generator().manual_seed(seed)
    lam = torch.rand(len(targets), generator=random) if lam is None else torch.full((len(targets),), lam)
    return MixedTargets(targets, targets[torch.randperm(len(targets), generator=random)], lam)


def part_of(targets, part: slice):
    if isinstance(targets, MixedTargets):
        return MixedTargets(targets.first[part], targets.second[part], targets.lam[part])
    return tuple(each[part] for each in targets) if isinstance(targets, tuple) else targets[part]


def classes(num: int, *more: int, ignored: bool = False) -> torch.Tensor:
    targets = torch.randint(0, 5, (num, *more))
    if ignored:
        targets[torch.rand(targets.shape) < 0.3] = IGNORE
    return targets


def soft(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(1)


def kinds() -> dict:
    """One (criterion, output, targets) of every kind, plain and mixed."""
    torch.manual_seed(7)
    flat, sequence = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, 4, dtype=torch.float64)
    rows, labels, reals = classes(9), torch.randint(0, 2, (9, 5)).double(), torch.randn(9, 5, dtype=torch.float64)
    ignored = classes(9, 4, ignored=True)
    some_soft = soft(9, 5)
    some_soft[2:4] = 0
    cases = {
        "integer": (CrossEntropy(), flat, rows),
        "smoothed": (CrossEntropy(eps=0.1), flat, rows),
        "weighted": (CrossEntropy(eps=0.1, weight=WEIGHT), flat, rows),
        "ignored": (CrossEntropy(eps=0.1, weight=WEIGHT), sequence, ignored),
        "classes last": (CrossEntropy(eps=0.1, class_dim=-1), sequence.mT, ignored),
        "ignored class": (CrossEntropy(ignore_index=2), flat, rows),
        "soft": (CrossEntropy(eps=0.1, weight=WEIGHT), flat, soft(9, 5)),
        "soft, ignored": (CrossEntropy(eps=0.1), flat, some_soft),
        "soft sequence": (CrossEntropy(eps=0.1, class_dim=-1), sequence.mT, soft(9, 5, 4).mT),
        "log-probabilities": (CrossEntropy(log_probs=True, weight=WEIGHT), flat.log_softmax(1), rows),
        "multi-label": (chosen("binary_cross_entropy", flat, labels, 0.1), flat, labels),
        "multi-label, weighted": (chosen(nn.BCEWithLogitsLoss(pos_weight=WEIGHT), flat, labels, 0.1), flat, labels),
        "regression": (chosen("mse", flat, reals), flat, reals),
        "one number": (chosen("l1", flat[:, :1], reals[:, 0]), flat[:, :1], reals[:, 0]),
        "smooth l1": (chosen("smooth_l1", flat, reals), flat, reals),
        "own": (CustomLoss(functional.mse_loss), flat, reals),
        "own, per sample": (CustomLoss(partial(functional.cross_entropy, reduction="none")), flat, rows),
    }
    both = {}
    for name, (criterion, output, targets) in cases.items():
        both[name] = criterion, output, targets
        both[f"{name}, mixed"] = criterion, output, mixed(targets, 0.3 if isinstance(criterion, CustomLoss) else None)
    both["ctc"] = (Ctc(eps=0.1), torch.randn(9, 9, 5, dtype=torch.float64).log_softmax(-1), ctc_targets())
    return both


def ctc_targets():
    return torch.randint(1, 5, (9, 3)), torch.randint(7, 10, (9,)), torch.randint(1, 4, (9,))


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_the_total_over_the_count(kind):
    criterion, output, targets = KINDS[kind]
    mean, total = float(criterion.mean(output, targets)), float(criterion.total(output, targets))
    assert mean == pytest.approx(total / float(criterion.count(targets)), rel=1e-7)
    assert float(criterion.count(targets)) > 0


@pytest.mark.parametrize("edges", [[0, 4, 9], [0, 1, 8, 9], list(range(10))], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_trap_4_unequal_parts_sum_to_the_whole(kind, edges):
    criterion, output, targets = KINDS[kind]
    cut = (lambda part: output[:, part]) if kind == "ctc" else (lambda part: output[part])
    parts = [slice(a, b) for a, b in pairwise(edges)]
    for form in (criterion.total, criterion.plain):
        summed = sum(form(cut(part), part_of(targets, part)) for part in parts)
        assert float(summed) == pytest.approx(float(form(output, targets)), rel=1e-12)
    counted = sum(float(criterion.count(part_of(targets, part))) for part in parts)
    assert counted == pytest.approx(float(criterion.count(targets)), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_trap_6_plain_is_the_same_loss_without_smoothing(kind):
    criterion, output, targets = KINDS[kind]
    if not getattr(criterion, "eps", 0):
        assert float(criterion.plain(output, targets)) == pytest.approx(float(criterion.total(output, targets)), rel=1e-12)
        return
    bare = {**vars(criterion), "eps": 0.0}
    assert float(criterion.plain(output, targets)) == float(type(criterion)(**bare).total(output, targets))
    assert float(criterion.plain(output, targets)) != float(criterion.total(output, targets))


def from_definition(output, first, second, lam, eps, weight, ignore_index=IGNORE):
    """Cross-entropy of blended integers, a number at a time: the total, and what the mean is over."""
    total = count = 0.0
    num_classes = output.shape[1]
    log_p = output.log_softmax(1)
    for i in range(len(output)):
        q = [0.0] * num_classes
        share = 0.0
        for label, part in ((int(first[i]), float(lam[i])), (int(second[i]), 1 - float(lam[i]))):
            if label != ignore_index:
                q[label] += part
                share += part
                count += part * float(weight[label])
        for c in range(num_classes):
            smoothed = (1 - eps) * q[c] + eps * share / num_classes
            total -= float(weight[c]) * smoothed * float(log_p[i, c])
    return total, count


@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignored"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_weights_mixup_smoothing_and_ignored_positions_against_a_sum_by_hand(eps, weight, ignored):
    output, targets = torch.randn(12, 5, dtype=torch.float64), mixed(classes(12, ignored=ignored))
    total, count = from_definition(
        output, targets.first, targets.second, targets.lam, eps, torch.ones(5) if weight is None else weight
    )
    criterion = CrossEntropy(eps=eps, weight=weight)
    assert float(criterion.total(output, targets)) == pytest.approx(total, rel=1e-10)
    assert float(criterion.count(targets)) == pytest.approx(count, rel=1e-6)
    assert float(criterion.mean(output, targets)) == pytest.approx(total / count, rel=1e-6)


def test_trap_7_mixup_and_smoothing_compose_once():
    """The share of the wrong classes is eps (K - 1) / K: 0.09 of 10 classes, where smoothing twice gives 0.171."""
    targets = MixedTargets(torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long), torch.tensor([0.7]))
    output = torch.eye(10, dtype=torch.float64)
    totals = torch.stack([CrossEntropy(eps=0.1).total(row[None], targets) for row in output])
    q = torch.linalg.solve(-output.log_softmax(1), totals)
    expected = [0.9 * 0.7 + 0.01, 0.9 * 0.3 + 0.01] + [0.01] * 8
    assert q.tolist() == pytest.approx(expected, rel=1e-6)


def test_mixing_integers_equals_mixing_their_smoothed_one_hot_rows():
    output, targets = torch.randn(8, 5, dtype=torch.float64), mixed(classes(8), 0.3)
    _, blended = hp.mixup_batch(torch.zeros(8, 1), hp.smooth_labels(targets.first, 0.0, 5), 0.3, torch.arange(8))
    rows = 0.3 * hp.smooth_labels(targets.first, 0.1, 5) + 0.7 * hp.smooth_labels(targets.second, 0.1, 5)
    expected = functional.cross_entropy(output, rows.double())
    assert float(CrossEntropy(eps=0.1).mean(output, targets)) == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(blended, hp.smooth_labels(targets.first, 0.0, 5))


@pytest.mark.parametrize("lam", [1.0, 0.0])
@pytest.mark.parametrize("targets", [classes(9, ignored=True), soft(9, 5)], ids=["integer", "soft"])
def test_a_blend_with_nothing_is_the_plain_loss(targets, lam):
    output, criterion = torch.randn(9, 5, dtype=torch.float64), CrossEntropy(eps=0.1, weight=WEIGHT)
    pair = mixed(targets, lam)
    plain = pair.first if lam else pair.second
    assert float(criterion.mean(output, pair)) == pytest.approx(float(criterion.mean(output, plain)), rel=1e-7)
    assert float(criterion.count(pair)) == pytest.approx(float(criterion.count(plain)), rel=1e-7)


@pytest.mark.parametrize("ignore_index", [IGNORE, 0, 255])
def test_trap_8_ignored_positions_weigh_nothing_under_mixup(ignore_index):
    output = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    first, second = classes(6), classes(6)
    first[:3], second[2:4] = ignore_index, ignore_index
    lam = torch.rand(6)
    criterion = CrossEntropy(eps=0.1, ignore_index=ignore_index)
    total, count = from_definition(output.detach(), first, second, lam, 0.1, torch.ones(5), ignore_index)
    loss = criterion.mean(output, MixedTargets(first, second, lam))
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-6)
    loss.backward()
    assert float(output.grad[2].abs().max()) == 0
    assert float(output.grad[0].abs().max()) > 0


@pytest.mark.parametrize("ignore_index", [IGNORE, 2])
def test_trap_8_ignored_rows_of_soft_targets_weigh_nothing_under_mixup(ignore_index):
    output = torch.randn(6, 5, dtype=torch.float64)
    first, second, lam = soft(6, 5), soft(6, 5), torch.rand(6)
    first[0] = second[0] = first[1] = 0
    if ignore_index == 2:
        second[3] = torch.eye(5)[2]
    v_first, v_second = torch.ones(6), torch.ones(6)
    v_first[:2], v_second[0] = 0, 0
    v_second[3] = 0 if ignore_index == 2 else 1
    a, b = lam * v_first, (1 - lam) * v_second
    q = 0.9 * (a[:, None] * first + b[:, None] * second) + 0.1 / 5 * (a + b)[:, None]
    expected = -(q * output.log_softmax(1)).sum() / (a + b).sum()
    criterion = CrossEntropy(eps=0.1, ignore_index=ignore_index)
    assert float(criterion.mean(output, MixedTargets(first, second, lam))) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("targets", [torch.full((4,), IGNORE), torch.zeros(4, 5)], ids=["integer", "soft"])
def test_the_mean_over_nothing_is_zero_plain_and_mixed(targets):
    for given in (targets, mixed(targets)):
        output = torch.randn(4, 5, requires_grad=True)
        loss = CrossEntropy(eps=0.1).mean(output, given)
        loss.backward()
        assert float(loss.detach()) == 0
        assert torch.equal(output.grad, torch.zeros(4, 5))
        assert float(CrossEntropy().count(given)) == 0


def test_divisor_is_the_count_and_never_zero():
    assert safe_divisor(3.0) == 3.0
    assert torch.equal(safe_divisor(torch.tensor(3.0)), torch.tensor(3.0))
    for nothing in (0.0, torch.tensor(0.0)):
        assert 0.0 / safe_divisor(nothing) == 0.0


def test_the_count_is_of_valid_targets_or_of_their_weights():
    targets = torch.tensor([0, 1, IGNORE, 4])
    assert float(CrossEntropy().count(targets)) == 3
    assert float(CrossEntropy(weight=WEIGHT).count(targets)) == 0.5 + 2.0 + 3.0
    assert float(CrossEntropy(ignore_index=4).count(torch.tensor([0, 4]))) == 1
    assert float(CrossEntropy(weight=WEIGHT).count(soft(4, 5))) == 4
    assert float(CrossEntropy().count(soft(4, 5, 3))) == 12
    assert Ctc().count(ctc_targets()) == 9
    assert CustomLoss(functional.mse_loss).count({"a": (torch.zeros(7, 2), None)}) == 7


def test_weights_of_another_length_are_refused_plain_and_mixed():
    for targets in (classes(4), mixed(classes(4))):
        with pytest.raises(hp.InputError, match=r"weight of shape \(5,\): expected one weight per class, shape \(6,\)"):
            CrossEntropy(weight=WEIGHT).total(torch.zeros(4, 6), targets)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(hp.InputError, match=r"CrossEntropy.eps=1.5 is out of range"):
        hp.CrossEntropy(eps=1.5)


def test_correct_counts_what_is_right_and_what_counts():
    output = torch.eye(5)[torch.tensor([0, 1, 2, 3])]
    right, out_of = CrossEntropy().correct(output, torch.tensor([0, 2, IGNORE, 3]))
    assert (int(right), int(out_of)) == (2, 3)
    assert CrossEntropy().correct(output, torch.eye(5)[[0, 1, 1, 1]])[0] == 2


def test_an_ignored_class_that_was_predicted_is_not_right():
    right, out_of = CrossEntropy(ignore_index=0).correct(torch.eye(3), torch.tensor([0, 1, 0]))
    assert (int(right), int(out_of)) == (1, 1)
    zeros = torch.eye(3)
    zeros[0] = 0
    right, out_of = CrossEntropy().correct(torch.eye(3), zeros)
    assert (int(right), int(out_of)) == (2, 2)


def test_trap_10_accuracy_under_mixup_is_weighted_by_the_coefficient():
    output, lam = torch.eye(4)[[0, 1, 2]], torch.tensor([0.8, 0.3, 0.6])
    first, second = torch.tensor([0, 0, IGNORE]), torch.tensor([1, 1, 2])
    right, out_of = CrossEntropy().correct(output, MixedTargets(first, second, lam))
    assert float(right) == pytest.approx(0.8 + 0.7 + 0.4)
    assert float(out_of) == pytest.approx(1 + 1 + 0.4)
    labels = MixedTargets(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0.25]))
    right, out_of = chosen("binary_cross_entropy", torch.zeros(1, 2), torch.zeros(1, 2)).correct(
        torch.tensor([[3.0, -3]]), labels
    )
    assert (float(right), out_of) == (pytest.approx(1.25), 2.0)


def test_each_label_of_several_is_right_or_wrong():
    output, labels = torch.tensor([[2.0, -1.0, 3.0], [-2.0, 0.5, -0.1]]), torch.tensor([[1, 0, 0], [0, 1, 1]])
    right, out_of = chosen("binary_cross_entropy", output, labels).correct(output, labels)
    assert (int(right), out_of) == (4, 6.0)


def test_correct_follows_the_class_dimension_under_mixup():
    output = torch.randn(3, 4, 6)
    pair = mixed(torch.randint(0, 6, (3, 4)))
    predicted = output.argmax(-1)
    lam = pair.lam[:, None]
    expected = (lam * (predicted == pair.first) + (1 - lam) * (predicted == pair.second)).sum()
    right, out_of = CrossEntropy().correct(output, pair)
    assert float(right) == pytest.approx(float(expected), rel=1e-5)
    assert float(out_of) == pytest.approx(12)


def test_accuracy_has_no_meaning_for_real_numbers_and_sequences_of_ctc():
    assert chosen("mse", torch.zeros(2, 1), torch.zeros(2, 1)).correct(torch.zeros(2, 1), torch.zeros(2, 1)) is None
    assert Ctc().correct(torch.zeros(3, 2, 5), ctc_targets()) is None


def test_a_loss_of_ones_own_has_accuracy_where_it_is_classification():
    own = CustomLoss(functional.cross_entropy)
    assert own.correct(torch.eye(3), torch.arange(3))[0] == 3
    assert own.correct(torch.eye(3), mixed(torch.arange(3)))[1] == pytest.approx(3)
    assert own.correct(torch.zeros(3, 2), torch.zeros(3, 2)) is None
    assert own.correct((torch.zeros(3),), torch.arange(3)) is None
    assert own.correct(torch.zeros(3), torch.arange(3)) is None


@pytest.mark.parametrize(
    "loss",
    [None, "cross_entropy", nn.CrossEntropyLoss(), functional.cross_entropy, hp.CrossEntropy()],
    ids=["guessed", "name", "module", "function", "heptane"],
)
def test_cross_entropy_by_any_name_is_that_of_torch_to_the_last_bit(loss):
    output, targets = torch.randn(32, 5), classes(32, ignored=True)
    criterion = chosen(loss, output, targets)
    assert torch.equal(criterion.mean(output, targets), functional.cross_entropy(output, targets))
    assert criterion.name == "cross_entropy"


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.MSELoss(), torch.randn(8, 5)),
        (nn.L1Loss(), torch.randn(8, 5)),
        (nn.SmoothL1Loss(beta=0.5), torch.randn(8, 5)),
        (nn.HuberLoss(), torch.randn(8, 5)),
        (nn.BCEWithLogitsLoss(), torch.rand(8, 5)),
        (nn.BCEWithLogitsLoss(pos_weight=torch.rand(5)), torch.rand(8, 5)),
        (nn.BCEWithLogitsLoss(weight=torch.rand(5)), torch.rand(8, 5)),
        (nn.CrossEntropyLoss(torch.rand(5), ignore_index=2), torch.arange(8) % 5),
        (nn.CrossEntropyLoss(label_smoothing=0.2), torch.arange(8) % 5),
        (nn.CrossEntropyLoss(), torch.randn(8, 5).softmax(1)),
        (nn.NLLLoss(torch.rand(5)), torch.arange(8) % 5),
        (nn.MultiMarginLoss(), torch.arange(8) % 5),
        (functional.mse_loss, torch.randn(8, 5)),
        (functional.smooth_l1_loss, torch.randn(8, 5)),
    ],
    ids=lambda value: "" if isinstance(value, torch.Tensor) else getattr(value, "__name__", str(value)),
)
def test_a_loss_that_was_given_is_what_it_was_to_the_last_bit(loss, targets):
    output = torch.randn(8, 5)
    criterion = chosen(loss, output, targets)
    assert torch.equal(criterion.mean(output, targets), loss(output, targets))
    summed = criterion.total(output[:3], targets[:3]) + criterion.total(output[3:], targets[3:])
    torch.testing.assert_close(summed / criterion.count(targets), loss(output, targets))


def test_nll_of_padded_sequences_is_exact_in_parts():
    loss, log_p = nn.NLLLoss(ignore_index=0), torch.randn(6, 5, 4, dtype=torch.float64).log_softmax(1)
    targets = torch.randint(0, 5, (6, 4))
    targets[0] = 0
    criterion = chosen(loss, log_p, targets)
    parts = criterion.total(log_p[:1], targets[:1]) + criterion.total(log_p[1:], targets[1:])
    assert float(parts / criterion.count(targets)) == pytest.approx(float(loss(log_p, targets)), rel=1e-12)
    assert float(criterion.mean(log_p[:1], targets[:1])) == 0
    smoothed = chosen(nn.NLLLoss(), log_p, targets, 0.1).mean(log_p, targets)
    expected = functional.cross_entropy(log_p, targets, label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(float(expected), rel=1e-12)


def test_a_subclass_of_a_torch_loss_keeps_its_own_arithmetic():
    class Focal(nn.CrossEntropyLoss):
        def forward(self, output, targets):
            p = (-super().forward(output, targets)).exp()
            return (1 - p) ** 2 * super().forward(output, targets)

    class Tripled(nn.MSELoss):
        def forward(self, output, targets):
            return 3 * super().forward(output, targets)

    output = torch.randn(4, 5)
    for loss, targets in ((Focal(), classes(4)), (Tripled(), torch.randn(4, 5))):
        criterion = chosen(loss, output, targets)
        assert isinstance(criterion, CustomLoss)
        assert torch.equal(criterion.mean(output, targets), loss(output, targets))


def test_smoothing_reaches_every_loss_that_has_classes():
    output, targets, labels = torch.randn(8, 5), classes(8), torch.randint(0, 2, (8, 5)).float()
    expected = functional.cross_entropy(output, targets, label_smoothing=0.1)
    for loss in (None, "cross_entropy", nn.CrossEntropyLoss(), functional.cross_entropy, hp.CrossEntropy()):
        assert torch.equal(chosen(loss, output, targets, 0.1).mean(output, targets), expected)
    expected = functional.binary_cross_entropy_with_logits(output, 0.9 * labels + 0.05)
    for loss in (None, "binary_cross_entropy", nn.BCEWithLogitsLoss(), functional.binary_cross_entropy_with_logits):
        torch.testing.assert_close(chosen(loss, output, labels, 0.1).mean(output, labels), expected)
    assert chosen(nn.CTCLoss(blank=2, zero_infinity=True), None, ctc_targets(), 0.1) == Ctc(0.1, 2, True)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(label_smoothing=0.2), hp.CrossEntropy(eps=0.2)], ids=["torch", "heptane"]
)
def test_smoothing_asked_for_twice_is_refused(loss):
    with pytest.raises(hp.InputError, match=r"LabelSmoothing.eps=0.1 and .*=0.2\) would smooth twice; set one of them to 0"):
        chosen(loss, torch.zeros(2, 3), torch.tensor([0, 1]), 0.1)
    assert chosen(loss, torch.zeros(2, 3), torch.tensor([0, 1])).eps == 0.2


def test_smoothing_where_there_is_nothing_to_smooth_is_refused():
    with pytest.raises(hp.InputError, match=r"loss 'mse': regression has no classes to smooth; turn it off"):
        chosen("mse", torch.zeros(2, 1), torch.zeros(2, 1), 0.1)
    with pytest.raises(hp.InputError, match=r"custom loss: heptane cannot smooth inside it; use loss='cross_entropy'"):
        chosen(lambda output, targets: output.mean(), torch.zeros(2, 1), torch.zeros(2, 1), 0.1)


@pytest.mark.parametrize(
    ("targets", "output", "name", "reason"),
    [
        (torch.tensor([0, 2, 1]), torch.zeros(3, 4), "cross_entropy", "integer classes"),
        (torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 4, 6), "cross_entropy", "integer classes"),
        (torch.eye(4)[:3], torch.zeros(3, 4), "cross_entropy", "each row sums to 1"),
        (torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), torch.zeros(2, 3), "binary_cross_entropy", "several labels"),
        (torch.tensor([[0, 1, 1], [0, 0, 1]]), torch.zeros(2, 3), "binary_cross_entropy", "several labels"),
        (torch.tensor([[True, False], [True, True]]), torch.zeros(2, 2), "binary_cross_entropy", "several labels"),
        (torch.tensor([[0.5, -0.5], [2.0, 1.0]]), torch.zeros(2, 2), "mse", "real numbers"),
        (torch.tensor([0.0, 1.0]), torch.zeros(2, 1), "binary_cross_entropy", "one logit"),
        (torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1), "binary_cross_entropy", "one logit"),
        (torch.tensor([0, 1]), torch.zeros(2), "binary_cross_entropy", "one logit"),
        (torch.tensor([[True], [False]]), torch.zeros(2), "binary_cross_entropy", "one logit"),
        (torch.tensor([0, 1], dtype=torch.uint8), torch.zeros(2, 1), "binary_cross_entropy", "one logit"),
        (torch.tensor([0.0, 0.5]), torch.zeros(2, 1), "mse", "real numbers"),
        (torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3, 1), "mse", "real numbers"),
        (torch.tensor([1, 0, 2], dtype=torch.int16), torch.zeros(3, 3), "cross_entropy", "integer classes"),
        (torch.tensor([True, False]), torch.zeros(2, 2), "cross_entropy", "two classes"),
        (torch.ones(2, 4, 4, dtype=torch.bool), torch.zeros(2, 1, 4, 4), "binary_cross_entropy", "several labels"),
        (torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), "mse", "real numbers"),
    ],
)
def test_the_guess_and_its_reason(targets, output, name, reason):
    criterion, why = choose_criterion(None, output, targets, None)
    assert criterion.name == name
    assert why.startswith(f"loss {name}: the targets are ")
    assert reason in why


@pytest.mark.parametrize(
    ("targets", "output", "first", "second"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), (3, 3), r"pass targets.long\(\)", "pass loss='mse'"),
        (torch.tensor([0.0, 1.0]), (2, 2), r"pass targets.long\(\)", "pass loss='mse'"),
        (torch.tensor([[0.0], [1.0]], dtype=torch.float64), (2, 2), r"pass targets.long\(\)", "pass loss='mse'"),
        (torch.tensor([[-1.0, 1.0], [1.0, 1.0]]), (2, 2), r"labels: pass \(targets > 0\).float\(\)", "pass loss='mse'"),
        (torch.tensor([[-1, 0], [1, 1]]), (2, 2), r"labels: pass \(targets > 0\).float\(\)", "pass loss='mse'"),
        (torch.eye(3, dtype=torch.long), (3, 3), r"pass targets.argmax\(1\)", "loss='binary_cross_entropy'"),
        (torch.tensor([-1.0, 1.0]), (2, 1), r"pass \(targets > 0\).float\(\)", "pass loss='mse'"),
        (torch.tensor([-1, 1]), (2,), r"pass \(targets > 0\).float\(\)", "pass loss='mse'"),
        (torch.tensor([0, 1, 2]), (3, 1), "an output for each", r"pass targets.float\(\)"),
        (torch.tensor([[0.2, 0.9], [0.5, 0.1]]), (2, 2), "loss='binary_cross_entropy'", "loss='mse'"),
        (torch.tensor([[3, 0], [1, 7]]), (2, 2), "outputs .N, classes", r"pass targets.float\(\)"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both(targets, output, first, second):
    with pytest.raises(hp.InputError, match=rf"have two readings: as .*{first}.*; or as .*{second}"):
        chosen(None, torch.zeros(output), targets)
    for loss in ("mse", nn.L1Loss()):  # named, it is not asked
        assert choose_criterion(loss, torch.zeros(output), targets, None)[1].endswith("asked for")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6,), (6,)), ((6, 1), (6, 1))], ids=str)
def test_one_logit_with_targets_of_any_kind_is_binary_cross_entropy(dtype, shapes):
    output, targets = torch.randn(shapes[0]), (torch.arange(6) % 2).to(dtype).reshape(shapes[1])
    criterion = chosen(None, output, targets)
    expected = functional.binary_cross_entropy_with_logits(output.flatten(), targets.flatten().float())
    torch.testing.assert_close(criterion.mean(output, targets), expected)
    right, out_of = criterion.correct(output, targets)
    assert int(right) == int(((output.flatten() > 0) == (targets.flatten() > 0.5)).sum())
    assert out_of == 6
    mix = MixedTargets(targets, targets.flip(0), torch.full((6,), 0.25))
    blended = 0.25 * targets.flatten().float() + 0.75 * targets.flip(0).flatten().float()
    expected = functional.binary_cross_entropy_with_logits(output.flatten(), blended)
    torch.testing.assert_close(criterion.mean(output, mix), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("loss", [None, "cross_entropy", nn.CrossEntropyLoss()], ids=["none", "name", "module"])
def test_classes_of_any_integer_kind_and_in_a_column(dtype, loss):
    output, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = functional.cross_entropy(output, labels)
    for targets in (labels.to(dtype), labels.to(dtype)[:, None]):
        criterion = chosen(loss, output, targets)
        torch.testing.assert_close(criterion.mean(output, targets), expected)
        torch.testing.assert_close(criterion.total(output, targets) / criterion.count(targets), expected)
        torch.testing.assert_close(criterion.mean(output, MixedTargets(targets, targets, torch.full((6,), 0.5))), expected)
        assert int(criterion.correct(output, targets)[0]) == int((output.argmax(1) == labels).sum())


def test_the_guess_goes_by_all_targets_though_the_output_is_of_a_few():
    """The first two rows hold one label each, and are no distributions for all that."""
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert choose_criterion(None, torch.zeros(2, 3), targets, None)[0].name == "binary_cross_entropy"


def test_a_loss_that_was_asked_for_says_so():
    assert choose_criterion("l1", torch.zeros(2, 1), torch.zeros(2, 1), None)[1] == "loss l1: asked for"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("crossentropy", r"loss='crossentropy' is not known \(did you mean cross_entropy\?\)"),
        (3, r"loss=3: expected None, one of cross_entropy, .*, a torch.nn loss or a function"),
        (nn.CrossEntropyLoss(reduction="sum"), r"expected reduction='mean', since the loss of a step is a mean"),
        (nn.MSELoss(reduction="none"), r"expected reduction='mean'"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, message):
    with pytest.raises(hp.InputError, match=message):
        chosen(loss, torch.zeros(2, 3), torch.tensor([0, 1]))


def test_a_loss_that_cannot_be_guessed_is_asked_for():
    for output, targets in (
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, torch.zeros(2)),
        (torch.zeros(2), {"a": torch.zeros(2)}),
    ):
        with pytest.raises(hp.InputError, match=r"loss=None: .*need a loss; pass loss="):
            chosen(None, output, targets)


@pytest.mark.parametrize(
    ("output", "targets"),
    [((6, 1), (6,)), ((6,), (6, 1)), ((6, 1, 3), (6, 3)), ((1, 1), (1,))],
    ids=str,
)
def test_dimensions_of_one_are_lined_up_and_never_broadcast(output, targets):
    given, wanted = torch.randn(output), torch.randn(targets)
    expected = ((given.flatten() - wanted.flatten()) ** 2).mean()
    torch.testing.assert_close(chosen("mse", given, wanted).mean(given, wanted), expected)


OWN = {
    "smooth l1": (nn.SmoothL1Loss(beta=0.5), lambda d: functional.smooth_l1_loss(d, torch.zeros_like(d), beta=0.5)),
    "huber": (nn.HuberLoss(delta=2.0), lambda d: functional.huber_loss(d, torch.zeros_like(d), delta=2.0)),
    "l1": (nn.L1Loss(), lambda d: d.abs().mean()),
    "functional": (functional.huber_loss, lambda d: functional.huber_loss(d, torch.zeros_like(d))),
    "function": (lambda output, targets: ((output - targets) ** 4).mean(), lambda d: (d**4).mean()),
    "per sample": (lambda output, targets: (output - targets).abs(), lambda d: d.abs().mean()),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6, 1), (6, 1))], ids=str)
@pytest.mark.filterwarnings("error")
def test_losses_of_all_kinds_compare_each_output_with_its_own_target(name, shapes):
    loss, expected = OWN[name]
    output, targets = torch.randn(shapes[0]), torch.randn(shapes[1])
    criterion, why = choose_criterion(loss, output, targets, None)
    torch.testing.assert_close(criterion.mean(output, targets), expected(output.flatten() - targets.flatten()))
    if isinstance(criterion, CustomLoss) and shapes[0] != shapes[1]:
        assert "are reshaped to the targets' " in why


def test_a_loss_that_lines_them_up_itself_is_given_what_the_model_gave():
    seen = []

    def own(output, targets):
        seen.append(output.shape[1:])
        return functional.mse_loss(output[:, 0], targets)

    criterion, why = choose_criterion(own, torch.zeros(2, 1), torch.zeros(2), None)
    assert why == "loss own: asked for"
    criterion.mean(torch.zeros(4, 1), torch.zeros(4))
    assert seen[-1] == (1,)


def test_a_loss_that_takes_neither_is_refused():
    with pytest.raises(hp.InputError, match=r"\(1,\) and targets of shape \(\) per sample: the loss fails on them"):
        chosen(nn.GaussianNLLLoss(), torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.parametrize(("output", "targets"), [((6, 2, 3), (6, 3, 2)), ((6, 3), (6,)), ((6, 1), (6, 3))], ids=str)
def test_other_shapes_are_refused(output, targets):
    with pytest.raises(hp.InputError, match="compares elements, so the model needs as many outputs"):
        chosen("mse", torch.zeros(6, 1), torch.zeros(6)).total(torch.zeros(output), torch.zeros(targets))


def test_integer_labels_and_numbers_become_those_of_the_output_also_under_mixup():
    output, labels = torch.randn(4, 3, dtype=torch.float64), torch.randint(0, 2, (4, 3))
    lam = torch.rand(4)
    pair = MixedTargets(labels, labels.flip(0), lam)
    soft_labels = lam[:, None] * labels + (1 - lam[:, None]) * labels.flip(0)
    for name in ("binary_cross_entropy", "mse"):
        criterion = chosen(name, output, labels)
        torch.testing.assert_close(criterion.mean(output, labels), criterion.mean(output, labels.double()))
        expected = criterion.mean(output, soft_labels.double())
        torch.testing.assert_close(criterion.mean(output, pair), expected, rtol=1e-6, atol=1e-8)


def test_the_regression_of_blended_targets_is_to_the_blended_number():
    output, targets = torch.randn(5, dtype=torch.float64), mixed(torch.randn(5, dtype=torch.float64))
    lam = targets.lam.double()
    expected = ((output - lam * targets.first - (1 - lam) * targets.second) ** 2).mean()
    torch.testing.assert_close(chosen("mse", output, targets.first).mean(output, targets), expected)


def test_a_loss_of_ones_own_under_mixup_is_the_blend_of_two_losses():
    output, pair = torch.randn(6, 3, dtype=torch.float64), mixed(torch.randint(0, 3, (6,)), 0.3)
    own = CustomLoss(lambda output, targets: functional.multi_margin_loss(output, targets))
    first, second = (functional.multi_margin_loss(output, targets) for targets in (pair.first, pair.second))
    torch.testing.assert_close(own.mean(output, pair), 0.3 * first + 0.7 * second, rtol=1e-6, atol=1e-9)
    with pytest.raises(hp.InputError, match=r"Mixup.per_sample=True does not support a custom loss .*set it to False"):
        own.mean(output, mixed(pair.first))


def test_a_loss_per_sample_of_ones_own_is_averaged():
    output, targets = torch.randn(6, 3), torch.randint(0, 3, (6,))
    own = chosen(lambda output, targets: functional.cross_entropy(output, targets, reduction="none"), output, targets)
    torch.testing.assert_close(own.mean(output, targets), functional.cross_entropy(output, targets))


def test_ctc_equals_torch_and_smooths():
    log_probs, targets = torch.randn(9, 9, 5, dtype=torch.float64).log_softmax(-1), ctc_targets()
    theirs = functional.ctc_loss(log_probs, *targets, blank=0, zero_infinity=True)
    criterion = chosen(nn.CTCLoss(zero_infinity=True), log_probs, targets)
    assert float(criterion.mean(log_probs, targets)) == pytest.approx(float(theirs), rel=1e-12)
    smoothed = chosen(nn.CTCLoss(zero_infinity=True), log_probs, targets, 0.1)
    assert float(smoothed.plain(log_probs, targets)) == pytest.approx(9 * float(theirs), rel=1e-12)
    expected = hp.smooth_ctc_loss(log_probs, *targets, eps=0.1, zero_infinity=True)
    assert float(smoothed.mean(log_probs, targets)) == float(expected)


def test_a_criterion_is_a_value():
    assert Elementwise("mse", functional.mse_loss) == chosen("mse", torch.zeros(1, 1), torch.zeros(1, 1))
    assert CrossEntropy() == hp.CrossEntropy()


# Each sample is compared with its own target


class Parts(nn.Module):
    """Gives a dict, whose entries are (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": self.linear(x), "spread": torch.ones_like(x)}


WIDE = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))
REALS = 2 * WIDE[:, 0] + 1
COMPARISONS: dict[str, tuple[Any, Any]] = {
    "a dict": (Parts, lambda output, targets: (output["mean"] - targets).square().mean()),
    "a mean and a spread": (
        lambda: torch.nn.Linear(4, 2),
        lambda output, targets: (output[:, :1] - targets).square().mean() + 0 * output.sum(),
    ),
    "one output": (lambda: torch.nn.Linear(4, 1), lambda output, targets: (output - targets).square().mean()),
}


@pytest.mark.parametrize("shape", [(64,), (64, 1)])
@pytest.mark.parametrize("name", COMPARISONS)
def test_a_loss_of_ones_own_compares_each_sample_with_its_own_target(name: str, shape: tuple[int, ...]) -> None:
    model, loss = COMPARISONS[name]
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    settings = {"optimizer": sgd, "epochs": 40, "batch_size": 16, "loss": loss}
    result = hp.fit(model(), (WIDE, REALS.view(shape)), (WIDE, REALS), **settings)
    assert result.metrics["valid_loss"] < 0.01  # the variance of the targets is 4
    other = hp.fit(model(), (WIDE, REALS.view(shape)), (WIDE, REALS[:, None]), **settings)
    assert other.metrics["valid_loss"] == pytest.approx(result.metrics["valid_loss"])
    assert hp.evaluate(result.model, (WIDE, REALS), loss=loss)["loss"] < 0.01


def test_a_loss_over_pairs_of_samples_is_given_targets_as_they_are() -> None:
    seen = set()

    def spread(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.add(targets.ndim)
        return (output[:, 0].std() - targets.std()).square()

    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    hp.fit(torch.nn.Linear(4, 2), (WIDE, REALS), optimizer=sgd, epochs=1, batch_size=16, loss=spread)
    assert 1 in seen


def test_a_regression_on_whole_numbers_with_a_loss_of_ones_own_has_no_accuracy() -> None:
    counts = torch.arange(64) % 5
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    loss = lambda output, targets: (output - targets).square().mean()  # noqa: E731
    settings = {"optimizer": sgd, "epochs": 1, "batch_size": 16, "loss": loss}
    result = hp.fit(torch.nn.Linear(4, 1), (WIDE, counts), (WIDE, counts), **settings)
    assert set(result.metrics) == {"valid_loss"}
