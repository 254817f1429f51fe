"""All randomness is a function of (seed, purpose, step): nothing is accumulated, so any step can be drawn again."""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from heptane.base.lazy import np, torch

T = TypeVar("T")


def generator(seed: int, purpose: str, step: int) -> np.random.Generator:
    """A NumPy generator for one purpose at one step (or epoch); the same on every worker and after a resume."""
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), step))


def epoch_seed(seed: int, epoch: int) -> int:
    """What PyTorch's global generator is seeded with before a loader's pass ``epoch``: no other seed's pass has the same."""
    return int(generator(seed, "epoch", epoch).integers(1 << 63))


def seed_torch(seed: int, step: int, rank: int = 0) -> None:
    """Seed PyTorch's own generators (dropout and the like) for one step of one worker, in about a microsecond."""
    value = ((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 63)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """PyTorch's, Python's and NumPy's global generators at ``value``, and at the end as they were."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value % (1 << 32))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def preserved_rng(*, torch_only: bool = False) -> Iterator[None]:
    """Give the caller's global generators back as they were: PyTorch's (CPU and CUDA), Python's and NumPy's.

    heptane seeds them for each step, so without this two models built around a run would begin with the same weights.

    Args:
        torch_only: leave Python's and NumPy's alone, for a stretch in which only PyTorch's is seeded.

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


def apart(events: Iterator[T], *, torch_only: bool = False) -> Iterator[T]:
    """``events``, and between two of them the caller's own generators: see :func:`preserved_rng`."""
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
