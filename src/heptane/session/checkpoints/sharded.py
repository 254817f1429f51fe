"""The checkpoint of a sharded run: each worker writes its shards, and any number of workers can read them."""

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


def write_sharded(snapshot: Snapshot, aside: Path, path: Path, first: bool) -> None:
    """Write this worker's shards and their checksums; rank 0 seals the folder."""
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


def read_sharded(saved: Saved, run: Run | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a sharded checkpoint: sharded as in ``run``, or whole if ``run`` is None.

    Raises:
        Damaged: the files do not hold what the facts say.
    """
    from heptane.distributed.sharding import allocate, load_parts

    own = clean_state(run.model) if run else {}
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]] if run else []
    tensors, num_bytes = {}, sum(size for size, _ in saved.files.values())
    for name, (shape, dtype) in saved.facts["tensors"].items():
        kind, _, rest = name.partition(".")
        if kind in ("model", "average") or run is None:
            like_tensor = own.get(rest)
        else:
            index = int(rest.split(".")[1])
            like_tensor = parameters[index] if index < len(parameters) else None
        if dtype not in DTYPES or math.prod(shape) * getattr(torch, dtype).itemsize > num_bytes:
            raise Damaged(f"{name} of {dtype} {shape} does not fit into the files")
        tensors[name] = allocate(shape, getattr(torch, dtype), like_tensor)
    try:
        load_parts(tensors, saved.path)
    except Exception as error:  # distributed checkpoint raises anything for shards that do not fit
        raise Damaged(one_line(error)) from error
    return tensors


def shard_states(
    run: Run, model: dict[str, Any], optimizer: dict[str, Any], average: dict[str, Any] | None
) -> tuple[Any, ...]:
    """Shard whole states as this worker holds them."""
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
