"""What outputs and targets mean, whatever the loss."""

from __future__ import annotations

import pytest
import torch

from heptane.core.criterion import choose_criterion
from heptane.core.custom_losses import CustomLoss
from heptane.core.losses import CrossEntropy, Ctc
from heptane.report.examination.decode import decode


def test_class_numbers_and_distributions_are_classes_with_the_chance_of_the_predicted_one() -> None:
    output = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    for targets in (torch.tensor([0, 1]), torch.eye(3)[[0, 1]], torch.tensor([0, 1], dtype=torch.uint8)):
        found = decode(CrossEntropy(), output, targets)
        assert found is not None
        assert (found.kind, found.truth.tolist(), found.predicted.tolist(), found.num_classes) == (
            "classes",
            [0, 1],
            [0, 2],
            3,
        )
        assert found.confidence is not None
        torch.testing.assert_close(found.confidence, output.softmax(1).max(1).values)


def test_log_probabilities_and_a_softmax_of_the_models_own_are_taken_for_what_they_are() -> None:
    chances = torch.tensor([[0.7, 0.2, 0.1]])
    for criterion, output in (
        (CrossEntropy(log_probs=True), chances.log()),
        (CustomLoss(lambda output, targets: output.mean()), chances),
    ):
        found = decode(criterion, output, torch.tensor([0]))
        assert found is not None
        assert found.confidence is not None
        torch.testing.assert_close(found.confidence, torch.tensor([0.7]))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_is_two_classes(shape: tuple[int, ...]) -> None:
    output, targets = torch.tensor([2.0, -2.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    criterion, _ = choose_criterion("binary_cross_entropy", output.view(shape), targets.view(shape), None)
    found = decode(criterion, output.view(shape), targets.view(4))
    assert found is not None
    assert (found.kind, found.predicted.tolist(), found.truth.tolist()) == ("classes", [1, 0, 1, 0], [1, 1, 0, 0])
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence[1], torch.tensor(2.0).sigmoid())


def test_several_labels_and_real_numbers() -> None:
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    criterion, _ = choose_criterion(None, targets, targets, None)
    found = decode(criterion, 2 * targets - 1, targets)
    assert found is not None
    assert (found.kind, found.predicted.tolist()) == ("labels", [[True, False], [True, True]])
    criterion, _ = choose_criterion(None, torch.zeros(3, 1), torch.tensor([1.5, 2.5, 3.5]), None)
    found = decode(criterion, torch.zeros(3, 1), torch.tensor([1.5, 2.5, 3.5]))
    assert found is not None
    assert (found.kind, found.truth.shape) == ("numbers", (3, 1))


def test_a_label_that_the_loss_ignores_does_not_count() -> None:
    found = decode(CrossEntropy(), torch.zeros(3, 2), torch.tensor([0, -100, 1]))
    assert found is not None
    assert found.counted is not None
    assert found.counted.tolist() == [True, False, True]


def test_what_has_no_single_answer_is_left_alone() -> None:
    sequence = torch.zeros(2, 5, 7)
    assert decode(CrossEntropy(), sequence, torch.zeros(2, 7, dtype=torch.long)) is None
    assert decode(Ctc(), sequence, (torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))) is None
    assert decode(CrossEntropy(), {"loss": torch.zeros(())}, torch.zeros(2)) is None
    assert decode(CrossEntropy(), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)) is None
    pixels, _ = choose_criterion("mse", torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), None)
    assert decode(pixels, torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)) is None
