"""Where a model can be cut, so that what comes before is computed once and the *tail* after it trains.

The tail is a chain, from one module to the next up to the output; between two a tensor may get another shape, as by
``torch.flatten``. Whether the cut is right is not assumed but tried on a few samples, in evaluation and in training: what
comes to the cut must be the same and depend on nothing that trains, and the tail must make of it what the model makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import torch

from heptane.base.tree import copy_rows, first_tensor, tree_copy
from heptane.core.precision.step import Precision
from heptane.data.batches import BatchTransform
from heptane.distributed.workers import Worker
from heptane.model.forward import call
from heptane.model.modes import eval_mode
from heptane.model.probe import eval_output
from heptane.model.snapshot import preserved_model

CLOSE = 1e-4  # of the largest output: what the tail may differ by


class Call(NamedTuple):
    """One call of a module: from when to when, and from which tensor to which."""

    module: torch.nn.Module
    number: int
    """of this module's calls, from 0"""
    began: int
    ended: int
    came: torch.Tensor | None
    """its one tensor, or None where it has another kind or number of arguments"""
    settings: dict[str, Any]
    """its keyword arguments, none a tensor"""
    went: Any


class SplitPoint(NamedTuple):
    """Where a model is cut: before this call of this module; ``tail`` is what follows, one after another."""

    module: torch.nn.Module
    number: int
    tail: list[torch.nn.Module]
    dtype: torch.dtype
    """of what comes there"""


class CastCopy(torch.nn.Module):
    """A copy of what was kept, in the bits that it had: a tail may change it in place."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.to(self.dtype, copy=True)


class CallWithKwargs(torch.nn.Module):
    """A module that the model calls with these settings."""

    def __init__(self, module: torch.nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.settings = module, settings

    def forward(self, features: torch.Tensor) -> Any:
        return self.module(features, **self.settings)


class Reshape(torch.nn.Module):
    """Samples in another shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.reshape(len(features), *self.shape)


class _Reached(Exception):
    """The forward pass came to the cut, with these features."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features


def find_split(model: torch.nn.Module, sample: Any) -> SplitPoint | str:
    """Where ``model`` may be cut: the shortest tail that holds all that trains and all that is random; or why nowhere.

    Its modes and the gradients that are stopped are as in training; its buffers and the random state are put back.
    """
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    if all(p.requires_grad for p in model.parameters()):
        return "nothing is frozen"
    with preserved_model(model), record_calls(model) as calls:
        output = eval_output(model, sample)
    if not isinstance(output, torch.Tensor):
        return "the model's output is not one tensor"
    chain = call_chain(output, calls, trains, {id(p) for p in model.parameters() if not p.requires_grad})
    reason = "what trains does not follow the frozen part in one chain of modules"
    for length in range(1, len(chain) + 1):
        tail = list(_links(chain[-length:], output))
        if not trains <= {id(p) for module in tail for p in module.parameters()}:
            continue
        came = chain[-length].came
        assert came is not None
        cut = SplitPoint(chain[-length].module, chain[-length].number, tail, came.dtype)
        reason = objection(model, cut, sample)
        if not reason:
            return cut
    return reason


@contextmanager
def record_calls(model: torch.nn.Module) -> Iterator[list[Call]]:
    """Calls of ``model``'s modules while it lasts, in the order in which they end."""
    calls: list[Call] = []
    begun: list[tuple[int, torch.Tensor | None, dict[str, Any]]] = []
    clock = iter(range(1 << 62))

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        settled = all(isinstance(value, bool | int | float | str | None) for value in kwargs.values())
        alone = len(args) == 1 and _is_regular(args[0]) and settled
        begun.append((next(clock), args[0] if alone else None, kwargs))

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        began, came, settings = begun.pop()
        number = sum(c.module is module for c in calls)
        calls.append(Call(module, number, began, next(clock), came, settings, output))

    hooks = []
    for module in model.modules():
        if module is not model:
            hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def call_chain(output: torch.Tensor, calls: list[Call], trains: set[int], frozen: set[int]) -> list[Call]:
    """The calls that lead to ``output``, each from what the one before it gave, none with a frozen parameter; the outermost
    module, where several give the same."""
    chain: list[Call] = []
    tensor, until = output, math.inf
    while True:
        fitting = [
            c
            for c in calls
            if _is_same(c.went, tensor) and c.ended < until and c.came is not None
            and not frozen & {id(p) for p in c.module.parameters()}
        ]  # fmt: skip
        if not fitting:
            return chain[::-1]
        last = max(fitting, key=lambda c: c.ended)
        chain.append(last)
        tensor, until = last.came, last.began  # type: ignore[assignment]


