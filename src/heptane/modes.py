"""The modes of a model's modules, and putting them back."""

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
