"""Running averages of losses and metrics, also where losses are not finite."""

from __future__ import annotations

import json
import math

import pytest
import torch

from heptane.core.custom_losses import CustomLoss
from heptane.core.losses import CrossEntropy, Elementwise
from heptane.core.metrics import NONFINITE_LIMIT, PENDING_ELEMENTS, EvalMeter, TrainMeter
from heptane.core.targets import MixedTargets

functional = torch.nn.functional
MSE = Elementwise("mse", functional.mse_loss)
BINARY = Elementwise("binary_cross_entropy", functional.binary_cross_entropy_with_logits, multi_label=True)


def test_the_loss_is_the_mean_over_samples_not_over_steps() -> None:
    meter = TrainMeter(MSE)
    for step, (loss, size) in enumerate([(1.0, 10), (4.0, 2)]):
        meter.add(torch.zeros(size, 1), torch.zeros(size, 1))
        meter.add_step(step, torch.tensor(loss), size)
    assert meter.read() == {"train_loss": pytest.approx((1.0 * 10 + 4.0 * 2) / 12, abs=1e-12)}


def test_accuracy_counts_samples_over_steps_parts_and_flushes() -> None:
    meter, right, seen = TrainMeter(CrossEntropy()), 0, 0
    for step, size in enumerate([7, 3, 1, 5]):
        output, targets = torch.randn(size, 4), torch.randint(0, 4, (size,))
        for part in (slice(0, size // 2), slice(size // 2, size)):
            meter.add(output[part], targets[part])
        meter.add_step(step, torch.tensor(1.0), size)
        if step == 1:
            meter.flush()
        right += int((output.argmax(1) == targets).sum())
        seen += size
    found = meter.read()
    assert found["train_accuracy"] == right / seen
    assert set(found) == {"train_loss", "train_accuracy"}


def test_ignored_positions_are_neither_right_nor_wrong() -> None:
    meter = TrainMeter(CrossEntropy(class_dim=-1))
    output, targets = torch.randn(2, 5, 3), torch.tensor([[0, 1, -100, 2, -100], [-100] * 5])
    meter.add(output, targets)
    meter.add_step(0, torch.tensor(0.0), 2)
    valid = targets != -100
    assert meter.read()["train_accuracy"] == ((output.argmax(-1) == targets) & valid).sum().item() / 3


def test_smoothing_adds_the_loss_without_it() -> None:
    meter = TrainMeter(CrossEntropy(eps=0.1))
    outputs, targets = torch.randn(2, 6, 4, dtype=torch.float64), torch.randint(0, 4, (2, 6))
    for step in range(2):
        meter.add(outputs[step], targets[step])
        smoothed = functional.cross_entropy(outputs[step], targets[step], label_smoothing=0.1)
        meter.add_step(step, smoothed, 6)
    found, every = meter.read(), (outputs.flatten(0, 1), targets.flatten())
    assert found["train_loss"] == pytest.approx(functional.cross_entropy(*every, label_smoothing=0.1).item(), abs=1e-12)
    assert found["train_loss_unsmoothed"] == pytest.approx(functional.cross_entropy(*every).item(), abs=1e-6)


def test_accuracy_under_mixup_is_weighted_and_labelled_so() -> None:
    meter = TrainMeter(CrossEntropy())
    output = torch.eye(3)[[0, 1, 2]]
    mixed = MixedTargets(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1]), torch.tensor([0.75, 0.75, 0.75]))
    meter.add(output, mixed)
    meter.add_step(0, torch.tensor(1.0), 3)
    found = meter.read()
    assert "train_accuracy" not in found
    assert found["train_accuracy_mixed"] == pytest.approx((1.0 + 0.25 + 0.0) / 3)


def test_an_epoch_without_blends_after_one_with_them_is_plain_again() -> None:
    meter = TrainMeter(CrossEntropy())
    meter.add(torch.eye(3), MixedTargets(torch.arange(3), torch.arange(3), torch.full((3,), 0.5)))
    meter.add_step(0, torch.tensor(1.0), 3)
    meter.reset()
    meter.add(torch.eye(3), torch.arange(3))
    meter.add_step(1, torch.tensor(1.0), 3)
    assert meter.read() == {"train_loss": 1.0, "train_accuracy": 1.0}


def test_regression_and_losses_of_ones_own_have_no_accuracy() -> None:
    for criterion in (MSE, CustomLoss(lambda output, targets: (output - targets).abs().mean())):
        meter = TrainMeter(criterion)
        meter.add(torch.randn(3, 2), torch.randn(3, 2))
        meter.add_step(0, torch.tensor(1.0), 3)
        assert set(meter.read()) == {"train_loss"}