def _is_regular(value: Any) -> bool:
    """Whether it is a tensor whose samples have one shape: not a nested one, as inside of PyTorch's encoder in eval mode."""
    return isinstance(value, torch.Tensor) and not value.is_nested


def _is_same(went: Any, came: torch.Tensor) -> bool:
    """Whether what a module gave is what came to the next, if in another shape."""
    if went is came or not _is_regular(went):
        return went is came
    place = (came.data_ptr(), came.dtype, came.numel(), came.shape[:1])
    shared = place == (went.data_ptr(), went.dtype, went.numel(), went.shape[:1])
    return shared and came.numel() > 0 and came.is_contiguous() and went.is_contiguous()


def _links(chain: list[Call], output: torch.Tensor) -> Iterator[torch.nn.Module]:
    """The modules of a chain up to ``output``, with what is between them."""
    for link, follows in zip(chain, [*(c.came for c in chain[1:]), output], strict=True):
        yield CallWithKwargs(link.module, link.settings) if link.settings else link.module
        if link.went is not follows and follows is not None:
            yield Reshape(follows.shape[1:])


def frozen_outputs(
    model: torch.nn.Module,
    cut: SplitPoint,
    inputs: Any,
    batch_size: int,
    place: BatchTransform,
    precision: Precision,
    worker: Worker,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """This worker's part of the features, batch by batch."""
    share = worker.share(len(first_tensor(inputs)))
    with eval_mode(model), torch.no_grad(), precision.autocast():
        for start in range(share.start, share.stop, batch_size):
            at = slice(start, min(start + batch_size, share.stop))
            yield at, features_at(model, cut, place.inputs(copy_rows(inputs, at)))


def features_at(model: torch.nn.Module, cut: SplitPoint, inputs: Any) -> torch.Tensor:
    """What comes to the cut; the forward pass ends there."""

    def stop(features: torch.Tensor) -> None:
        raise _Reached(features)

    try:
        with hook_at(cut, stop):
            call(model, inputs)
    except _Reached as reached:
        return reached.features
    raise AssertionError("the model did not come to its cut")


@contextmanager
def hook_at(cut: SplitPoint, do: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """While it lasts, a forward pass that comes to the cut calls ``do`` with what comes there."""
    number = count()

    def hook(_: Any, args: Any) -> None:
        if next(number) == cut.number:
            do(args[0])

    handle = cut.module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def objection(model: torch.nn.Module, cut: SplitPoint, sample: Any) -> str:
    """Why training may not go on from what comes to the cut; empty: it may."""
    with eval_mode(model), torch.enable_grad():
        still, follows = _tried(model, cut, sample, seed=0)
    if still is None or still.requires_grad:
        return "what trains is used before the frozen part ends too, as weights that an embedding shares with the head"
    for seed in (0, 1):
        came, does = _tried(model, cut, sample, seed)
        if not _is_close(came, still):
            return "what the frozen part gives is random, or not the same in training as in evaluation"
        follows = follows and does
    if not _is_close(_second(model, cut, sample), still):
        return "the frozen part keeps something from one batch to the next"
    return "" if follows else "what follows the frozen part does something that is in no module"


def _tried(model: torch.nn.Module, cut: SplitPoint, sample: Any, seed: int) -> tuple[torch.Tensor | None, bool]:
    """What comes to the cut, if the model comes there, and whether the tail makes of it what the model makes with the same
    draws."""
    came: torch.Tensor | None = None

    def keep(features: torch.Tensor) -> None:
        nonlocal came
        came = features.clone()
        torch.manual_seed(seed)

    with preserved_model(model), hook_at(cut, keep):
        torch.manual_seed(seed)
        output = call(model, tree_copy(sample))
    if came is None:
        return None, False
    with preserved_model(model):
        torch.manual_seed(seed)
        return came, _is_close(torch.nn.Sequential(*cut.tail)(came.clone()), output)


def _second(model: torch.nn.Module, cut: SplitPoint, sample: Any) -> torch.Tensor | None:
    """What comes to the cut when the model is called for the second time in a row."""
    came: list[torch.Tensor] = []
    with preserved_model(model), torch.no_grad():
        for _ in range(2):
            with hook_at(cut, lambda features: came.append(features.clone())):
                call(model, sample)
    return came[-1] if came else None


@torch.no_grad()
def _is_close(found: Any, expected: Any) -> bool:
    if not isinstance(found, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return False
    alike = (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return alike and torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE * float(expected.abs().max()))
