"""What a model that is only tried must not keep: its modes, its buffers and the random state are put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from heptane._lazy import torch


def modes_of(model: torch.nn.Module) -> list[tuple[torch.nn.Module, bool]]:
    """Each module, and whether it is in train mode."""
    return [(module, module.training) for module in model.modules()]


def put_back(modes: list[tuple[torch.nn.Module, bool]]) -> None:
    """Undo what changed since :func:`modes_of`, frozen layers in a training model included."""
    for module, training in modes:
        if module.training != training:
            module.training = training


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """``model.eval()``, and at the end every module's own mode again."""
    modes = modes_of(model)
    model.eval()
    try:
        yield
    finally:
        put_back(modes)


@contextmanager
def as_before(model: torch.nn.Module) -> Iterator[None]:
    """At the end the model's buffers, such as BatchNorm's statistics, and the random state are as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices={p.device for p in model.parameters() if p.device.type == "cuda"}):
        try:
            yield
        finally:
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
