"""The loop is a generator: what happens between two steps belongs to the caller's ``for`` body, off the training clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from heptane.base.errors import DataError, InputError, one_line
from heptane.base.lazy import torch
from heptane.base.randomness import seed_torch
from heptane.base.tree import first_tensor
from heptane.core.criterion import model_output
from heptane.core.evaluation import is_out_of_memory
from heptane.core.losses import safe_divisor
from heptane.core.schedule import set_rates
from heptane.data.batches import Batch
from heptane.data.loaders.skipped_samples import WORKER_REMEDY
from heptane.distributed.replicas import NOT_REENTRANT, average_gradient, no_sync
from heptane.model.forward import GRAPH_MODES
from heptane.model.modes import enable_gradients, restore_modes, save_modes

if TYPE_CHECKING:
    from heptane.core.run import Run

UNUSED = "Expected to have finished reduction in the prior iteration"  # DDP's
TWICE = "Expected to mark a variable ready only once"


class Step(NamedTuple):
    """What the loop yields after each optimizer step, also after one that was not applied (``applied`` is False)."""

    step: int
    """steps so far, from 1; those that were not applied count too, since each is a step of the schedule and of the data"""
    epoch: int
    """epoch of this step, from 1"""
    ends_epoch: bool
    """whether it was its epoch's last"""
    loss: torch.Tensor
    """the step's loss on the device, detached (averaged over workers); reading it makes training wait"""
    learning_rate: float
    """of the last parameter group (the head's, where depths differ)"""
    run: Run
    """everything the loop works on; ``run.meter.read()`` gives the epoch's averages, ``run.clock`` the time"""
    applied: bool = True
    """whether the optimizer was stepped; not where gradients were not finite, or too few samples of the batch could be used
    (none, or fewer than BatchNorm needs), and then ``loss`` is NaN"""

    def __repr__(self) -> str:
        """Without ``run``, which holds everything."""
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields if name != "run")
        return f"Step({shown})"


def steps(run: Run, start: int = 0) -> Iterator[Step]:
    """Train from step ``start`` to the end, a :class:`Step` at a time."""
    run.clock.resume()
    for phase in run.phases:
        if phase.stop <= start:
            continue
        forward, source = run.enter(phase)
        modes = save_modes(run.model)
        for step, batch in source.batches(max(start, phase.start), phase.stop, run.place):
            momentum = run.rates.momentum(step) if run.rates.momentum else None
            set_rates(run.optimizer, run.base_rates, run.rates.learning_rate(step), momentum)
            with enable_gradients(), run.heartbeat.at(step) if run.worker.size > 1 else nullcontext():
                loss = update(run, forward, batch, step)
            if loss is not None:
                run.meter.add_step(step, loss, batch.size)
            epoch, at = divmod(step, run.source.steps_per_epoch)
            rate = float(run.optimizer.param_groups[-1]["lr"])
            run.clock.pause()
            shown = torch.full((), torch.nan, device=run.place.device) if loss is None else loss
            yield Step(step + 1, epoch + 1, at + 1 == run.source.steps_per_epoch, shown, rate, run, loss is not None)
            run.clock.resume()
            restore_modes(modes)  # the caller may have evaluated, or called model.train() over frozen layers
    run.clock.pause()


def update(run: Run, forward: torch.nn.Module, batch: Batch, step: int) -> torch.Tensor | None:
    """One optimizer step on one global batch; None if it was not applied, as ``Step.applied`` says.

    If it overflows it is tried again, from the same state, at a lower scale; if memory is short, in more micro-batches.
    """
    if batch.size < run.least_samples:  # too few of its samples can be used
        run.faults.left_out.add(step)
        if batch.size:
            few = f"its batch has {batch.size} sample(s), and BatchNorm needs {run.least_samples}"
            run.events.warn(f"step {step}: left out, since {few}")
    if run.faults.skips(step):
        return None
    run.buffers.save()
    before = run.precision.state()
    while True:
        seed_torch(run.plan.seed, step, run.worker.rank)
        clear_gradients(run)
        try:
            loss = gradients(run, forward, batch, step)
        except RuntimeError as error:
            run.buffers.restore()  # the run may be saved after this
            if UNUSED in str(error) and run.worker.size > 1:
                raise InputError(
                    "the model gives some parameters no gradient in some steps, on some workers, as layers do that are left "
                    "out at random: pass DataParallel(find_unused=True)"
                ) from error
            if TWICE in str(error) and run.worker.size > 1:
                raise InputError(
                    "a parameter was given its gradient twice in one step, as by a layer that is recomputed twice in "
                    f"checkpoint(..., use_reentrant=True): {NOT_REENTRANT}"
                ) from error
            in_smaller_parts(run, batch, step, error)
        else:
            if run.precision.step(run.optimizer, run.plan.clip_norm, run.parameters):
                if run.average:
                    run.average.update(run.faults.applied(step + 1))
                return loss
            if run.precision.exhausted:
                pass_over(run, batch, step, before)
                return None
            run.skipped += 1
        run.meter.discard()
        run.buffers.restore()


