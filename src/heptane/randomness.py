"""All randomness is a function of (seed, purpose, step): nothing is accumulated, so any step can be drawn again."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from heptane._lazy import np, torch


def generator(seed: int, purpose: str, step: int) -> np.random.Generator:
    """A NumPy generator for one purpose at one step (or epoch); the same on every worker and after a resume."""
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), step))


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
