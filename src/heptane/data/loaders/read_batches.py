"""Read the batches of a ``DataLoader``: for evaluation in a fixed order, without unreadable samples, joined into one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, MutableMapping
from typing import Any

from heptane.base.errors import DataError, InputError, one_line
from heptane.base.lazy import torch
from heptane.base.randomness import manual_seed
from heptane.base.tree import detached, inputs_and_targets, is_text, rebuild, tree_copy, tree_map
from heptane.data.cast import to_tensors
from heptane.data.loaders.loader_info import DuplicateDetector, check_sampler, may_share_memory
from heptane.data.loaders.safe_loader import Collated, drop_samples, safe_loader
from heptane.data.loaders.skipped_samples import WORKER_REMEDY, SkippedSamples


def owned_copy(data: Any, shares: bool) -> Any:
    """Detach a batch, or copy it if it ``shares`` the user's memory, so that the run may modify it."""
    return tree_copy(data) if shares else tree_map(detached, data)


def eval_batches(loader: Any, skipped: SkippedSamples | None = None, name: str = "evaluation") -> Iterator[tuple[Any, Any]]:
    """Yield a loader's batches, shuffled alike on each worker if at all; PyTorch's random state is unchanged."""
    check_sampler(loader)
    batches: Iterator[Any] | None = None
    index = 0
    while True:
        state = torch.random.get_rng_state()
        manual_seed(index)
        try:
            batches = readable_batches(loader, skipped, name) if batches is None else batches
            data = next(batches)
        except StopIteration:
            return
        finally:
            torch.random.set_rng_state(state)
        yield data
        index += 1


def readable_batches(loader: Any, skipped: SkippedSamples | None, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield a loader's batches without unreadable samples, recorded in ``skipped``; without it they are an error."""
    skipped, shares = skipped or SkippedSamples(), may_share_memory(loader)
    loader, duplicates = safe_loader(loader), DuplicateDetector(loader, name)
    with open_loader(loader) as batches:
        while True:
            try:
                batch = next_batch(batches)
            except StopIteration:
                return
            duplicates.look(batch)
            invalid = skipped.invalid_labels(batch)
            if isinstance(batch, Collated):
                skipped.add(name, [*batch.bad, *invalid])
                batch = drop_samples(batch, {index for index, _ in invalid}).data
            if batch is not None:
                yield owned_copy(inputs_and_targets(batch), shares)


@contextlib.contextmanager
def open_loader(loader: Any) -> Iterator[Iterator[Any]]:
    """Iterate over a loader whose worker processes, unless persistent, end with the block.

    If the garbage collector ended them (a traceback keeps the iterator in a cycle), PyTorch would close the queue of the
    last message first, and wait 5 s for each worker.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if hasattr(batches, "_shutdown_workers") and not loader.persistent_workers:
            batches._shutdown_workers()


def next_batch(batches: Iterator[Any]) -> Any:
    """Return the next batch; an error in reading it becomes a :class:`DataError` of one line."""
    try:
        batch = next(batches)
        return batch if isinstance(batch, Collated) else to_tensors(batch)
    except (StopIteration, InputError):
        raise
    except Exception as error:
        if ("DataLoader worker" in str(error) and "exit" in str(error)) or "killed by signal" in str(error):
            raise DataError(f"a DataLoader worker was killed ({one_line(error)}): {WORKER_REMEDY}") from error
        raise DataError(f"the data cannot be read ({type(error).__name__}: {_last_line(error)})") from error


def _last_line(error: Exception) -> str:
    """The message of an error that carries another process's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(ValueError(lines[-1])) if lines else type(error).__name__


def concat_batches(batches: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Concatenate batches into one."""
    if len(batches) == 1:
        return batches[0]
    return _cat([b[0] for b in batches]), _cat([b[1] for b in batches])


def _cat(items: list[Any]) -> Any:
    head = items[0]
    if isinstance(head, torch.Tensor):
        if len({item.shape[1:] for item in items}) > 1 or head.ndim == 0:
            shapes = ", ".join(str(tuple(item.shape)) for item in items)
            raise InputError(f"batches of shapes {shapes} cannot be joined into one step: pad them, or set accumulate=1")
        return torch.cat(items)
    if isinstance(head, MutableMapping):
        whole = copy.copy(head)
        whole.update({key: _cat([item[key] for item in items]) for key in head})
        return whole
    if is_text(head):  # removed later, if possible
        return [text for item in items for text in item]
    if isinstance(head, (tuple, list)) and head:
        return rebuild(head, [_cat([item[i] for item in items]) for i in range(len(head))])
    raise InputError(
        f"batches that hold {type(head).__name__} cannot be joined into one step: give tensors, or set accumulate=1"
    )
