"""A short contest between forms of one computation, in turn, on few samples, each out as soon as it cannot win.

On a CPU the measure is the processor time of one thread: how much of the machine others use hardly changes it, and the order
of the variants by it is the order by the time of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from heptane.base.errors import one_line
from heptane.base.lazy import torch

BUDGET_SECONDS, BUDGET_SHARE = 1.0, 0.02  # the whole contest, and of the planned training, whichever is more
WORTH = 0.9  # a variant is taken when its step takes at most this share of the plain one's: above that it is noise
ALIKE = 0.95  # of two that are faster, the first, unless the other takes at most this share of its time
CLEAR = 0.8  # when all that are left are below this, it is decided
ROUNDS, LEAST_ROUNDS = 7, 3
FAR, NEAR_ROUNDS = 1.25, 4  # far behind, one is out after two rounds; else after four
FIRST_ROWS, STEP_SECONDS = 2, 0.02  # samples at first; as many as take so long then
SAFE = 0.5  # a batch takes at least this share of what its samples take in a small one


class TooSlow(BaseException):  # not an Exception: the user's model may catch these
    """The time of the contest is over."""


class TimedSteps(Protocol):
    """What is compared."""

    def step(self, variant: Any, rows: int) -> None:
        """One step of a variant on so many samples."""

    def watched(self, over: Callable[[], bool]) -> Any:
        """A context in which a step ends in :class:`TooSlow` once the time is over."""


@dataclass
class Comparison:
    """What a contest came to."""

    seconds: dict[Any, list[float]] = field(default_factory=dict)
    """per round, of those that ran"""
    failed: dict[Any, str] = field(default_factory=dict)
    """those that raised an error, and which"""
    slow: set[Any] = field(default_factory=set)
    """those that did not end in time"""
    rows: int = 0
    """samples in a step"""
    wall: float = 0.0

    def ratio(self, variant: Any, plain: Any) -> float:
        """Its time as a share of the plain one's: of the least times, or of the second least, whichever is more.

        What disturbs a step makes it longer, never shorter, so the least of several in turn are the quiet ones.
        """
        own, other = sorted(self.seconds.get(variant, [])), sorted(self.seconds.get(plain, []))
        return max((a / b for a, b in zip(own[:2], other[:2], strict=False)), default=float("inf"))


now = time.perf_counter


def run_queue_seconds() -> float:
    """Seconds that this thread could have run in, and others had the processor; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def compare(
    contest: TimedSteps, variants: list[Any], *, batch: int, planned_samples: float, device: torch.device
) -> Comparison:
    """Time the variants, the first of which is the plain one.

    Args:
        contest: how a step is made.
        variants: two or more.
        batch: samples in a step of training, of which no more are used.
        planned_samples: that the training is going to take, over all epochs.
        device: where it runs.
    """
    began, waited_before, outcome = now(), run_queue_seconds(), Comparison()
    with single_thread(device):
        clock = _cpu_clock if device.type == "cpu" else _device_clock
        _Comparison(contest, variants, batch, planned_samples, device, clock, outcome, began, waited_before).run()
    outcome.wall = now() - began
    return outcome


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Compute on one thread of the CPU, whose time can be read."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cpu_clock() -> float:
    return time.thread_time()


def _device_clock() -> float:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


def fastest(outcome: Comparison, variants: list[Any]) -> Any:
    """The variant to take: the plain one, the first, unless another is clearly faster, or it does not run at all."""
    plain = variants[0]
    ran = [v for v in variants if outcome.seconds.get(v)]
    if plain in outcome.failed and ran:
        return min(ran, key=lambda v: min(outcome.seconds[v]))
    best = plain
    for variant in ran:
        enough = WORTH if len(outcome.seconds[variant]) > 1 else CLEAR
        if variant == plain or outcome.ratio(variant, plain) > enough:
            continue
        if best == plain or min(outcome.seconds[variant]) <= ALIKE * min(outcome.seconds[best]):
            best = variant
    return best


