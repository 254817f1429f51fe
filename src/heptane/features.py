"""What a frozen part of a model makes of its inputs, computed once; the rest trains on that.

Where the first layers are frozen and their inputs do not change, neither do their outputs. A model is cut where the frozen
part ends: what runs after it, in a chain from one module to the next up to the output, is the *tail*. Whether the cut is
right is not assumed but tried on a few samples: the tail must give what the model gives.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from heptane._lazy import torch
from heptane.calling import call
from heptane.checks import try_output
from heptane.criterion import Returned
from heptane.data.batches import Place, Tensors, first_tensor, pair, rows
from heptane.errors import InputError, one_line
from heptane.modes import eval_mode
from heptane.tricks.data_parallel import ALONE, Worker, all_sum
from heptane.tricks.mixup import Mixer

if TYPE_CHECKING:
    from heptane.assemble import Phase, Run
    from heptane.tricks.mixed_precision import Precision

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SHARE_OF_MEMORY = 0.25  # of what is available, that features may take before they go to the disk
TRIED = 4  # samples on which a cut is tried
CLOSE = 1e-4  # of the largest output: what the tail may differ by


class Call(NamedTuple):
    """One call of a module: from when to when, and from which tensor to which."""

    module: torch.nn.Module
    number: int
    """of this module's calls, from 0"""
    began: int
    ended: int
    came: torch.Tensor | None
    """its one argument, or None where it has another kind or number of them"""
    went: Any


class Cut(NamedTuple):
    """Where a model is cut: before this call of this module; what follows are ``tail``'s modules, one after another."""

    module: torch.nn.Module
    number: int
    tail: list[torch.nn.Module]
    dtype: torch.dtype
    """of what comes there"""


class As(torch.nn.Module):
    """What was kept in fewer bits, in those that it had."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.to(self.dtype)


class _Reached(Exception):
    """The forward pass came to the cut."""


@dataclass
class Shortcut:
    """The tail of a model, and what comes to it: features in place of inputs."""

    tail: torch.nn.Module
    source: Tensors
    said: str
    compute: Callable[[Any], torch.Tensor]
    _known: list[tuple[Any, tuple[Any, Any]]] = field(default_factory=list)

    def of(self, data: Any) -> tuple[Any, Any]:
        """Features and targets of other data in memory; computed at the first call."""
        for known, found in self._known:
            if known is data:
                return found
        inputs, targets = pair(data)
        self._known.append((data, (self.compute(inputs), targets)))
        return self._known[-1][1]


def find_shortcut(run: Run, phase: Phase, kind: str, dtype: str) -> Shortcut | str:
    """The shortcut through the frozen part of ``run.model``, in the modes and with the parameters frozen as they are in
    ``phase``; or why there is none.

    Args:
        kind: "auto" (in memory, or on the disk where that is short), "memory" or "disk".
        dtype: of the features: "auto" is what the frozen part gives, or "fp32", "fp16", "bf16".

    Raises:
        InputError: features that ``dtype`` cannot hold.
    """
    model, source = run.model, run.source
    if not isinstance(source, Tensors):
        return "a Dataset or DataLoader may give other inputs in each epoch: pass tensors"
    if run.place.augment is not None or run.place.sizes is not None:
        return "augmentation and progressive resizing change the inputs"
    if phase.stop - phase.start <= source.steps_per_epoch:
        return "it is frozen for no more than an epoch"
    if run.outline is not None:
        return "the model is in parts"
    if isinstance(run.criterion, Returned):
        return "the loss is computed in the model"
    sample = run.place.inputs(rows(source.inputs, slice(TRIED)))
    run.buffers.keep()
    try:
        with run.precision.autocast():
            cut = find_cut(model, sample)
    finally:
        run.buffers.put_back()
    if isinstance(cut, str):
        return cut
    if isinstance(run.mix, Mixer) and not _within(model, run.mix.trick.layer, cut):
        return "mixup blends what goes into it"
    began = time.perf_counter()
    held = Held(kind, None if dtype == "auto" else getattr(torch, DTYPES[dtype]))

    def compute(inputs: Any) -> torch.Tensor:
        worker = run.worker if len(first_tensor(inputs)) >= run.worker.size else ALONE
        return held.fill(inputs, parts(model, cut, inputs, source.batch_size, run.place, run.precision, worker), worker)

    features = compute(source.inputs)
    said = (
        f"frozen part computed once: {len(features)} samples of {features[0].numel()} features, "
        f"{str(features.dtype).removeprefix('torch.')} {held.where}, {features.nbytes / 2**20:.3g} MiB, "
        f"in {time.perf_counter() - began:.3g} s"
    )
    made = Tensors(features, source.targets, source.batch_size, source.seed)
    return Shortcut(torch.nn.Sequential(As(cut.dtype), *cut.tail), made, said, compute)


def find_cut(model: torch.nn.Module, sample: Any) -> Cut | str:
    """Where ``model`` may be cut: the shortest tail that holds all that trains and all that is random; or why nowhere.

    Its modes and the gradients that are stopped are as in training.
    """
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    if all(p.requires_grad for p in model.parameters()):
        return "nothing is frozen"
    with watched(model) as calls:
        output = try_output(model, sample)
    if not isinstance(output, torch.Tensor):
        return "the model's output is not one tensor"
    chain = chain_to(output, calls, trains, {id(p) for p in model.parameters() if not p.requires_grad})
    for length in range(1, len(chain) + 1):
        tail = [c.module for c in chain[-length:]]
        if not trains <= {id(p) for module in tail for p in module.parameters()}:
            continue
        came = chain[-length].came
        assert came is not None
        cut = Cut(tail[0], chain[-length].number, tail, came.dtype)
        if _reproduces(cut, came, output) and _is_constant(model, cut, sample):
            return cut
    return "what trains does not follow the frozen part in one chain of modules, or is random before it"


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[Call]]:
    """Calls of ``model``'s modules while it lasts, in the order in which they end."""
    calls: list[Call] = []
    begun: list[tuple[torch.nn.Module, int, Any]] = []
    clock = iter(range(1 << 62))

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        begun.append((module, next(clock), args[0] if alone else None))

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        _, began, came = begun.pop()
        number = sum(c.module is module for c in calls)
        calls.append(Call(module, number, began, next(clock), came, output))

    hooks = []
    for module in model.modules():
        if module is not model:
            hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def chain_to(output: torch.Tensor, calls: list[Call], trains: set[int], frozen: set[int]) -> list[Call]:
    """The calls that lead to ``output``, each from the tensor that the one before it gave, none with a frozen parameter;
    the outermost module, where several give the same."""
    chain: list[Call] = []
    tensor, until = output, math.inf
    while True:
        fitting = [
            c
            for c in calls
            if c.went is tensor and c.ended < until and c.came is not None
            and not frozen & {id(p) for p in c.module.parameters()}
        ]  # fmt: skip
        if not fitting:
            return chain[::-1]
        last = max(fitting, key=lambda c: c.ended)
        chain.append(last)
        tensor, until = last.came, last.began  # type: ignore[assignment]


