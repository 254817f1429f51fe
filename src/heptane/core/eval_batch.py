"""Choose the batch size of an evaluation so that it needs no more memory than training, and split batches that still do not
fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, first_tensor, num_bytes, select_rows
from heptane.model.forward import unwrapped
from heptane.model.probe import probe_output

if TYPE_CHECKING:
    from heptane.core.run import Run

MAX_BATCH = 512  # larger batches are no faster
MAX_BYTES = 128 << 20  # of the largest tensor of a forward pass, inputs included
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def eval_batch_size(model: torch.nn.Module, inputs: Any, least: int, *, tries: bool = True) -> int:
    """The evaluation batch size: 512, or fewer if the largest tensor of a forward pass would exceed 128 MiB; at least
    ``least``.

    Args:
        model: tried on two samples and restored.
        inputs: a few samples, on its device.
        least: samples per forward pass in training, 1 or more.
        tries: False if the model cannot be run; then only the inputs count.
    """
    if least >= MAX_BATCH:
        return MAX_BATCH
    few = copy_rows(inputs, slice(2))
    largest = num_bytes(few)
    handles = []

    def look(module: Any, given: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, num_bytes(output))

    if tries:
        eager = unwrapped(model)
        try:
            handles = [module.register_forward_hook(look) for module in eager.modules()]
            with suppress(Exception):  # the evaluation itself reports errors
                probe_output(eager, few)
        finally:
            for handle in handles:
                handle.remove()
    each_takes = max(1, largest // max(1, len(first_tensor(few))))
    return min(MAX_BATCH, max(least, MAX_BYTES // each_takes))


def run_eval_batch_size(run: Run) -> int:
    """The evaluation batch size of a run; computed once."""
    if run.at_once is None:
        least = max(1, run.source.batch_size // (run.worker.size * run.accumulate))
        run.at_once = eval_batch_size(run.model, run.sample, least, tries=run.meta_copy is None)
    return run.at_once


class BatchSplitter:
    """Compute batches, halving them while memory is exhausted; later batches are no larger than what succeeded.

    Args:
        compute: from inputs and targets to an output.
        splits: False if all workers must call it equally often.
    """

    def __init__(self, compute: Callable[[Any, Any], Any], splits: bool = True) -> None:
        self.compute, self.splits, self.most = compute, splits, 0

    def of(self, inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
        """Output and targets, in several parts if the batch was split."""
        waiting = [(inputs, targets)]
        while waiting:
            part = waiting.pop()
            size = len(first_tensor(part[0]))
            if not self.most or size <= self.most:
                try:
                    output = self.compute(*part)
                except RuntimeError as error:
                    if not self.splits or size < 2 or not is_out_of_memory(error):
                        raise
                    error.__traceback__ = None  # it keeps the failed tensors alive
                    self.most = size // 2
                else:
                    yield output, part[1]
                    continue
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            half = -(-size // 2)
            waiting += [select_rows(part, slice(half, size)), select_rows(part, slice(half))]
