"""State of any form as JSON with its tensors beside it, in safetensors; reading it back runs no code of the file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.errors import InputError
from heptane.storage import replace_file


def save_model(model: torch.nn.Module, path: Path) -> None:
    """The model's parameters and buffers as a safetensors file; a tensor of two names is stored under both."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    replace_file(path, serialised(copied(tensors), {"format": "pt"}))


def pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON; its tensors go to ``tensors``, under their names."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{name} is of type {type(value).__name__}: a checkpoint holds tensors, numbers, text, lists and dicts")


def unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value that :func:`pack` had, with its tensors from ``tensors``."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each in memory of its own."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def serialised(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file."""
    from safetensors.torch import save

    return save(tensors, metadata)
