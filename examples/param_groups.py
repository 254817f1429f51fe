"""Learning rates by depth: each layer group has that of the next one divided by 2.6."""

import torch

import heptane as hp

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
optimizer = torch.optim.AdamW(hp.param_groups(model, lr=1e-3, factor=2.6))
for group in optimizer.param_groups:
    print(f"{group['name']:4} {group['lr']:.2e}")
scheduler = hp.as_scheduler(optimizer, hp.one_cycle(100))  # multiplies each group's own rate
