"""FSDP2: each worker keeps its part of every parameter, gradient and optimizer state; layers are whole only while they run.

Source: Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054, section 5; Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from heptane.distributed.state import take_rest


def shard(model: nn.Module, device: str, workers: int) -> None:
    """Shard ``model`` in place over the workers, a unit per layer: what is gathered, used and let go together."""
    mesh = init_device_mesh(device, (workers,))
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def units(model: nn.Module) -> list[nn.Module]:
    """The layers below containers and below what holds a ModuleList, as a transformer holds its blocks, in order; none where
    layers share a parameter, which only a whole can hold.

    Example:
        >>> [type(unit).__name__ for unit in units(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))]
        ['Linear', 'Linear']
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [] if len(names) != len(list(model.parameters())) else list(_units(model))


def _units(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.Sequential, nn.ModuleList) or any(type(part) is nn.ModuleList for part in child.children()):
            yield from _units(child)
        elif any(True for _ in child.parameters()):
            yield child


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was there."""
    return isinstance(model, FSDPModule)


@contextmanager
def without_sums(model: nn.Module) -> Iterator[None]:
    """Backward passes whose gradients are kept on their worker, to be summed by the next one outside."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(value: Any) -> Any:
    """A sharded tensor as a whole one; all workers must ask. Other things as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Any, sharded: Any) -> Any:
    """The whole tensor ``value`` sharded as ``sharded`` is; as it is where that is not sharded, or of another shape."""
    whole_one = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not isinstance(sharded, DTensor) or not whole_one or value.shape != sharded.shape:
        return value
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def outline(model: nn.Module) -> nn.Module:
    """A copy of a model that is not sharded yet, its parameters without memory: what :func:`gathered` fills."""
    empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    made: nn.Module = copy.deepcopy(model, dict(empty))
    return made


def gathered(model: nn.Module, outline: nn.Module) -> nn.Module:
    """The sharded ``model`` as an ordinary one, on every worker; all must ask."""
    found: dict[int, nn.Parameter] = {}  # a parameter that two layers share stays one
    for mine, theirs in zip(outline.modules(), model.modules(), strict=True):
        for name, part in theirs._parameters.items():
            if part is not None and id(part) not in found:
                found[id(part)] = nn.Parameter(whole(part.detach()), requires_grad=part.requires_grad)
            mine._parameters[name] = None if part is None else found[id(part)]
        mine._buffers.update(theirs._buffers)
    take_rest(model, outline)
    return outline.train(model.training)


def save_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Every worker writes its own parts, as safetensors, by PyTorch's distributed checkpoint; all must call."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(tensors), storage_writer=writer)


def load_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill ``tensors``, sharded or whole, from what any number of workers wrote; all must call."""
    alone = not torch.distributed.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


def empty(shape: Sequence[int], dtype: torch.dtype, sharded: Any = None) -> Tensor:
    """Memory for a tensor that is stored: sharded as ``sharded`` where it has that one's shape, else whole."""
    if isinstance(sharded, DTensor) and tuple(sharded.shape) == tuple(shape):
        return torch.zeros_like(sharded, dtype=dtype)
    return torch.zeros(tuple(shape), dtype=dtype)
