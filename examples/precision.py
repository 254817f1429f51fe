"""Mixed precision in your own loop: the same four calls for bf16, fp16 (with loss scaling) and fp32."""

import torch

import heptane as hp

model, x, y = torch.nn.Linear(16, 4), torch.randn(32, 16), torch.randint(0, 4, (32,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
p = hp.precision("bf16", "cpu")
for _ in range(3):
    optimizer.zero_grad()
    with p.autocast():
        output = model(x)
    p.backward(torch.nn.functional.cross_entropy(p.to_fp32(output), y))
    applied = p.step(optimizer, clip_norm=1.0)  # False where fp16 overflowed: then nothing advances