def test_several_labels_count_each() -> None:
    meter = TrainMeter(BINARY)
    meter.add(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    meter.add_step(0, torch.tensor(1.0), 2)
    assert meter.read()["train_accuracy"] == 0.75


def test_outputs_that_are_no_tensor_are_reduced_at_once() -> None:
    meter = TrainMeter(CustomLoss(lambda output, targets: output["score"].mean()))
    meter.add({"score": torch.ones(2)}, torch.zeros(2))
    meter.add_step(0, torch.tensor(3.0), 2)
    assert meter._pending == []
    assert meter.read() == {"train_loss": 3.0}


def test_what_is_kept_is_bounded_and_holds_no_graph() -> None:
    meter, weight = TrainMeter(CrossEntropy()), torch.randn(8, 1000, requires_grad=True)
    most = 0
    for step in range(40):
        output = weight * 2
        meter.add(output, torch.zeros(8, dtype=torch.long))
        assert not meter._pending[-1][0].requires_grad
        meter.add_step(step, output.sum().detach(), 8)
        most = max(most, sum(kept.numel() for kept, _ in meter._pending))
    assert most < PENDING_ELEMENTS + 8000


def test_reading_twice_gives_the_same_and_does_not_reset() -> None:
    meter = TrainMeter(CrossEntropy())
    meter.add(torch.eye(3), torch.arange(3))
    meter.add_step(0, torch.tensor(1.0), 3)
    assert meter.read() == meter.peek() == {"train_loss": 1.0, "train_accuracy": 1.0}


def test_with_nothing_to_average_the_loss_is_not_a_number() -> None:
    meter = TrainMeter(CrossEntropy())
    meter.reset()
    assert math.isnan(meter.read()["train_loss"])
    assert math.isnan(EvalMeter(CrossEntropy()).read()["loss"])


def test_a_step_tried_again_counts_once() -> None:
    meter = TrainMeter(CrossEntropy())
    meter.add(torch.eye(3), torch.arange(3))
    meter.add_step(0, torch.tensor(1.0), 3)
    meter.add(torch.eye(3), torch.tensor([1, 2, 0]))
    meter.discard()
    meter.add(torch.eye(3), torch.tensor([0, 1, 0]))
    meter.add_step(1, torch.tensor(1.0), 3)
    assert meter.read()["train_accuracy"] == 5 / 6


def test_losses_that_are_not_finite_are_counted_and_left_out_of_the_mean() -> None:
    meter = TrainMeter(MSE)
    for step, loss in enumerate([1.0, math.nan, 3.0, math.inf, -math.inf]):
        meter.add(torch.zeros(2, 1), torch.zeros(2, 1))
        meter.add_step(step + 10, torch.tensor(loss), 2)
    assert meter.read() == {"train_loss": 2.0}
    assert (meter.nonfinite, meter.first_nonfinite, meter.in_a_row) == (3, 13, 2)
    meter.reset()
    assert (meter.nonfinite, meter.first_nonfinite, meter.in_a_row) == (3, 13, 2)


def test_only_losses_that_are_not_finite_have_no_mean() -> None:
    meter = TrainMeter(MSE)
    meter.add_step(0, torch.tensor(math.nan), 2)
    assert math.isnan(meter.read()["train_loss"])


def test_after_the_limit_training_is_stopped_and_the_first_bad_step_named() -> None:
    meter = TrainMeter(MSE)
    meter.add_step(3, torch.tensor(1.0), 2)
    for step in range(NONFINITE_LIMIT):
        meter.add_step(5 + step, torch.tensor(math.nan), 2)
    meter.flush()
    meter.add_step(99, torch.tensor(math.nan), 2)
    with pytest.raises(
        FloatingPointError, match=rf"not finite in {NONFINITE_LIMIT + 1} consecutive steps, first at step 5: check"
    ):
        meter.flush()


def test_evaluation_weighs_each_sample_once_however_batched() -> None:
    outputs, targets = torch.randn(11, 4), torch.randint(0, 4, (11,))
    for sizes in ([11], [4, 4, 3], [1] * 11):
        meter, start = EvalMeter(CrossEntropy(eps=0.2)), 0
        for size in sizes:
            meter.add(outputs[start : start + size], targets[start : start + size])
            start += size
        found = meter.read()
        assert found["loss"] == pytest.approx(functional.cross_entropy(outputs, targets).item(), abs=1e-6)
        assert found["accuracy"] == (outputs.argmax(1) == targets).double().mean().item()


def test_evaluation_with_class_weights_divides_by_their_sum() -> None:
    outputs, targets, weight = torch.randn(9, 3), torch.randint(0, 3, (9,)), torch.tensor([0.2, 1.0, 5.0])
    meter = EvalMeter(CrossEntropy(weight=weight))
    for rows in (slice(0, 2), slice(2, 9)):
        meter.add(outputs[rows], targets[rows])
    assert meter.read()["loss"] == pytest.approx(functional.cross_entropy(outputs, targets, weight).item(), abs=1e-6)


def test_sums_are_kept_in_64_bits() -> None:
    meter = EvalMeter(MSE)
    meter._sums[1] = 2.0**24
    meter.add(torch.zeros(1, 1), torch.zeros(1, 1))
    assert meter._sums[1].item() == 2**24 + 1
    train = TrainMeter(MSE)
    train.add_step(0, torch.tensor(1.0), 2**24 + 1)
    train.flush()
    assert train._sums[1] == 2**24 + 1


@pytest.mark.parametrize("smoothed", [False, True])
def test_when_sums_are_reduced_changes_no_bit_of_them(smoothed: bool) -> None:
    criterion = CrossEntropy(eps=0.1 if smoothed else 0.0)
    random = torch.Generator().manual_seed(0)
    parts = [(torch.randn(7, 3, generator=random), torch.randint(0, 3, (7,), generator=random)) for _ in range(9)]

    def read(often: bool) -> dict[str, float]:
        meter = TrainMeter(criterion)
        for step, (output, targets) in enumerate(parts):
            meter.add(output, targets)
            meter.add_step(step, torch.rand((), generator=random.manual_seed(step)), 7)
            if often:
                again = TrainMeter(criterion)
                again.load_state(json.loads(json.dumps(meter.state())))
                meter = again
        return meter.read()

    assert read(True) == read(False)
    assert ("train_loss_unsmoothed" in read(True)) is smoothed


@pytest.mark.parametrize("workers", [1, 4])
def test_the_sums_of_several_workers_are_one(workers: int) -> None:
    meters = [TrainMeter(MSE) for _ in range(3)]
    for step, meter in enumerate(meters):
        meter.add_step(0, torch.tensor(float(step)), 6)
    one = TrainMeter(MSE)
    one.load_state(TrainMeter.merge_states([meter.state() for meter in meters], workers))
    assert one.read() == {"train_loss": 1.0}
    assert one.state()["sums"][1] == 6 * workers  # as if so many had noted it


def test_balanced_accuracy_is_the_mean_recall_where_classes_are_out_of_balance() -> None:
    targets = torch.tensor([0] * 12 + [2] * 3)
    outputs = torch.zeros(15, 4)
    outputs[:12, 0] = 1  # all of the large class, and one of three of the small one; 1 and 3 do not occur
    outputs[12:, 0], outputs[12, 2] = 1, 2
    for sizes in ([15], [11, 4], [1] * 15):
        meter = EvalMeter(CrossEntropy())
        for output, target in zip(outputs.split(sizes), targets.split(sizes), strict=True):
            meter.add(output, target)
        found = meter.read()
        assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-12)
        assert found["accuracy"] == 13 / 15
    balanced = EvalMeter(CrossEntropy())
    balanced.add(outputs[6:], targets[6:])  # 6 to 3
    assert "balanced_accuracy" not in balanced.read()


