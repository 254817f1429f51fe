"""Tabular regression: mixup on inputs and real-valued targets, on scikit-learn's diabetes data.

The data are 10 measurements of 442 patients; the target is the progression of the disease after a year (Efron et al.
2004, *Least Angle Regression*, section 1). Each seed draws its own split, 60% for training and 40% for testing. A
small network trains with 1cycle for 10 or 100 epochs. The arms of each length differ only in mixup, which blends
pairs of patients and their targets. Ridge regression with cross-validated strength is the baseline.

The learning rate, weight decay and shorter length are the best of 18 settings without mixup, by cross-validation on
the training part of a seed that is not measured. With mixup, none of the 18 was better by more than 0.001. 100 epochs
are long enough to overfit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import heptane as hp
from heptane.base.randomness import generator
from record import Record, flags, run

TRAIN_SHARE = 0.6
HIDDEN, BATCH_SIZE, LR, WEIGHT_DECAY = 64, 32, 3e-3, 1.0
LENGTHS = (10, 100)  # epochs
ARMS = {"no mixup": None, "mixup, alpha 0.2": hp.Mixup(alpha=0.2), "mixup, alpha 1": hp.Mixup(alpha=1.0)}
PLAIN, *MIXED = ARMS
RIDGE = "ridge regression"
Pair = tuple[Tensor, Tensor]


def data(seed: int) -> tuple[Pair, Pair]:
    """Training and test part of the split ``seed``, standardized by the training part."""
    from sklearn.datasets import load_diabetes

    inputs, targets = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True))
    order = torch.from_numpy(generator(seed, "split", 0).permutation(len(targets)))
    train, test = order.tensor_split([round(TRAIN_SHARE * len(order))])

    def standardised(values: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (values - values[train].mean(0)) / values[train].std(0)
        return scaled[train], scaled[test]

    (x, x_test), (y, y_test) = standardised(inputs), standardised(targets)
    return (x, y), (x_test, y_test)


def model(num_inputs: int, seed: int) -> nn.Module:
    """Two hidden layers; one output."""
    torch.manual_seed(seed)
    layers = [nn.Linear(num_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)]
    return nn.Sequential(*layers)


def train_arm(mixup: hp.Mixup | None, train: Pair, test: Pair, *, seed: int, epochs: int) -> dict[str, float]:
    """Train a network; returns its RMSE on both parts, in standard deviations of the target."""
    result = hp.fit(
        model(train[0].shape[1], seed),
        train,
        optimizer=functools.partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        tricks=hp.Tricks(cyclical=hp.Cyclical(), mixup=mixup),
        seed=seed,
        test=test,
    )
    return {
        "test RMSE": result.metrics["test_loss"] ** 0.5,
        "training RMSE": hp.evaluate(result.model, train)["loss"] ** 0.5,
    }


def ridge(train: Pair, test: Pair) -> dict[str, float]:
    """RMSE of ridge regression on both parts."""
    from sklearn.linear_model import RidgeCV

    fitted = RidgeCV(alphas=[10.0**power for power in range(-2, 4)]).fit(*train)
    errors = (torch.from_numpy(fitted.predict(x)) - y for x, y in (test, train))
    return dict(zip(("test RMSE", "training RMSE"), (float(e.square().mean() ** 0.5) for e in errors), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    chosen = flags(__doc__, 20, argv)
    question = "does mixup on real-valued targets lower the error on diabetes?"
    record = Record("tabular", question, {"test RMSE": False, "training RMSE": False})
    lengths = LENGTHS[:1] if chosen.quick else LENGTHS
    for seed in range(chosen.seeds):
        train, test = data(seed)
        for epochs in lengths:
            for name, mixup in ARMS.items():
                found = train_arm(mixup, train, test, seed=seed, epochs=epochs)
                record.add(f"{epochs} epochs, {name}", found)
        record.add(RIDGE, ridge(train, test))
    for epochs in lengths:
        for name in MIXED:
            record.compare(f"{epochs} epochs, {name}", f"{epochs} epochs, {PLAIN}")
        record.compare(RIDGE, f"{epochs} epochs, {PLAIN}")
    described = f"diabetes, {len(train[1])} patients to train and {len(test[1])} to test"
    record.finish(chosen.out, data=described, batch_size=BATCH_SIZE, rate=LR, weight_decay=WEIGHT_DECAY)


if __name__ == "__main__":
    run(main)
