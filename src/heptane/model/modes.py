"""Train and eval modes of a model's modules, and contexts with and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from heptane.base.lazy import torch


def save_modes(model: torch.nn.Module) -> list[tuple[torch.nn.Module, bool]]:
    """Return each module with its ``training`` flag."""
    return [(module, module.training) for module in model.modules()]


def restore_modes(modes: list[tuple[torch.nn.Module, bool]]) -> None:
    """Restore each module's own mode as of :func:`save_modes`: frozen layers may be in eval mode."""
    for module, training in modes:
        if module.training != training:
            module.training = training


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into eval mode inside; restore each module's own mode at the end."""
    modes = save_modes(model)
    model.eval()
    try:
        yield
    finally:
        restore_modes(modes)


def enable_gradients() -> AbstractContextManager[object]:
    """Enable gradients, even inside the caller's ``torch.no_grad()`` or ``torch.inference_mode()``."""
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    return stack


@contextmanager
def no_gradients(autocast: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Disable gradients, optionally under ``autocast``. Casts are not cached: a surrounding training pass would reuse these
    casts, which have no gradient, and learn nothing."""
    cached = torch.is_autocast_cache_enabled()
    with torch.no_grad(), autocast or nullcontext():
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
