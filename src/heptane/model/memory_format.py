"""Images stored channels last, and the weights of convolutions: without a second copy, and back as they were."""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch


def to_channels_last(inputs: Any) -> Any:
    """Images (N, C, H, W) stored channels last; anything else as it is."""
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def store_channels_last(model: torch.nn.Module) -> None:
    """Store a model's tensors of four dimensions channels last, one after another; those of five have no such format."""
    for tensor in four_dimensional(model):
        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def four_dimensional(model: torch.nn.Module) -> list[torch.Tensor]:
    """A model's parameters and buffers of four dimensions, each once."""
    return [t for t in (*model.parameters(), *model.buffers()) if t.ndim == 4 and t.layout is torch.strided]
