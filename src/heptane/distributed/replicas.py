"""The workers' copies of the model: given the same values, compared bit for bit."""

from __future__ import annotations

from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.distributed.launch import launch as launch
from heptane.distributed.workers import Worker, all_gather, all_reduce, any_rank, this_worker

NOT_REENTRANT = "the gradients would be wrong: pass use_reentrant=False"


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the workers each hold a part of ``model``."""
    if this_worker().size == 1:
        return False
    from heptane.distributed import sharding

    return sharding.is_sharded(model)


def no_sync(forward: torch.nn.Module) -> Any:
    """A context in which backward passes do not sum gradients over the workers: all but the last micro-batch of a step."""
    if not is_sharded(forward):
        return forward.no_sync()  # type: ignore[operator]
    from heptane.distributed import sharding

    return sharding.no_sync(forward)


def share_buffers(model: torch.nn.Module) -> None:
    """Give every worker rank 0's buffers, as each forward pass does, so that all evaluate one model."""
    if this_worker().size == 1:
        return
    for buffer in model.buffers():
        if buffer.layout is torch.strided and not torch.nn.parameter.is_lazy(buffer):
            _broadcast(buffer)


def share_model(model: torch.nn.Module, worker: Worker) -> None:
    """Give every worker rank 0's parameters and buffers, as DDP does: a script that builds its model without a seed starts
    with other weights in each process.

    Raises:
        InputError: the models are not of one kind.
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
                f"the model of worker {rank} is not that of worker {worker.rank} (first: {other}): build the same in each"
            )
    for tensor in ready.values():
        _broadcast(tensor)


def _broadcast(tensor: torch.Tensor) -> None:
    """Rank 0's values, in place; as bytes, since not every backend knows every type."""
    if not tensor.numel():
        return
    value = tensor.detach().contiguous()
    sent = (torch.view_as_real(value) if value.is_complex() else value).reshape(-1).view(torch.uint8)
    torch.distributed.broadcast(sent, 0)
    with torch.no_grad():
        tensor.copy_(value)  # whose memory ``sent`` shares


def average_gradient(parameter: torch.nn.Parameter, worker: Worker) -> None:
    """Average a parameter's gradient over the workers, in place; on some there may be none."""
    given, sparse = any_rank([parameter.grad is not None, parameter.grad is not None and parameter.grad.is_sparse], worker)
    if not given:
        return
    layout = torch.sparse_coo if sparse else torch.strided
    grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter, layout=layout)
    if sparse:  # which only gloo adds up
        grad = grad.cpu().coalesce()
    parameter.grad = (all_reduce(grad, worker) / worker.size).to(parameter.device)


def check_replicas(model: torch.nn.Module) -> None:
    """Compare a hash of every worker's parameters, bit for bit, and name the first that differs.

    Raises:
        RuntimeError: the replicas are not equal.
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
            raise RuntimeError(f"the workers' copies of the model have diverged: parameter {name!r} is the first to differ")


def _hash(parameter: torch.Tensor) -> torch.Tensor:
    """A number of the bits, in 64 bits that wrap around: NaN equals itself, and -0 is not 0."""
    value = parameter.detach()
    value = (torch.view_as_real(value) if value.is_complex() else value).contiguous().reshape(-1)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    found = torch.zeros((), dtype=torch.int64, device=value.device)
    for piece in torch.split(value.view(whole), 1 << 20):
        weights = torch.arange(1, 2 * len(piece), 2, device=value.device)
        found = found * 1_000_003 + (piece.long() * weights).sum()
    return found