def test_balanced_accuracy_of_one_logit_and_with_ignored_positions() -> None:
    meter = EvalMeter(BINARY)
    meter.add(torch.tensor([[-1.0]] * 8 + [[1.0], [-1.0]]), torch.tensor([0.0] * 8 + [1.0, 1.0]))
    assert meter.read()["balanced_accuracy"] == 0.75
    meter = EvalMeter(CrossEntropy())
    targets = torch.tensor([0] * 8 + [1, -100, -100])
    meter.add(torch.tensor([[1.0, 0.0]] * 11), targets)
    assert meter.read()["balanced_accuracy"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_wrong(value: float) -> None:
    """argmax of a row of NaN is class 0, and NaN > 0 is no: both look like an answer."""
    meter = EvalMeter(CrossEntropy())
    meter.add(torch.full((4, 3), value), torch.zeros(4, dtype=torch.long))
    assert meter.read()["accuracy"] == 0
    meter = EvalMeter(BINARY)
    meter.add(torch.full((4, 1), value), torch.full((4,), float(value > 0)))
    assert meter.read()["accuracy"] == 0
    train = TrainMeter(CrossEntropy())
    train.add(torch.full((4, 3), value), torch.zeros(4, dtype=torch.long))
    train.add_step(0, torch.tensor(1.0), 4)
    assert train.read()["train_accuracy"] == 0


def test_a_class_that_is_ruled_out_does_not_make_a_row_wrong() -> None:
    meter = EvalMeter(CrossEntropy())
    meter.add(torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]]), torch.tensor([0, 0]))
    assert meter.read()["accuracy"] == 0.5
