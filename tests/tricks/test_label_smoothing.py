"""Label smoothing: the equation, its floor, equality with PyTorch, ignored positions, and CTC."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, ctc_loss

import heptane as hp
from heptane.core.cross_entropy import find_class_dim, smooth_binary

IGNORE = -100


def from_definition(logits, targets, eps=0.0, weight=None, ignored=()):
    """Rows of (N, C) logits and (N, C) targets, one number at a time: the sum, and the mean over what is not ignored."""
    num_rows, num_classes = logits.shape
    total, valid = 0.0, 0
    for row in range(num_rows):
        if row in ignored:
            continue
        valid += 1
        scores = [float(score) for score in logits[row]]
        largest = max(scores)
        log_sum = largest + math.log(sum(math.exp(score - largest) for score in scores))
        for c in range(num_classes):
            q = (1 - eps) * float(targets[row, c]) + eps / num_classes
            total -= (1.0 if weight is None else float(weight[c])) * q * (scores[c] - log_sum)
    return total, total / valid


def distributions(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(1)


def test_smooth_is_the_equation_of_the_paper():
    got = hp.smooth_labels(torch.tensor([2, 0]), 0.1, 4)
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    torch.testing.assert_close(got, torch.tensor(expected))
    soft = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(hp.smooth_labels(soft, 0.2), torch.tensor([[0.45, 0.45, 0.05, 0.05]], dtype=torch.float64))


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_smoothed_rows_sum_to_one(eps):
    torch.testing.assert_close(hp.smooth_labels(torch.randint(0, 9, (5, 3)), eps, 9).sum(-1), torch.ones(5, 3))
    torch.testing.assert_close(hp.smooth_labels(distributions(6, 4), eps).sum(1), torch.ones(6, dtype=torch.float64))


def test_smoothing_by_nothing_changes_nothing():
    soft = distributions(4, 5)
    assert torch.equal(hp.smooth_labels(soft, 0.0), soft)
    assert torch.equal(hp.smooth_labels(torch.tensor([1, 2]), 0.0, 3), torch.eye(3)[1:])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_smooth_takes_integers_of_every_type_and_shape(dtype):
    assert hp.smooth_labels(torch.tensor([[1, 0]], dtype=dtype), 0.5, 2).tolist() == [[[0.25, 0.75], [0.75, 0.25]]]
    assert hp.smooth_labels(torch.tensor(1, dtype=dtype), 0.5, 2).tolist() == [0.25, 0.75]
    assert hp.smooth_labels(torch.zeros(0, dtype=dtype), 0.5, 2).shape == (0, 2)


def test_an_ignored_target_becomes_a_row_of_zeros_which_counts_for_nothing():
    logits, classes = torch.randn(4, 3), torch.tensor([1, IGNORE, 2, IGNORE])
    q = hp.smooth_labels(classes, 0.1, 3)
    assert q[1].tolist() == q[3].tolist() == [0.0] * 3
    torch.testing.assert_close(hp.soft_cross_entropy(logits, q), cross_entropy(logits, classes, label_smoothing=0.1))


def test_smooth_refuses_what_it_cannot_read():
    with pytest.raises(hp.InputError, match="num_classes=None: integer targets"):
        hp.smooth_labels(torch.tensor([1]), 0.1)
    with pytest.raises(hp.InputError, match=r"target 4 is out of range: num_classes=4 allows 0 to 3"):
        hp.smooth_labels(torch.tensor([0, 4]), 0.1, 4)
    with pytest.raises(hp.InputError, match=r"target -1 is out of range"):
        hp.smooth_labels(torch.tensor([0, -1]), 0.1, 4)
    with pytest.raises(hp.InputError, match=r"num_classes=5: the targets hold 4 classes"):
        hp.smooth_labels(torch.eye(4), 0.1, 5)
    with pytest.raises(hp.InputError, match=r"eps=1.1 is out of range: expected a number in \[0, 1\]"):
        hp.smooth_labels(torch.eye(4), 1.1)


def test_multi_label_targets_are_choices_between_two():
    assert smooth_binary(torch.tensor([[0.0, 1.0, 0.5]]), 0.2).tolist() == [pytest.approx([0.1, 0.9, 0.5])]


@pytest.mark.parametrize(("eps", "floor"), [(0.1, 0.5003), (0.2, 0.8669)])
def test_the_floor_is_the_entropy_of_the_smoothed_target(eps, floor):
    """No logits do better than log q: the published floors for 10 classes."""
    targets = torch.arange(10)
    best = hp.smooth_labels(targets, eps, 10).double().log()
    loss = float(hp.soft_cross_entropy(best, targets, eps=eps))
    assert loss == pytest.approx(floor, abs=5e-5)
    entropy = -(1 - eps + eps / 10) * math.log(1 - eps + eps / 10) - 9 * eps / 10 * math.log(eps / 10)
    assert loss == pytest.approx(entropy, rel=1e-6)
    assert float(hp.soft_cross_entropy(best + 0.3 * torch.randn(10, 10).double(), targets, eps=eps)) > loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (2, 5, 3, 4)], ids=str)
def test_integer_targets_equal_torch(shape, weighted, eps, reduction):
    logits = torch.randn(*shape, dtype=torch.float64)
    targets = torch.randint(0, 5, (shape[0], *shape[2:]))
    targets[targets == 2] = IGNORE
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    theirs = cross_entropy(logits, targets, weight, label_smoothing=eps, reduction=reduction)
    ours = hp.soft_cross_entropy(logits, targets, eps=eps, weight=weight, reduction=reduction)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    last = logits.movedim(1, -1).contiguous()
    ours = hp.soft_cross_entropy(last, targets, eps=eps, weight=weight, reduction=reduction, class_dim=-1)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)], ids=str)
def test_soft_targets_equal_torch(shape, weighted, eps, reduction):
    logits, targets = torch.randn(*shape, dtype=torch.float64), distributions(*shape)
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    theirs = cross_entropy(logits, targets, weight, label_smoothing=eps, reduction=reduction)
    ours = hp.soft_cross_entropy(logits, targets, eps=eps, weight=weight, reduction=reduction)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    moved = logits.movedim(1, -1), targets.movedim(1, -1)
    ours = hp.soft_cross_entropy(*moved, eps=eps, weight=weight, reduction=reduction, class_dim=-1)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_soft_targets_equal_the_sum_by_hand(eps, weighted):
    logits, targets = torch.randn(5, 4, dtype=torch.float64), distributions(5, 4)
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    total, mean = from_definition(logits, targets, eps, weight)
    assert float(hp.soft_cross_entropy(logits, targets, eps=eps, weight=weight)) == pytest.approx(mean, rel=1e-12)
    ours = hp.soft_cross_entropy(logits, targets, eps=eps, weight=weight, reduction="sum")
    assert float(ours) == pytest.approx(total, rel=1e-12)


def test_unsmoothed_losses_are_those_of_torch_to_the_last_bit_and_so_are_their_gradients():
    for targets in (torch.randint(0, 5, (33,)), torch.randn(33, 5).softmax(1)):
        logits = torch.randn(33, 5)
        results = []
        for function in (cross_entropy, hp.soft_cross_entropy):
            leaf = logits.clone().requires_grad_()
            loss = function(leaf, targets)
            loss.backward()
            results.append((loss, leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("ignore_index", [IGNORE, 255, 2])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_trap_8_soft_targets_with_ignored_rows_do_not_raise_and_weigh_nothing(eps, ignore_index):
    logits, targets = torch.randn(6, 4, dtype=torch.float64), distributions(6, 4)
    targets[1], targets[4] = 0.0, float(ignore_index)
    ignored = [1, 4]
    if ignore_index == 2:
        targets[5] = torch.eye(4)[2]
        ignored.append(5)
    total, mean = from_definition(logits, targets, eps, ignored=ignored)
    leaf = logits.clone().requires_grad_()
    loss = hp.soft_cross_entropy(leaf, targets, eps=eps, ignore_index=ignore_index)
    assert float(loss.detach()) == pytest.approx(mean, rel=1e-12)
    loss.backward()
    assert float(leaf.grad[ignored].abs().max()) == 0
    ours = hp.soft_cross_entropy(logits, targets, eps=eps, ignore_index=ignore_index, reduction="sum")
    assert float(ours) == pytest.approx(total, rel=1e-12)


def test_soft_targets_without_ignored_rows_are_the_same_for_any_ignore_index():
    logits, targets = torch.randn(6, 4), torch.randn(6, 4).softmax(1)
    losses = {float(hp.soft_cross_entropy(logits, targets, ignore_index=index)) for index in (IGNORE, 0, 3, 255)}
    assert losses == {float(cross_entropy(logits, targets))}


def test_ignored_positions_of_soft_sequences_weigh_nothing():
    logits, targets = torch.randn(3, 4, 5, dtype=torch.float64), distributions(3, 4, 5)
    targets[0, :, 2:] = 0
    rows = logits.movedim(1, -1).reshape(-1, 4), targets.movedim(1, -1).reshape(-1, 4)
    _, mean = from_definition(*rows, 0.1, ignored=[2, 3, 4])
    assert float(hp.soft_cross_entropy(logits, targets, eps=0.1)) == pytest.approx(mean, rel=1e-12)


def test_padding_changes_neither_the_loss_nor_the_gradient():
    logits, targets = torch.randn(2, 3, 6, dtype=torch.float64), torch.randint(0, 6, (2, 3))
    padded = torch.cat([logits, torch.randn(2, 2, 6, dtype=torch.float64)], 1).requires_grad_()
    padded_targets = torch.cat([targets, torch.full((2, 2), IGNORE)], 1)
    plain = hp.soft_cross_entropy(logits, targets, eps=0.1)
    loss = hp.soft_cross_entropy(padded, padded_targets, eps=0.1)
    assert float(loss.detach()) == pytest.approx(float(plain), rel=1e-12)
    loss.backward()
    assert float(padded.grad[:, 3:].abs().max()) == 0


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.ones(3), torch.tensor([0.0, 1.0, 1.0])], ids=["plain", "ones", "zero"])
@pytest.mark.parametrize(
    "targets",
    [
        torch.full((4,), IGNORE),
        torch.full((4, 2), IGNORE),
        torch.zeros(4, 3),
        torch.zeros(4, 3, 2),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0, 3),
    ],
    ids=["integer", "sequence", "soft", "soft sequence", "none", "none, soft"],
)
def test_where_all_is_ignored_the_loss_is_zero_with_gradients_of_zero(targets, weight, eps):
    shape = targets.shape if targets.is_floating_point() else (len(targets), 3, *targets.shape[1:])
    logits = torch.randn(*shape, requires_grad=True)
    loss = hp.soft_cross_entropy(logits, targets, eps=eps, weight=weight)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros(shape))


def test_targets_whose_classes_all_weigh_nothing_have_a_loss_of_zero():
    weight = torch.tensor([0.0, 1.0, 1.0])
    assert float(hp.soft_cross_entropy(torch.randn(2, 3), torch.zeros(2, dtype=torch.long), weight=weight)) == 0


def test_a_nan_of_the_model_is_not_hidden():
    logits = torch.full((2, 3), math.nan)
    assert math.isnan(hp.soft_cross_entropy(logits, torch.tensor([0, IGNORE])))
    assert math.isnan(hp.soft_cross_entropy(logits, torch.eye(3)[:2]))


def test_targets_of_other_types_are_taken_as_they_are_meant():
    logits = torch.randn(4, 3)
    expected = float(cross_entropy(logits, torch.tensor([0, 2, 1, 1])))
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert float(hp.soft_cross_entropy(logits, torch.tensor([0, 2, 1, 1], dtype=dtype))) == expected
    soft = torch.randn(4, 3, dtype=torch.float64).softmax(1)
    assert float(hp.soft_cross_entropy(logits, soft)) == pytest.approx(float(cross_entropy(logits, soft.float())))


def test_one_class_and_one_sample():
    assert float(hp.soft_cross_entropy(torch.randn(3, 1), torch.zeros(3, dtype=torch.long), eps=0.5)) == 0
    logits = torch.randn(1, 4)
    assert float(hp.soft_cross_entropy(logits, torch.tensor([3]))) == pytest.approx(float(-logits.log_softmax(1)[0, 3]))


@pytest.mark.parametrize(
    ("logits", "targets", "class_dim", "expected"),
    [
        ((8, 10), (8,), None, 1),
        ((8, 10, 5), (8, 5), None, 1),
        ((8, 5, 10), (8, 5), None, 2),
        ((8, 10, 4, 6), (8, 4, 6), None, 1),
        ((8, 4, 6, 10), (8, 4, 6), None, 3),
        ((8, 5, 5), (8, 5), -1, 2),
        ((8, 5, 5), (8, 5), 1, 1),
        ((8, 5, 5), (8, 5), -2, 1),
        ((7,), (), None, 0),
    ],
)
def test_the_class_dimension_is_found(logits, targets, class_dim, expected):
    assert find_class_dim(logits, targets, False, class_dim) == expected


def test_a_shape_that_could_be_both_is_refused_and_the_remedy_works():
    logits, targets = torch.randn(2, 5, 5), torch.randint(0, 5, (2, 5))
    with pytest.raises(hp.InputError, match=r"\(2, 5, 5\).*\(2, 5\).*class_dim=1 or class_dim=-1"):
        hp.soft_cross_entropy(logits, targets)
    first, last = (float(hp.soft_cross_entropy(logits, targets, class_dim=dim)) for dim in (1, -1))
    assert first == pytest.approx(float(cross_entropy(logits, targets)))
    assert last == pytest.approx(float(cross_entropy(logits.mT, targets)))
    assert first != last


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(4, 2)),
        (torch.zeros(4, 3, 7), torch.zeros(4, 6, dtype=torch.long)),
        (torch.zeros(()), torch.zeros((), dtype=torch.long)),
    ],
    ids=str,
)
def test_shapes_that_do_not_go_together_are_named(logits, targets):
    with pytest.raises(hp.InputError) as error:
        hp.soft_cross_entropy(logits, targets)
    assert str(tuple(logits.shape)) in str(error.value)
    assert str(tuple(targets.shape)) in str(error.value)
    assert "expected (N, C) outputs and (N,) targets" in str(error.value)


def test_other_bad_arguments_are_named():
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(hp.InputError, match=r"eps=-0.1 is out of range"):
        hp.soft_cross_entropy(logits, targets, eps=-0.1)
    with pytest.raises(hp.InputError, match=r"reduction='none' is not known"):
        hp.soft_cross_entropy(logits, targets, reduction="none")
    with pytest.raises(hp.InputError, match=r"weight of shape \(4,\): expected one weight per class, shape \(3,\)"):
        hp.soft_cross_entropy(logits, targets, weight=torch.ones(4))
    for bad in (0, 2, -2):
        with pytest.raises(hp.InputError, match=rf"class_dim={bad} with outputs of shape \(4, 3\): expected 1 to 1"):
            hp.soft_cross_entropy(logits, targets, class_dim=bad)


def ctc_case(num_frames=12, batch=3, num_classes=5):
    log_probs = torch.randn(num_frames, batch, num_classes, dtype=torch.float64).log_softmax(-1)
    targets = torch.randint(1, num_classes, (batch, 4))
    return log_probs, targets, torch.tensor([12, 9, 7]), torch.tensor([4, 3, 2])


def test_ctc_without_smoothing_is_that_of_torch():
    case = ctc_case()
    theirs = ctc_loss(*case)
    assert float(hp.smooth_ctc_loss(*case, eps=0.0)) == pytest.approx(float(theirs), rel=1e-12)
    assert float(hp.smooth_ctc_loss(*case, eps=0.0, reduction="sum")) == pytest.approx(3 * float(theirs), rel=1e-12)


@pytest.mark.parametrize("eps", [0.1, 1.0])
def test_smoothed_ctc_is_the_equation(eps):
    log_probs, targets, input_lengths, target_lengths = case = ctc_case()
    expected = 0.0
    for n in range(3):
        one = slice(n, n + 1)
        own = float(ctc_loss(log_probs[:, one], targets[one], input_lengths[one], target_lengths[one]))
        divergences = []
        for t in range(int(input_lengths[n])):
            p = log_probs[t, n].exp()
            divergences.append(sum(0.2 * math.log(0.2 / float(p[c])) for c in range(5)))
        expected += (1 - eps) * own + eps * sum(divergences) / len(divergences)
    assert float(hp.smooth_ctc_loss(*case, eps=eps)) == pytest.approx(expected / 3, rel=1e-10)
    assert float(hp.smooth_ctc_loss(*case, eps=eps, reduction="sum")) == pytest.approx(expected, rel=1e-10)


def test_frames_past_the_length_weigh_nothing_whatever_they_hold():
    log_probs, *rest = ctc_case()
    plain = float(hp.smooth_ctc_loss(log_probs, *rest, eps=0.2))
    for rubbish in (5.0, -math.inf, math.nan):
        dirty = log_probs.clone()
        dirty[9:, 1], dirty[7:, 2] = rubbish, rubbish
        dirty.requires_grad_()
        loss = hp.smooth_ctc_loss(dirty, *rest, eps=0.2)
        assert float(loss.detach()) == pytest.approx(plain, rel=1e-12)


def test_ctc_takes_labels_in_one_row_and_lengths_as_lists():
    log_probs, targets, input_lengths, target_lengths = ctc_case()
    flat = torch.cat([row[:length] for row, length in zip(targets, target_lengths.tolist(), strict=True)])
    expected = float(hp.smooth_ctc_loss(log_probs, targets, input_lengths, target_lengths, eps=0.1))
    got = hp.smooth_ctc_loss(log_probs, flat, input_lengths.tolist(), target_lengths.tolist(), eps=0.1)
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_an_impossible_alignment_is_infinite_or_zero_as_in_torch():
    log_probs, targets, _, target_lengths = ctc_case()
    lengths = torch.tensor([12, 9, 1])
    assert math.isinf(hp.smooth_ctc_loss(log_probs, targets, lengths, target_lengths, eps=0.1))
    assert math.isfinite(hp.smooth_ctc_loss(log_probs, targets, lengths, target_lengths, eps=0.1, zero_infinity=True))


def test_ctc_refuses_a_share_out_of_range():
    with pytest.raises(hp.InputError, match=r"eps=2 is out of range"):
        hp.smooth_ctc_loss(*ctc_case(), eps=2)
    with pytest.raises(hp.InputError, match=r"reduction='none'"):
        hp.smooth_ctc_loss(*ctc_case(), eps=0.1, reduction="none")


@pytest.mark.parametrize("eps", [-0.1, 1.0, math.nan, "0.1"])
def test_the_field_is_named_with_its_value_and_range(eps):
    with pytest.raises(hp.InputError, match=rf"LabelSmoothing.eps={eps!r}.*\[0, 1\)"):
        hp.LabelSmoothing(eps=eps)
    assert hp.LabelSmoothing().eps == 0.1
