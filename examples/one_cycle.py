"""1cycle as a PyTorch scheduler, with the momentum in the opposite direction."""

import torch

import heptane as hp

model, steps = torch.nn.Linear(4, 2), 100
optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.95)  # the peak
rate, momentum = hp.one_cycle(steps), hp.one_cycle(steps, start=0.95, peak=0.85, final=0.95)
scheduler = hp.as_scheduler(optimizer, rate, momentum)
for _ in range(steps):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    scheduler.step()
