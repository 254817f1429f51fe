"""The workers' copies of the model: broadcast from rank 0, and compared bit for bit."""

from __future__ import annotations

from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.distributed.workers import Worker, all_gather, all_reduce, any_rank, this_worker

NOT_REENTRANT = "the gradients would be wrong: pass use_reentrant=False"


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether each worker holds a part of ``model``."""
    if this_worker().size == 1:
        return False
    from heptane.distributed import sharding

    return sharding.is_sharded(model)


def no_sync(forward: torch.nn.Module) -> Any:
    """Context in which backward passes do not sum gradients over workers, for all micro-batches of a step but the last."""
    if not is_sharded(forward):
        return forward.no_sync()  # type: ignore[operator]
    from heptane.distributed import sharding

    return sharding.no_sync(forward)


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Broadcast rank 0's buffers, as DDP's forward pass does, so that all workers evaluate the same model."""
    if this_worker().size == 1:
        return
    for buffer in model.buffers():
        if buffer.layout is torch.strided and not torch.nn.parameter.is_lazy(buffer):
            _broadcast(buffer)


def broadcast_model(model: torch.nn.Module, worker: Worker) -> None:
    """Broadcast rank 0's parameters and buffers, as DDP does: without a seed, each process builds different weights.

    Raises:
        InputError: the workers' models differ in names, dtypes or shapes.
    """
    if worker.size == 1:
        return
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ready = {name: t for name, t in held.items() if not torch.nn.parameter.is_lazy(t) and t.layout is torch.strided}
    mine = [(name, str(t.dtype), tuple(t.shape)) for name, t in ready.items()]
    for rank, theirs in enumerate(all_gather(mine, worker)):
        if theirs != mine:
            other = next(iter({*theirs} ^ {*mine}), "their order")
            raise InputError(
                f"the models of workers {rank} and {worker.rank} differ (first: {other}): build the same in each"
            )
    for tensor in ready.values():
        _broadcast(tensor)


def _broadcast(tensor: torch.Tensor) -> None:
    """Broadcast rank 0's values in place, as bytes, since backends support few dtypes."""
    if not tensor.numel():
        return
    value = tensor.detach().contiguous()
    sent = (torch.view_as_real(value) if value.is_complex() else value).reshape(-1).view(torch.uint8)
    torch.distributed.broadcast(sent, 0)
    with torch.no_grad():
        tensor.copy_(value)  # whose memory ``sent`` shares


def average_gradient(parameter: torch.nn.Parameter, worker: Worker) -> None:
    """Average a parameter's gradient over the workers in place; some workers may have none."""
    given, sparse = any_rank([parameter.grad is not None, parameter.grad is not None and parameter.grad.is_sparse], worker)
    if not given:
        return
    layout = torch.sparse_coo if sparse else torch.strided
    grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter, layout=layout)
    if sparse:  # only gloo can sum these
        grad = grad.cpu().coalesce()
    parameter.grad = (all_reduce(grad, worker) / worker.size).to(parameter.device)


def check_replicas(model: torch.nn.Module) -> None:
    """Check that the workers' parameters are equal bit for bit, by their hashes.

    Raises:
        RuntimeError: they differ; the message names the first such parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    if this_worker().size == 1 or not names or is_sharded(model):
        return
    low = torch.stack([_hash(parameter) for parameter in model.parameters()])
    high = low.clone()
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    for name, same in zip(names, (low == high).tolist(), strict=True):
        if not same:
            raise RuntimeError(f"the workers' models have diverged: parameter {name!r} is the first to differ")


def _hash(parameter: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of a tensor's bits: NaN equals itself, and -0 differs from 0."""
    value = parameter.detach()
    value = (torch.view_as_real(value) if value.is_complex() else value).contiguous().reshape(-1)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    found = torch.zeros((), dtype=torch.int64, device=value.device)
    for piece in torch.split(value.view(whole), 1 << 20):
        weights = torch.arange(1, 2 * len(piece), 2, device=value.device)
        found = found * 1_000_003 + (piece.long() * weights).sum()
    return found