@dataclass
class _Comparison:
    contest: TimedSteps
    variants: list[Any]
    batch: int
    planned_samples: float
    device: torch.device
    clock: Callable[[], float]
    outcome: Comparison
    began: float
    waited_before: float
    budget: float = BUDGET_SECONDS
    warm_rows: int = 0
    took: dict[Hashable, float] = field(default_factory=dict)

    def run(self) -> None:
        rows = self._rows()
        if not rows:
            return
        self.outcome.rows = rows
        warm = {self.variants[0]} if self.warm_rows == rows else set()
        alive = [v for v in self.variants if v in warm or self._warm_up(v, rows)]
        if self.variants[0] not in alive and alive and self.variants[0] not in self.outcome.failed:
            return  # no time was left for it
        for number in range(ROUNDS):
            for variant in alive if number % 2 == 0 else alive[::-1]:
                if not self._timed(variant, rows):
                    return
            alive = self._left(alive, number + 1)
            if len(alive) < 2:
                return

    def _rows(self) -> int:
        """How many samples a step is measured on; 0 where the time is over."""
        plain, rows = self.variants[0], min(FIRST_ROWS, self.batch)
        if not self._warm_up(plain, rows):
            if plain in self.outcome.failed and rows < self.batch:  # it may need a whole batch
                self.outcome.failed.clear()
                return self.batch
            return 0 if plain not in self.outcome.failed else rows
        self.budget = max(BUDGET_SECONDS, BUDGET_SHARE * SAFE * self.planned_samples / rows * self.took[plain])
        if self._spent() + self.took[plain] > self.budget:
            return 0
        first, self.warm_rows = self._once(plain, rows), rows
        self.budget = max(BUDGET_SECONDS, BUDGET_SHARE * SAFE * self.planned_samples / rows * self.took[plain])
        if self.device.type != "cpu":
            return self.batch  # what a GPU does with few samples says little
        return max(rows, min(self.batch, int(rows * STEP_SECONDS / max(first, 1e-6))))

    def _spent(self) -> float:
        """Seconds of the budget: on a busy machine not those in which others had the processor, up to half of all."""
        wall = now() - self.began
        return max(wall - (run_queue_seconds() - self.waited_before), wall / 2)

    def _over(self) -> bool:
        return self._spent() > self.budget

    def _warm_up(self, variant: Any, rows: int) -> bool:
        """The first step of a variant, which is not counted; whether it can be timed."""
        start = self._spent()
        try:
            with self.contest.watched(self._over):
                self.contest.step(variant, rows)
        except TooSlow:
            self.outcome.slow.add(variant)
            return False
        except Exception as error:
            self.outcome.failed[variant] = one_line(error)
            return False
        self.took[variant] = self._spent() - start
        return True

    def _once(self, variant: Any, rows: int) -> float:
        spent, start = self._spent(), self.clock()
        self.contest.step(variant, rows)
        taken = self.clock() - start
        self.took[variant] = self._spent() - spent
        return taken

    def _timed(self, variant: Any, rows: int) -> bool:
        if self._spent() + self.took.get(variant, 0.0) > self.budget:
            return False
        self.outcome.seconds.setdefault(variant, []).append(self._once(variant, rows))
        return True

    def _left(self, alive: list[Any], rounds: int) -> list[Any]:
        """Those that may still win."""
        plain = self.variants[0]
        if rounds < 2 or plain not in alive:
            return alive
        ratios = {v: self.outcome.ratio(v, plain) for v in alive if v != plain}
        least = {v: min(self.outcome.seconds[v]) / min(self.outcome.seconds[plain]) for v in ratios}
        beaten = {v for v in ratios if least[v] > FAR or (rounds >= NEAR_ROUNDS and least[v] > WORTH and ratios[v] > 1)}
        if all(v in beaten or (rounds >= LEAST_ROUNDS and ratios[v] <= CLEAR) for v in ratios):
            return []
        return [v for v in alive if v not in beaten]
