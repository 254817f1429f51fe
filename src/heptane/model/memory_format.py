"""Channels-last memory format for images and convolution weights."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch


def to_channels_last(inputs: Any) -> Any:
    """Convert images (N, C, H, W) to channels last; return anything else unchanged."""
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def store_channels_last(model: torch.nn.Module) -> None:
    """Convert a model's 4-d tensors to channels last in place, one at a time to save memory."""
    for tensor in four_dimensional(model):
        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def four_dimensional(model: torch.nn.Module) -> list[torch.Tensor]:
    """A model's 4-d parameters and buffers."""
    return [t for t in (*model.parameters(), *model.buffers()) if t.ndim == 4 and t.layout is torch.strided]
