"""Pay a process's one-time costs before the training clock starts: late imports, threads, first kernels."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from heptane.base.lazy import torch
from heptane.model.modes import enable_gradients

LATE = (
    "heptane.data.loaders.loader_source",
    "heptane.model.snapshot",
    "heptane.pretrained.anatomy",
    "numpy.random",
)  # otherwise imported on first use


@cache
def warm_up(device: str) -> None:
    """Train two tiny networks for one step on ``device``, once per process; random states are unchanged.

    The first optimizer of a process loads ``torch._dynamo``, which can take longer than a short training; the first backward
    pass starts threads; the first convolution and matrix product initialise oneDNN, MKL, cuDNN and cuBLAS.
    """
    for name in LATE:
        importlib.import_module(name)
    where = torch.device(device)
    like: dict[str, Any] = {"device": where, "dtype": torch.float32}
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), enable_gradients():
        nn = torch.nn
        images = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, **like), nn.BatchNorm2d(8, **like), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, **like),
        )  # fmt: skip
        words = nn.Sequential(
            nn.Embedding(8, 8, **like), nn.LayerNorm(8, **like), nn.Linear(8, 8, **like), nn.GELU(), nn.Flatten(),
            nn.Linear(32, 4, **like),
        )  # fmt: skip
        classes = torch.arange(4, device=where)
        _step(images, torch.ones(4, 3, 8, 8, **like), classes, torch.optim.SGD(images.parameters(), 0.1, 0.9))
        _step(words, classes.repeat(4, 1), classes, torch.optim.AdamW(words.parameters()))


def _step(net: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