def pass_over(run: Run, batch: Batch, step: int, scale: dict[str, float]) -> None:
    """Undo what ``step`` did, the loss scale too, and do with it as the run was told to."""
    run.meter.discard()
    run.precision.load_state(scale)
    run.buffers.restore()
    try:
        run.faults.nonfinite(run, batch, step)
    finally:
        run.buffers.restore()  # finding out where it began was a forward pass
        clear_gradients(run)


def in_smaller_parts(run: Run, batch: Batch, step: int, error: RuntimeError) -> None:
    """After ``error``, if it says that memory is short: twice as many micro-batches; the global batch stays what it is.

    Raises:
        DataError: a process that reads data died, or these samples are not as those that the model was tried on.
        RuntimeError: it is another error; several workers, who would have to agree; or there is one sample to a part.
    """
    if "DataLoader worker" in str(error):  # PyTorch raises it wherever the main thread is when a reader dies
        raise DataError(f"a DataLoader worker was killed ({one_line(error)}): {WORKER_REMEDY}") from error
    shape = tuple(first_tensor(batch.take(slice(0, 1))[0]).shape[1:])
    if shape != run.sample_shape and batch.indices:
        named = ", ".join(map(str, batch.indices[:4]))
        raise DataError(
            f"training samples {named}, ... are of shape {shape}, the first were {run.sample_shape}, and the model does not "
            f"take them ({one_line(error)}): make them alike"
        ) from error
    most = batch.size // run.least_samples
    if (
        not is_out_of_memory(error)
        or run.worker.size > 1
        or run.accumulate >= most
        or run.plan.extras.compile in GRAPH_MODES
    ):
        raise error
    error.__traceback__ = None  # it holds what the step has allocated
    run.accumulate = min(2 * run.accumulate, most)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    run.events.warn(
        f"step {step}: not enough memory for a batch of {batch.size}: from here on each is computed in {run.accumulate} "
        "micro-batches; BatchNorm normalises over a micro-batch"
    )


def clear_gradients(run: Run) -> None:
    """``optimizer.zero_grad(set_to_none=True)``; PyTorch's own without its profiler's entry, 2% of a small step."""
    if getattr(run.optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
        run.optimizer.zero_grad(set_to_none=True)
        return
    for parameter in run.parameters:
        parameter.grad = None


def gradients(run: Run, forward: torch.nn.Module, batch: Batch, step: int) -> torch.Tensor:
    """Forward and backward over this worker's share of ``batch``, in micro-batches; its part of the loss.

    One part is a mean, as in a loop written by hand. Of several, each is a sum over the *global* count of what is averaged,
    times the workers, whose gradients are averaged; they synchronise on their last part only.
    """
    most = batch.size // run.least_samples
    whole = run.worker.size == 1 and min(run.accumulate, most) == 1
    share, alike = run.worker.share(batch.size), run.meta_copy is not None
    parts = [slice(None)] if whole else micro_batches(share, run.accumulate if alike else min(run.accumulate, most), alike)
    losses, count = [], None
    for part in parts:
        empty = not whole and part.stop == part.start  # fewer samples than workers: it all-reduces, and weighs nothing
        inputs, targets = run.mix.take(batch, slice(0, 1) if empty else part, step)
        if count is None and not whole:
            count = safe_divisor(run.criterion.count(run.mix.targets(batch, step)))
        with nullcontext() if part is parts[-1] or run.worker.size == 1 else no_sync(forward):
            with run.precision.autocast():
                output = run.precision.to_fp32(model_output(run.criterion, forward, inputs, targets))
            version = getattr(output, "_version", 0)
            if count is None:
                loss = run.criterion.mean(output, targets)
            else:
                loss = run.criterion.total(output, targets) * (0 if empty else run.worker.size) / count
            run.precision.backward(loss)
        losses.append(loss.detach())
        if not empty and getattr(output, "_version", 0) == version:  # else the loss works in place, and it is no output now
            run.meter.add(output, targets)
    if run.worker.size > 1:  # the others are averaged on the way back
        for parameter in run.apart:
            average_gradient(parameter, run.worker)
    return losses[0] if whole else torch.stack(losses).sum()


def micro_batches(share: slice, count: int, exactly: bool = False) -> list[slice]:
    """``share`` cut into at most ``count`` parts, as even as it goes, none empty unless all is; or into ``exactly`` so many,
    since the workers of a sharded model must run it equally often."""
    size = share.stop - share.start
    count = count if exactly else max(1, min(count, size))
    edges = [share.start + index * size // count for index in range(count + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]
