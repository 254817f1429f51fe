"""Find where a model can be split, so that its frozen part is computed once and only the *tail* after it trains.

The tail is a chain of modules up to the output; between two of them a tensor may be reshaped, as by ``torch.flatten``. A
split is verified on a few samples, in eval and in train mode: the features at the split must be the same in both and must
not depend on what trains, and the tail must turn them into the model's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import torch

from heptane.base.randomness import manual_seed
from heptane.base.tree import copy_rows, first_tensor, tree_copy
from heptane.core.precision.step import Precision
from heptane.data.batches import BatchTransform
from heptane.distributed.workers import Worker
from heptane.model.forward import call
from heptane.model.modes import eval_mode
from heptane.model.probe import eval_output
from heptane.model.snapshot import preserved_model

TOLERANCE = 1e-4  # of the tail's output, relative to the largest output


class Call(NamedTuple):
    """One recorded call of a module."""

    module: torch.nn.Module
    call_index: int
    """among the calls of this module, from 0"""
    start: int
    end: int
    input: torch.Tensor | None
    """the single tensor argument; None for any other arguments"""
    kwargs: dict[str, Any]
    """keyword arguments, none of them tensors"""
    output: Any


class SplitPoint(NamedTuple):
    """A split before one call of a module; ``tail`` are the modules from there to the output."""

    module: torch.nn.Module
    call_index: int
    """of the call, among those of this module"""
    tail: list[torch.nn.Module]
    dtype: torch.dtype
    """of the features"""


class CastCopy(torch.nn.Module):
    """Copies cached features in their original dtype; the copy protects the cache from a tail that works in place."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.to(self.dtype, copy=True)


