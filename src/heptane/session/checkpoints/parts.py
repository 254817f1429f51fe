"""The checkpoint of a sharded run: each worker writes the parts that it holds, and any number of workers reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import one_line
from heptane.base.lazy import torch
from heptane.base.storage import Damaged, checksum, make_empty_folder, seal, sync
from heptane.distributed.workers import all_gather, this_worker
from heptane.model.names import clean_state

if TYPE_CHECKING:
    from heptane.core.run import Run
    from heptane.session.checkpoints.checkpoint import Saved, Snapshot

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def write_parts(snapshot: Snapshot, aside: Path, path: Path, first: bool) -> None:
    """Each worker writes its parts and their checksums; the first seals."""
    from heptane.distributed.sharding import save_parts

    tensors = snapshot.tensors
    if first:
        make_empty_folder(aside)
    torch.distributed.barrier()
    save_parts(tensors, aside)
    worker, parts = this_worker(), sorted(aside.iterdir())
    found = {}
    for part in parts[worker.rank :: worker.size]:
        sync(part)
        found[part.name] = checksum(part)
    checksums: dict[str, list[Any]] = {}
    for some in all_gather(found, worker):
        checksums |= some
    if first:
        about = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in tensors.items()}
        seal(aside, path, snapshot.facts | {"tensors": about}, checksums)
    torch.distributed.barrier()


def read_parts(saved: Saved, run: Run) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that is in parts, sharded as ``run`` is.

    Raises:
        Damaged: they are not what its facts say.
    """
    from heptane.distributed.sharding import allocate, load_parts

    own = clean_state(run.model)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    tensors, room = {}, sum(size for size, _ in saved.files.values())
    for name, (shape, dtype) in saved.facts["tensors"].items():
        kind, _, rest = name.partition(".")
        if kind in ("model", "average"):
            sharded = own.get(rest)
        else:
            index = int(rest.split(".")[1])
            sharded = parameters[index] if index < len(parameters) else None
        if dtype not in DTYPES or math.prod(shape) * getattr(torch, dtype).itemsize > room:
            raise Damaged(f"{name} of {dtype} {shape} is not what its files can hold")
        tensors[name] = allocate(shape, getattr(torch, dtype), sharded)
    try:
        load_parts(tensors, saved.path)
    except Exception as error:  # whatever distributed checkpoint makes of parts that do not fit
        raise Damaged(one_line(error)) from error
    return tensors


def read_whole(saved: Saved) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that is in parts, whole, in a process of its own.

    Raises:
        Damaged: they are not what its facts say.
    """
    from heptane.distributed.sharding import allocate, load_parts

    room, tensors = sum(size for size, _ in saved.files.values()), {}
    for name, (shape, dtype) in saved.facts["tensors"].items():
        if dtype not in DTYPES or math.prod(shape) * getattr(torch, dtype).itemsize > room:
            raise Damaged(f"{name} of {dtype} {shape} is not what its files can hold")
        tensors[name] = allocate(shape, getattr(torch, dtype))
    try:
        load_parts(tensors, saved.path)
    except Exception as error:  # whatever distributed checkpoint makes of parts that do not fit
        raise Damaged(one_line(error)) from error
    return tensors


def as_parts(run: Run, model: dict[str, Any], optimizer: dict[str, Any], average: dict[str, Any] | None) -> tuple[Any, ...]:
    """Whole states as the parts that this worker holds."""
    from heptane.distributed.sharding import shard_like

    own = clean_state(run.model)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    state = {
        index: {key: shard_like(value, parameters[index]) for key, value in kept.items()}
        for index, kept in optimizer["state"].items()
    }
    parts, averages = (
        {name: shard_like(value, own[name]) if name in own else value for name, value in each.items()}
        for each in (model, average or {})
    )
    return parts, {**optimizer, "state": state}, averages or None
