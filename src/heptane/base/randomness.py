"""Randomness as a function of (seed, purpose, step): any step's draws can be repeated."""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from heptane.base.lazy import np, torch

T = TypeVar("T")


def generator(seed: int, purpose: str, step: int) -> np.random.Generator:
    """Return a NumPy generator for one purpose at one step (or epoch), the same on every worker and after a resume."""
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), step))


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of PyTorch's global generator before a DataLoader's epoch; unique to (seed, epoch)."""
    return int(generator(seed, "epoch", epoch).integers(1 << 63))


def seed_torch(seed: int, step: int, rank: int = 0) -> None:
    """Seed PyTorch's global generators (for dropout and the like) for one step of one worker."""
    value = ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)


def manual_seed(value: int) -> None:
    """``torch.manual_seed``, which formats a stack trace for each kind of device, also where there is none."""
    if torch.accelerator.is_available():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def seed_all(value: int) -> None:
    """Seed the global generators of PyTorch, Python and NumPy."""
    manual_seed(value)
    random.seed(value)
    np.random.seed(value % (1 << 32))


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Seed the global generators of PyTorch, Python and NumPy inside; restore their states at the end."""
    with preserved_rng():
        seed_all(value)
        yield


@contextmanager
def preserved_rng(*, torch_only: bool = False) -> Iterator[None]:
    """Restore the global generators of PyTorch (CPU and CUDA), Python and NumPy at the end.

    heptane seeds them for each step; without this, models built before and after a run could get the same weights.

    Args:
        torch_only: restore PyTorch's only.

    Example:
        >>> before = torch.get_rng_state()
        >>> with preserved_rng():
        ...     seed_torch(0, step=3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    on_cpu = torch.default_generator.get_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    others = None if torch_only else (random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        torch.default_generator.set_state(on_cpu)
        for index, state in enumerate(on_gpus):
            torch.cuda.set_rng_state(state, index)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])


def isolated_rng(events: Iterator[T], *, torch_only: bool = False) -> Iterator[T]:
    """Yield ``events``; between two of them the caller has their own random states: see :func:`preserved_rng`."""
    try:
        while True:
            with preserved_rng(torch_only=torch_only):
                event = next(events, None)
            if event is None:
                return
            yield event
    finally:
        if isinstance(events, Generator):
            with preserved_rng():
                events.close()
