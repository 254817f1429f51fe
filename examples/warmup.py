"""Gradual warm-up over some steps, multiplied with another schedule."""

import torch

import heptane as hp

optimizer = torch.optim.AdamW(torch.nn.Linear(4, 2).parameters(), lr=1e-3)
schedule = hp.scale_schedules(hp.warmup(5, start=0.2), hp.cosine_restarts(50))
scheduler = hp.as_scheduler(optimizer, schedule)
for _ in range(5):
    optimizer.step()
    scheduler.step()
assert abs(scheduler.get_last_lr()[0] - 1e-3 * schedule(5)) < 1e-12
