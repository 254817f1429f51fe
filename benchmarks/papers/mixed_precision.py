"""Does training in bf16 with 32-bit master weights cost accuracy?

Micikevicius et al. 2018, arXiv:1710.03740; Kalamkar et al. 2019, arXiv:1905.12322.
"""

from __future__ import annotations

from experiment import SEEDS, Outcome, accuracy, data, trained

import heptane as hp

BATCH, LR, LENGTHS = 128, 0.1, (2, 8)


def main() -> None:
    claim = "bf16 with 32-bit master weights reaches the accuracy of fp32"
    found = Outcome("bf16", claim, "Kalamkar et al. 2019, arXiv:1905.12322", "test accuracy")
    for epochs in LENGTHS:
        for dtype in ("fp32", "bf16"):
            tricks = hp.Tricks(cyclical=hp.Cyclical(), mixed_precision=hp.MixedPrecision(dtype=dtype, channels_last="off"))
            models = [trained(data()[0], lr=LR, batch=BATCH, epochs=epochs, seed=seed, tricks=tricks) for seed in SEEDS]
            found.add(epochs, dtype, [accuracy(model, data()[2]) for model in models])
        found.compare(epochs, "bf16", "fp32")
    found.write("epochs", rate=LR)


if __name__ == "__main__":
    main()
