"""Join and multiply schedules: shrinking triangles after a warm-up."""

import torch

import heptane as hp

schedule = hp.join_schedules((hp.warmup(10, start=0.1), 10), then=hp.triangular(40, start=0.1, shape="triangular2"))
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(100):
    optimizer.param_groups[0]["lr"] = 1e-3 * schedule(step)
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
