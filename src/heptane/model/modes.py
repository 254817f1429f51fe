"""The modes of a model's modules, and putting back what a model that is only tried must not keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from heptane.base.lazy import torch


def save_modes(model: torch.nn.Module) -> list[tuple[torch.nn.Module, bool]]:
    """Each module, and whether it is in train mode."""
    return [(module, module.training) for module in model.modules()]


def restore_modes(modes: list[tuple[torch.nn.Module, bool]]) -> None:
    """Undo what changed since :func:`save_modes`, frozen layers in a training model included."""
    for module, training in modes:
        if module.training != training:
            module.training = training


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """``model.eval()``, and at the end every module's own mode again."""
    modes = save_modes(model)
    model.eval()
    try:
        yield
    finally:
        restore_modes(modes)


def gradients_on() -> AbstractContextManager[object]:
    """Training needs gradients, also inside the caller's ``torch.no_grad()`` or ``torch.inference_mode()``."""
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    return stack


@contextmanager
def no_gradients(autocast: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """No gradients, under ``autocast``, whose casts are not cached: a training pass around it would take them up, and learn
    nothing."""
    cached = torch.is_autocast_cache_enabled()
    with torch.no_grad(), autocast or nullcontext():
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
