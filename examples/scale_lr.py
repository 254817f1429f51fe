"""Use a batch four times as large: scale the learning rate, and warm up from that of the small batch."""

import torch

import heptane as hp

model, batch_size = torch.nn.Linear(4, 2), 1024
lr = hp.scale_lr(0.1, batch_size, reference_batch=256, rule="linear")  # "sqrt" for the Adam family
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
scheduler = hp.as_scheduler(optimizer, hp.warmup(20, start=0.1 / lr))
for _ in range(30):
    optimizer.zero_grad()
    model(torch.randn(batch_size, 4)).square().mean().backward()
    optimizer.step()
    scheduler.step()
