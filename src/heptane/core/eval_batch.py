"""How many samples are evaluated at once, so that an evaluation needs no more memory than training; fewer where even that is
too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, first_tensor, num_bytes, select_rows
from heptane.model.calling import unwrapped
from heptane.model.trying import try_output

if TYPE_CHECKING:
    from heptane.core.run import Run

MOST = 512  # samples at once: more is no quicker
WIDEST_BYTES = 128 << 20  # of the widest thing that a forward pass makes, inputs included
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def eval_batch_size(model: torch.nn.Module, inputs: Any, least: int, *, tries: bool = True) -> int:
    """How many samples to evaluate at once: 512, or so many that the widest thing in the forward pass, such as the first
    feature map or the scores of a vocabulary, takes 128 MiB; but ``least`` in any case, as many as training takes.

    Args:
        model: it is tried on two samples, and left as it is.
        inputs: some samples, on its device.
        least: samples that training computes at once, 1 or more.
        tries: False where the model cannot be run: then only the inputs count.
    """
    if least >= MOST:
        return MOST
    few = copy_rows(inputs, slice(2))
    widest = num_bytes(few)
    handles = []

    def look(module: Any, given: Any, output: Any) -> None:
        nonlocal widest
        widest = max(widest, num_bytes(output))

    if tries:
        eager = unwrapped(model)
        try:
            handles = [module.register_forward_hook(look) for module in eager.modules()]
            with suppress(Exception):  # what does not run is somebody else's to report
                try_output(eager, few)
        finally:
            for handle in handles:
                handle.remove()
    each_takes = max(1, widest // max(1, len(first_tensor(few))))
    return min(MOST, max(least, WIDEST_BYTES // each_takes))


def run_eval_batch_size(run: Run) -> int:
    """The same for a run; found once."""
    if run.at_once is None:
        least = max(1, run.source.batch_size // (run.worker.size * run.accumulate))
        run.at_once = eval_batch_size(run.model, run.sample, least, tries=run.meta_copy is None)
    return run.at_once


class BatchSplitter:
    """Computes batches, and where memory is short in halves of halves; later ones no larger than what went well.

    Args:
        compute: from inputs and targets to an output.
        splits: False where all workers must compute equally often.
    """

    def __init__(self, compute: Callable[[Any, Any], Any], splits: bool = True) -> None:
        self.compute, self.splits, self.most = compute, splits, 0

    def of(self, inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
        """Output and targets, in parts where it must be."""
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
                    error.__traceback__ = None  # it holds what was allocated
                    self.most = size // 2
                else:
                    yield output, part[1]
                    continue
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            half = -(-size // 2)
            waiting += [select_rows(part, slice(half, size)), select_rows(part, slice(half))]
