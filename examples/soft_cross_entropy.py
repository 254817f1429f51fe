"""Label smoothing for sequences: padded positions are ignored, and the loss without smoothing is reported too."""

import torch

import heptane as hp

scores = torch.randn(4, 7, 50, requires_grad=True)  # (N, T, C): 4 sequences, 7 positions, 50 words
words = torch.randint(0, 50, (4, 7))
words[:, 5:] = -100  # padding
loss = hp.soft_cross_entropy(scores, words, eps=0.1)
loss.backward()
print(f"smoothed {loss.item():.3f}, unsmoothed {hp.soft_cross_entropy(scores, words).item():.3f}")
