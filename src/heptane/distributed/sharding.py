"""FSDP2: each worker keeps a shard of every parameter, gradient and optimizer state; a layer is gathered while it runs.

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

from heptane.distributed.copy_state import copy_extra_state
from heptane.distributed.layer_usage import LayerUsage
from heptane.model.outputs import map_tensors


def shard(model: nn.Module, device: str, workers: int, use: LayerUsage | None = None) -> None:
    """Shard ``model`` in place over the workers, one FSDP unit per layer.

    Args:
        model: the model.
        device: its device type.
        workers: number of workers.
        use: the observed layer usage. A layer whose parameters are also used outside it is gathered with the whole model. If
            layers may be skipped, all are gathered with the whole model, since every worker must gather the same.
    """
    use, mesh, ignored = use or LayerUsage(), init_device_mesh(device, (workers,)), set(unsharded_parameters(model))
    if use.varies:
        model.register_forward_hook(_touch)
    for unit in units(model):
        if not use.varies and unit not in use.outside and not ignored.issuperset(unit.parameters()):
            fully_shard(unit, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)


def unsharded_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that FSDP does not support, so that every worker holds them whole: scalars, and embeddings with sparse
    gradients."""
    tables = [p for module in model.modules() if getattr(module, "sparse", None) is True for p in module.parameters(False)]
    known = {id(p) for p in tables}
    return tables + [p for p in model.parameters() if not p.ndim and id(p) not in known]


class _Touched(torch.autograd.Function):
    """Identity on an output; its backward pass gives every parameter a gradient, zero unless it has another."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape) for p in ctx.parameters]
        return gradient, *zeros


def _touch(model: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook for a model that skips layers, whose workers would otherwise sum gradients of different parameters."""
    apart = {id(p) for p in unsharded_parameters(model)}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    touched = False

    def touch(tensor: Tensor) -> Tensor:
        nonlocal touched
        if touched or not tensor.requires_grad:
            return tensor
        touched = True
        return _Touched.apply(tensor, *parameters)  # type: ignore[no-any-return, no-untyped-call]

    return map_tensors(output, touch) if torch.is_grad_enabled() else output


def units(model: nn.Module) -> list[nn.Module]:
    """The layers to shard, in order: children of containers and of modules with a ModuleList, such as transformer blocks.

    Empty if layers share a parameter, which only the whole model can hold.

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
    """Whether :func:`shard` was applied."""
    return isinstance(model, FSDPModule)


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Keep the gradients of backward passes on their worker; the next backward pass outside sums them."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def full_tensor(value: Any) -> Any:
    """Gather a sharded tensor; all workers must call this. Anything else is returned unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Any, sharded: Any) -> Any:
    """Shard the full tensor ``value`` like ``sharded``; unchanged if that is not sharded or has another shape."""
    whole_one = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not isinstance(sharded, DTensor) or not whole_one or value.shape != sharded.shape:
        return value
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy an unsharded model with parameters on the meta device, for :func:`gather_model` to fill."""
    empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    made: nn.Module = copy.deepcopy(model, dict(empty))
    return made


def gather_model(model: nn.Module, meta_copy: nn.Module) -> nn.Module:
    """Gather the sharded ``model`` into an unsharded one on every worker; all must call this."""
    found: dict[int, nn.Parameter] = {}  # keeps shared parameters shared
    for mine, theirs in zip(meta_copy.modules(), model.modules(), strict=True):
        for name, part in theirs._parameters.items():
            if part is not None and id(part) not in found:
                found[id(part)] = nn.Parameter(full_tensor(part.detach()), requires_grad=part.requires_grad)
            mine._parameters[name] = None if part is None else found[id(part)]
        mine._buffers.update(theirs._buffers)
    copy_extra_state(model, meta_copy)
    meta_copy.train(model.training)
    return meta_copy


def save_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write each worker's shards as safetensors, with PyTorch's distributed checkpoint; all workers must call this."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(tensors), storage_writer=writer)


def load_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill ``tensors``, sharded or full, from shards that any number of workers wrote; all workers must call this."""
    alone = not torch.distributed.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


def allocate(shape: Sequence[int], dtype: torch.dtype, sharded: Any = None) -> Tensor:
    """Allocate a tensor to load into: sharded like ``sharded`` if the shapes are equal, else full."""
    if isinstance(sharded, DTensor) and tuple(sharded.shape) == tuple(shape):
        return torch.zeros_like(sharded, dtype=dtype)
    return torch.zeros(tuple(shape), dtype=dtype)
