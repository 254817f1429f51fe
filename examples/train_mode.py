"""Train with frozen layers: ``hp.train_mode`` keeps a frozen BatchNorm fixed, ``model.train()`` does not."""

import torch

import heptane as hp

model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
hp.freeze(model, 1)
for _ in range(2):
    hp.train_mode(model)
    model(torch.randn(8, 1, 8, 8))
assert [layer.training for layer in model] == [False, False, True]