class CallWithKwargs(torch.nn.Module):
    """Calls a module with the keyword arguments that the model passes to it."""

    def __init__(self, module: torch.nn.Module, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.kwargs = module, kwargs

    def forward(self, features: torch.Tensor) -> Any:
        return self.module(features, **self.kwargs)


class Reshape(torch.nn.Module):
    """Reshapes each sample."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.reshape(len(features), *self.shape)


class _Reached(Exception):
    """Ends a forward pass at the split, with the features there."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features


def find_split(model: torch.nn.Module, sample: Any) -> SplitPoint | str:
    """The split with the shortest tail that contains everything that trains or is random; or the reason why there is none.

    ``model`` has its modes and frozen parameters as in training; its buffers and the random state are restored.
    """
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    if not frozen:
        return "nothing is frozen"
    with preserved_model(model), record_calls(model) as calls:
        output = eval_output(model, sample)
    if not isinstance(output, torch.Tensor):
        return "the model's output is not one tensor"
    chain = call_chain(output, calls, frozen)
    reason = "what trains does not follow the frozen part in one chain of modules"
    for length in range(1, len(chain) + 1):
        tail = list(_links(chain[-length:], output))
        if not trains <= {id(p) for module in tail for p in module.parameters()}:
            continue
        first = chain[-length]
        assert first.input is not None
        split = SplitPoint(first.module, first.call_index, tail, first.input.dtype)
        reason = objection(model, split, sample)
        if not reason:
            return split
    return reason


@contextmanager
def record_calls(model: torch.nn.Module) -> Iterator[list[Call]]:
    """Record the calls of ``model``'s modules inside the context, in the order in which they end."""
    calls: list[Call] = []
    started: list[tuple[int, torch.Tensor | None, dict[str, Any]]] = []
    clock = iter(range(1 << 62))

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        plain = all(isinstance(value, bool | int | float | str | None) for value in kwargs.values())
        single = len(args) == 1 and _is_regular(args[0]) and plain
        started.append((next(clock), args[0] if single else None, kwargs))

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        start, given, kwargs = started.pop()
        index = sum(c.module is module for c in calls)
        calls.append(Call(module, index, start, next(clock), given, kwargs, output))

    hooks = []
    for module in model.modules():
        if module is not model:
            hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def call_chain(output: torch.Tensor, calls: list[Call], frozen: set[int]) -> list[Call]:
    """The longest chain of calls up to ``output``, each on the output of the one before, without frozen parameters.

    Where several modules return the same tensor, the outermost is used.
    """
    chain: list[Call] = []
    tensor, until = output, math.inf
    while True:
        fitting = [
            c
            for c in calls
            if _is_same(c.output, tensor) and c.end < until and c.input is not None
            and not frozen & {id(p) for p in c.module.parameters()}
        ]  # fmt: skip
        if not fitting:
            return chain[::-1]
        last = max(fitting, key=lambda c: c.end)
        chain.append(last)
        tensor, until = last.input, last.start  # type: ignore[assignment]


def _is_regular(value: Any) -> bool:
    """Whether it is a tensor and not nested; PyTorch's encoder uses nested tensors internally in eval mode."""
    return isinstance(value, torch.Tensor) and not value.is_nested


def _is_same(output: Any, given: torch.Tensor) -> bool:
    """Whether the input of a call is the output of another, possibly reshaped."""
    if output is given or not _is_regular(output):
        return output is given
    place = (given.data_ptr(), given.dtype, given.numel(), given.shape[:1])
    shared = place == (output.data_ptr(), output.dtype, output.numel(), output.shape[:1])
    return shared and given.numel() > 0 and given.is_contiguous() and output.is_contiguous()


def _links(chain: list[Call], output: torch.Tensor) -> Iterator[torch.nn.Module]:
    """The modules of a chain up to ``output``, with reshapes between them."""
    for link, follows in zip(chain, [*(c.input for c in chain[1:]), output], strict=True):
        yield CallWithKwargs(link.module, link.kwargs) if link.kwargs else link.module
        if link.output is not follows and follows is not None:
            yield Reshape(follows.shape[1:])


def frozen_outputs(
    model: torch.nn.Module,
    split: SplitPoint,
    inputs: Any,
    batch_size: int,
    place: BatchTransform,
    precision: Precision,
    worker: Worker,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The features of this worker's share of ``inputs``, batch by batch."""
    share = worker.share(len(first_tensor(inputs)))
    with eval_mode(model), torch.no_grad(), precision.autocast():
        for start in range(share.start, share.stop, batch_size):
            at = slice(start, min(start + batch_size, share.stop))
            yield at, features_at(model, split, place.inputs(copy_rows(inputs, at)))


def features_at(model: torch.nn.Module, split: SplitPoint, inputs: Any) -> torch.Tensor:
    """The features at the split, where the forward pass is ended."""

    def stop(features: torch.Tensor) -> None:
        raise _Reached(features)

    try:
        with hook_at(split, stop):
            call(model, inputs)
    except _Reached as reached:
        return reached.features
    raise AssertionError("the model did not reach its split")


@contextmanager
def hook_at(split: SplitPoint, hook: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Inside the context, a forward pass calls ``hook`` with the features at the split."""
    calls = count()

    def before(_: Any, args: Any) -> None:
        if next(calls) == split.call_index:
            hook(args[0])

    handle = split.module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def objection(model: torch.nn.Module, split: SplitPoint, sample: Any) -> str:
    """Why training must not start from the features at the split; empty if it may."""
    with eval_mode(model), torch.enable_grad():
        expected, follows = _try_tail(model, split, sample, seed=0)
    if expected is None or expected.requires_grad:
        return "what trains is also used before the frozen part ends, as weights that an embedding shares with the head"
    for seed in (0, 1):
        features, tail_matches = _try_tail(model, split, sample, seed)
        if not _is_close(features, expected):
            return "the frozen part is random, or differs between training and evaluation"
        follows = follows and tail_matches
    if not _is_close(_second_features(model, split, sample), expected):
        return "the frozen part keeps state from one batch to the next"
    return "" if follows else "the model does something after the frozen part that is not in a module"


def _try_tail(model: torch.nn.Module, split: SplitPoint, sample: Any, seed: int) -> tuple[torch.Tensor | None, bool]:
    """The features at the split, if it is reached; and whether the tail turns them into the model's output."""
    found: torch.Tensor | None = None

    def keep(features: torch.Tensor) -> None:
        nonlocal found
        found = features.clone()
        manual_seed(seed)

    with preserved_model(model), hook_at(split, keep):
        manual_seed(seed)
        output = call(model, tree_copy(sample))
    if found is None:
        return None, False
    with preserved_model(model):
        manual_seed(seed)
        return found, _is_close(torch.nn.Sequential(*split.tail)(found.clone()), output)


def _second_features(model: torch.nn.Module, split: SplitPoint, sample: Any) -> torch.Tensor | None:
    """The features at the split in the second of two forward passes in a row."""
    found: list[torch.Tensor] = []
    with preserved_model(model), torch.no_grad():
        for _ in range(2):
            with hook_at(split, lambda features: found.append(features.clone())):
                call(model, tree_copy(sample))  # copies: a model may work in place
    return found[-1] if found else None


@torch.no_grad()
def _is_close(found: Any, expected: Any) -> bool:
    if not isinstance(found, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return False
    alike = (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return alike and torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()))
