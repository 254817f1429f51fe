"""How does the gain by pretrained weights depend on the number of labels, from 10 to 1,000 per class?

Howard and Ruder 2018, arXiv:1801.06146, figure 3: the fewer labels, the larger the gain. EfficientNet-lite0 with
ImageNet weights is compared with the same network from scratch; both train for 400 steps.
"""

from __future__ import annotations

from dataclasses import replace

from experiment import Outcome

import heptane as hp
from efficientnet import balanced, prepared
from transfer import ARMS, run

LABELS = {10: 200, 100: 20, 1000: 2}  # per class: epochs
NUM_SEEDS, IMAGE_SIZE = 2, 32


def main() -> None:
    data = hp.load_data("fashion-mnist")
    test = prepared(data, data.test, IMAGE_SIZE)
    claim = "Pretrained weights are worth more, the fewer labels there are"
    found = Outcome("transfer", claim, "Howard and Ruder 2018, arXiv:1801.06146", "test accuracy")
    for per_class, epochs in LABELS.items():
        train = prepared(data, balanced(*data.train, per_class), IMAGE_SIZE)
        for arm in ARMS[:2]:
            results = [run(replace(arm, epochs=epochs), train, seed, test=test) for seed in range(NUM_SEEDS)]
            found.add(per_class, arm.name, [result.metrics["test_accuracy"] for result in results])
        found.compare(per_class, ARMS[0].name, ARMS[1].name)
    found.write("labels per class", image_size=IMAGE_SIZE, epochs=list(LABELS.values()))


if __name__ == "__main__":
    main()
