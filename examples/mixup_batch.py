"""Mixup in your own loop, with your own random draw."""

import torch

import heptane as hp

x, classes = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    lam, permutation = torch.distributions.Beta(0.2, 0.2).sample(), torch.randperm(64)
    mixed_x, mixed_y = hp.mixup_batch(x, hp.smooth_labels(classes, 0.0, num_classes=10), lam, permutation)
    optimizer.zero_grad()
    hp.soft_cross_entropy(model(mixed_x), mixed_y).backward()
    optimizer.step()
