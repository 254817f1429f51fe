"""Does mixup narrow the gap between training and test loss in a long run, and what does it cost in a short one?

Zhang et al. 2018, arXiv:1710.09412, sections 3.4 and 4.
"""

from __future__ import annotations

from experiment import SEEDS, Outcome, accuracy, data, trained

import heptane as hp

IMAGES, BATCH, LR, ALPHA = 5_000, 128, 0.1, 0.2
LENGTHS = {"short, 5 epochs": 5, "long, 100 epochs": 100}


def main() -> None:
    (images, labels), _, test = data()
    train = images[:IMAGES], labels[:IMAGES]
    claim = "Mixup narrows the gap between training and test loss on a long schedule"
    gaps = Outcome("mixup-gap", claim, "Zhang et al. 2018, arXiv:1710.09412", "test loss - training loss")
    right = Outcome("mixup-accuracy", "Mixup raises the test accuracy", gaps.source, "test accuracy")
    for length, epochs in LENGTHS.items():
        for arm, mixup in (("plain", None), ("mixup", hp.Mixup(alpha=ALPHA))):
            tricks = hp.Tricks(cyclical=hp.Cyclical(), mixup=mixup)
            models = [trained(train, lr=LR, batch=BATCH, epochs=epochs, seed=seed, tricks=tricks) for seed in SEEDS]
            found = [(hp.evaluate(model, test)["loss"], hp.evaluate(model, train)["loss"]) for model in models]
            gaps.add(length, arm, [of_test - of_train for of_test, of_train in found])
            right.add(length, arm, [accuracy(model, test) for model in models])
        gaps.compare(length, "mixup", "plain", lower=True)
        right.compare(length, "mixup", "plain")
    for outcome in (gaps, right):
        outcome.write("schedule", images=IMAGES, alpha=ALPHA, rate=LR)


if __name__ == "__main__":
    main()
