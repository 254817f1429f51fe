"""Does label smoothing improve calibration?

Mueller, Kornblith and Hinton 2019, arXiv:1906.02629, section 3: smoothing lowers the expected calibration error as
much as a tuned temperature does.
"""

from __future__ import annotations

import torch
from experiment import SEEDS, Outcome, accuracy, data, trained
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

import heptane as hp

EPOCHS, BATCH, LR = 20, 128, 0.1
SMOOTHING = (0.05, 0.1, 0.2)


def calibration_error(model: nn.Module) -> float:
    """Expected calibration error on the test set, in 15 bins."""
    images, labels = data()[2]
    with torch.no_grad():
        return float(MulticlassCalibrationError(num_classes=10, n_bins=15)(model.eval()(images).softmax(1), labels))


def main() -> None:
    source = "Mueller et al. 2019, arXiv:1906.02629"
    errors = Outcome("smoothing-calibration", "Label smoothing lowers the calibration error", source, "calibration error")
    right = Outcome("smoothing-accuracy", "Label smoothing raises the test accuracy", source, "test accuracy")
    found = {}
    for eps in (0.0, *SMOOTHING):
        tricks = hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=hp.LabelSmoothing(eps=eps) if eps else None)
        found[eps] = [trained(data()[0], lr=LR, batch=BATCH, epochs=EPOCHS, seed=s, tricks=tricks, decay=0.0) for s in SEEDS]
    for eps in SMOOTHING:
        for outcome, score in ((errors, calibration_error), (right, lambda model: accuracy(model, data()[2]))):
            outcome.add(eps, "hard targets", [score(model) for model in found[0.0]])
            outcome.add(eps, "smoothed", [score(model) for model in found[eps]])
            outcome.compare(eps, "smoothed", "hard targets", lower=outcome is errors)
    for outcome in (errors, right):
        outcome.write("eps", epochs=EPOCHS, rate=LR)


if __name__ == "__main__":
    main()