def parts(
    model: torch.nn.Module,
    cut: Cut,
    inputs: Any,
    batch_size: int,
    place: Place,
    precision: Precision,
    worker: Worker,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """This worker's part of the features, batch by batch."""
    share = worker.share(len(first_tensor(inputs)))
    with eval_mode(model), torch.no_grad(), precision.autocast():
        for start in range(share.start, share.stop, batch_size):
            at = slice(start, min(start + batch_size, share.stop))
            yield at, reach(model, cut, place.inputs(rows(inputs, at)))


def reach(model: torch.nn.Module, cut: Cut, inputs: Any) -> torch.Tensor:
    """What comes to the cut; the forward pass ends there."""
    seen, found = 0, []

    def hook(_: Any, args: Any) -> None:
        nonlocal seen
        if seen == cut.number:
            found.append(args[0])
            raise _Reached
        seen += 1

    handle = cut.module.register_forward_pre_hook(hook)
    try:
        call(model, inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    reached: torch.Tensor = found[0].detach()
    return reached


@dataclass
class Held:
    """Where features are kept, and in which dtype; None: the one that they come in."""

    kind: str
    dtype: torch.dtype | None
    where: str = "in memory"

    def fill(self, inputs: Any, parts: Iterator[tuple[slice, torch.Tensor]], worker: Worker) -> torch.Tensor:
        """The features of all samples, from those of this worker's."""
        whole: torch.Tensor | None = None
        first = first_tensor(inputs)
        for at, part in parts:
            if whole is None:
                whole = self._empty((len(first), *part.shape[1:]), self.dtype or part.dtype, first.device, worker)
            whole[at] = part.to(whole.dtype)
            if self.dtype is not None and not bool(whole[at].isfinite().all()) and bool(part.isfinite().all()):
                raise InputError(
                    f"Transfer.cache_dtype={str(self.dtype).removeprefix('torch.')!r} cannot hold features of up to "
                    f"{float(part.abs().max()):.3g}: use 'bf16' or 'auto'"
                )
        assert whole is not None
        return all_sum(whole, worker)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, worker: Worker) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        if worker.size > 1:
            return torch.zeros(shape, dtype=dtype, device=device)
        short = size > SHARE_OF_MEMORY * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.kind == "disk" or (self.kind == "auto" and short):
            self.where = "on the disk"
            return on_disk(shape, dtype, size)
        return torch.empty(shape, dtype=dtype, device=device)


def on_disk(shape: tuple[int, ...], dtype: torch.dtype, size: int) -> torch.Tensor:
    """A tensor in a file of the folder for temporary files, which is gone with the process however that ends.

    Raises:
        InputError: the disk has no room for it.
    """
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if size > room:
        raise InputError(
            f"Transfer.cache: {size / 2**30:.3g} GiB of features do not fit into {tempfile.gettempdir()}, which has "
            f"{room / 2**30:.3g} GiB: set TMPDIR to a larger disk, or cache='off'"
        )
    try:
        with tempfile.NamedTemporaryFile(prefix="heptane-") as file:
            return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"Transfer.cache: no features in {tempfile.gettempdir()} ({one_line(error)}): set TMPDIR"
        ) from error


def _within(model: torch.nn.Module, layer: str | None, cut: Cut) -> bool:
    """Whether hidden features are blended after the cut."""
    return layer is not None and any(module is model.get_submodule(layer) for m in cut.tail for module in m.modules())


def _reproduces(cut: Cut, came: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the tail makes the model's output of what came to the cut."""
    tail = torch.nn.Sequential(*cut.tail)
    with eval_mode(tail), torch.no_grad():
        again = tail(came)
    return again.shape == output.shape and bool((again - output).abs().max() <= CLOSE * output.abs().max())


def _is_constant(model: torch.nn.Module, cut: Cut, sample: Any) -> bool:
    """Whether what comes to the cut is the same in training as in evaluation, whatever is drawn."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        with eval_mode(model):
            still = reach(model, cut, sample)
        for seed in (0, 1):
            torch.manual_seed(seed)
            if not torch.allclose(reach(model, cut, sample), still, rtol=CLOSE, atol=CLOSE * float(still.abs().max())):
                return False
    return True
