"""Measurements made before training, on copies: they leave no mark on the model, its statistics or the random state."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from heptane._lazy import torch
from heptane.criterion import Criterion, output_of
from heptane.errors import InputError
from heptane.tricks.mixed_precision import MixedPrecision
from heptane.weights.clean import without_compiled

NOTHING_PAYS = "no other variant pays here"
WORTH = 0.95  # a variant is taken when its step takes at most this share of the plain one's: below that it is noise


def median_seconds(function: Callable[[], Any], *, repeats: int) -> float:
    """The median time of ``repeats`` calls after one that is not counted; waits for the GPU where there is one."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def choose_precision(
    trick: MixedPrecision,
    model: torch.nn.Module,
    criterion: Criterion,
    inputs: Any,
    targets: Any,
    *,
    repeats: int = 3,
) -> tuple[str, bool, str]:
    """Decide dtype and memory format, by measuring where they are "auto".

    Args:
        trick: what was asked for.
        model: the model; only a copy of it is run.
        criterion: the loss.
        inputs, targets: one batch, on the model's device.
        repeats: timed steps per variant.

    Returns:
        ``(dtype, channels_last, why)``; ``why`` is a sentence with the figures.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    convolves = any(isinstance(m, torch.nn.Conv2d) for m in model.modules())
    formats = {"on": [True], "off": [False], "auto": [False, True] if convolves else [False]}[trick.channels_last]
    dtypes = [trick.dtype] if trick.dtype != "auto" else ["fp32", "bf16"]
    if trick.dtype == "auto" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        dtypes = ["fp32", "fp16"]
    for dtype in dtypes:
        trick.build(dtype, device.type)  # refuses what cannot run here, before anything is timed
    variants = [(dtype, last) for dtype in dtypes for last in formats]
    if len(variants) == 1:
        return (*variants[0], f"{_label(*variants[0])}: asked for")
    with _random_state_kept(device):
        seconds = {v: _step_seconds(trick, model, criterion, inputs, targets, v, repeats) for v in variants}
    plain = variants[0]
    best = min(seconds, key=lambda variant: seconds[variant])
    if seconds[best] > WORTH * seconds[plain]:
        best = plain
    figures = ", ".join(f"{_label(*v)} {1000 * s:.3g} ms" for v, s in seconds.items())
    verdict = NOTHING_PAYS if best == plain else "the fastest here"
    return (*best, f"{_label(*best)}: {verdict}, by the time of a step ({figures})")


def _step_seconds(
    trick: MixedPrecision,
    model: torch.nn.Module,
    criterion: Criterion,
    inputs: Any,
    targets: Any,
    variant: tuple[str, bool],
    repeats: int,
) -> float:
    dtype, channels_last = variant
    trial = _copy(model, "to measure it, with MixedPrecision 'auto': name dtype and channels_last").train()
    if channels_last:
        trial = trial.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = to_channels_last(inputs)
    slot = trick.build(dtype, next((p.device.type for p in trial.parameters()), "cpu"))

    def step() -> None:
        trial.zero_grad(set_to_none=True)
        with slot.autocast():
            output = output_of(criterion, trial, inputs, targets)
        slot.backward(criterion.mean(slot.full(output), targets))

    return median_seconds(step, repeats=repeats)


def to_channels_last(inputs: Any) -> Any:
    """Images (N, C, H, W) stored channels last; anything else as it is."""
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def unused_parameters(model: torch.nn.Module, criterion: Criterion, inputs: Any, targets: Any) -> list[str]:
    """Names of trainable parameters that one step gives no gradient, seen on a copy."""
    trial = _copy(model, "to look for parameters without a gradient: train with one worker").eval()
    for module in trial.modules():
        if isinstance(module, torch.nn.RNNBase):  # cuDNN has no backward in eval mode
            module.train()
    with _random_state_kept(next((p.device for p in trial.parameters()), torch.device("cpu"))):
        criterion.mean(output_of(criterion, trial, inputs, targets), targets).backward()  # type: ignore[no-untyped-call]
    return [without_compiled(name) for name, p in trial.named_parameters() if p.requires_grad and p.grad is None]


def _copy(model: torch.nn.Module, purpose: str) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(f"the model cannot be copied ({error}), which is needed {purpose}") from error


def _random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _label(dtype: str, channels_last: bool) -> str:
    return f"{dtype} channels last" if channels_last else dtype
