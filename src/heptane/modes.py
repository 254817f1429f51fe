"""The modes of a model's modules, and putting back what a model that is only tried must not keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

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


def as_before(model: torch.nn.Module) -> AbstractContextManager[Any]:
    """At the end the model and the random states are as they were: :func:`heptane.snapshot.as_before`."""
    from heptane.snapshot import as_before as kept

    return kept(model)
