"""Clocks: wall time since the start, training time, and CPU time.

The training clock starts at assembly, so it includes compiling, tuning and computing frozen features. It is paused while
the caller of the loop has control, so it excludes evaluation, logging and checkpoints. One-time costs of a process or a
machine count on the wall clock only: imports, thread pools, and the comparison of precisions, which the machine caches.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch


@dataclass
class Clock:
    """Three clocks, in seconds. ``started`` is a ``time.time()``; None means now. A resumed run adds its earlier time."""

    started: float | None = None
    train: float = 0.0
    earlier_wall: float = 0.0
    earlier_cpu: float = 0.0
    _since: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.started = time.time() if self.started is None else self.started
        self._cpu_before = _cpu_seconds()

    def resume(self) -> None:
        """Start the training clock."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop the training clock."""
        if self._since is not None:
            self.train += time.perf_counter() - self._since
            self._since = None

    def carry(self, earlier: dict[str, float]) -> None:
        """Add what :meth:`read` returned in an earlier process of this run; time between processes does not count."""
        self.train += earlier["train"]
        self.earlier_wall += earlier["wall"]
        self.earlier_cpu += earlier["cpu"]

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far."""
        return self.train + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def read(self) -> dict[str, float]:
        """``wall``, ``train`` and ``cpu`` (this process and its finished children), in seconds."""
        assert self.started is not None
        return {
            "wall": self.earlier_wall + time.time() - self.started,
            "train": self.train_seconds,
            "cpu": self.earlier_cpu + _cpu_seconds() - self._cpu_before,
        }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def process_start() -> float:
    """When this process started, as a ``time.time()``; now if the system cannot tell."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rsplit(")", 1)[1].split()[19])
        with open("/proc/uptime") as file:
            uptime = float(file.read().split()[0])
        now = time.time()
        # In some containers the uptime is the container's but the start is relative to the host's: min() limits the error.
        return min(now, now - uptime + ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time()


def median_seconds(function: Callable[[], Any], *, repeats: int) -> float:
    """Median time of ``repeats`` calls after one warm-up call; synchronises with the GPU."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def parse_duration(name: str, text: str) -> float:
    """Parse a duration such as ``90``, ``90s``, ``20m`` or ``1.5h`` into seconds.

    Raises:
        InputError: ``text`` is not a duration above 0.

    Example:
        >>> parse_duration("budget", "20m")
        1200.0
    """
    found = re.fullmatch(r"([\d.]+)\s*(s|m|min|h)?", text.strip())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:  # such as 1.2.3
        number = 0.0
    if not found or not 0 < number < 1e9:
        raise InputError(f"{name}={text!r}: expected a duration above 0, such as 90s, 20m or 1.5h")
    return number * {"s": 1, "m": 60, "min": 60, "h": 3600}[found[2] or "s"]
