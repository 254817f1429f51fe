"""Train the head alone, then all layers. Frozen layers stay in eval mode, so their BatchNorm does not change."""

import torch

import heptane as hp

layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 3)]
model = torch.nn.Sequential(*layers)
print("frozen:", hp.freeze(model, -1))
hp.train_mode(model)  # instead of model.train()
model(torch.randn(8, 1, 8, 8)).sum().backward()
assert layers[0].weight.grad is None
assert int(layers[1].num_batches_tracked) == 0
hp.freeze(model, 0)
assert all(p.requires_grad for p in model.parameters())
