"""Time variants of one computation against each other: in turn, on few samples, dropping each once it cannot win.

On a CPU the measure is the processor time of one thread. It hardly depends on the load of the machine, and it ranks the
variants as the time of a step does.
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

BUDGET_SECONDS, BUDGET_SHARE = 1.0, 0.02  # of the whole comparison: seconds, or a share of the training, whichever is more
WORTH = 0.9  # a variant is chosen if its step takes at most this share of the baseline; less may be noise
ALIKE = 0.95  # a later variant replaces an earlier one if it takes at most this share of its time
CLEAR = 0.8  # the comparison ends early once all remaining variants are below this share
ROUNDS, LEAST_ROUNDS = 7, 3
FAR, NEAR_ROUNDS = 1.25, 4  # a variant this much slower is dropped after two rounds, another losing one after four
FIRST_ROWS, STEP_SECONDS = 2, 0.02  # samples of the first step; later steps are sized to take this long
SAFE = 0.5  # lower bound of the time per sample in a full batch, relative to a small one


class TooSlow(BaseException):  # not an Exception, which the user's model may catch
    """The time budget is used up."""


class TimedSteps(Protocol):
    """The computation whose variants are compared."""

    def step(self, variant: Any, rows: int) -> None:
        """Run one step of a variant on ``rows`` samples."""

    def watched(self, over: Callable[[], bool]) -> Any:
        """A context in which a step raises :class:`TooSlow` once ``over()`` is true."""


@dataclass
class Comparison:
    """The result of a comparison."""

    seconds: dict[Any, list[float]] = field(default_factory=dict)
    """per variant that ran, the time of each round"""
    failed: dict[Any, str] = field(default_factory=dict)
    """per variant that raised, the error"""
    slow: set[Any] = field(default_factory=set)
    """variants stopped by the time budget"""
    rows: int = 0
    """samples in a step"""
    wall: float = 0.0

    def ratio(self, variant: Any, baseline: Any) -> float:
        """The time of a variant divided by the baseline's: of the fastest rounds or of the second fastest, whichever is
        larger.

        Interference only ever makes a step slower, so the fastest rounds are the undisturbed ones.
        """
        own, other = sorted(self.seconds.get(variant, [])), sorted(self.seconds.get(baseline, []))
        return max((a / b for a, b in zip(own[:2], other[:2], strict=False)), default=float("inf"))


now = time.perf_counter


def run_queue_seconds() -> float:
    """Seconds that this thread was runnable while others had the processor; 0 if the system does not report it."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def compare(
    steps: TimedSteps, variants: list[Any], *, batch: int, planned_samples: float, device: torch.device
) -> Comparison:
    """Time the variants against the first of them, the baseline.

    Args:
        steps: runs a step of a variant.
        variants: two or more.
        batch: samples in a training step, the most that are used.
        planned_samples: samples of the planned training, over all epochs.
        device: where it runs.
    """
    began, waited_before, outcome = now(), run_queue_seconds(), Comparison()
    with single_thread(device):
        clock = _cpu_clock if device.type == "cpu" else _device_clock
        _Rounds(steps, variants, batch, planned_samples, device, clock, outcome, began, waited_before).run()
    outcome.wall = now() - began
    return outcome


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Use one CPU thread, whose processor time can be read."""
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
    """The variant to use: the baseline (the first) unless another is clearly faster or the baseline does not run."""
    baseline = variants[0]
    ran = [v for v in variants if outcome.seconds.get(v)]
    if baseline in outcome.failed and ran:
        return min(ran, key=lambda v: min(outcome.seconds[v]))
    best = baseline
    for variant in ran:
        enough = WORTH if len(outcome.seconds[variant]) > 1 else CLEAR
        if variant == baseline or outcome.ratio(variant, baseline) > enough:
            continue
        if best == baseline or min(outcome.seconds[variant]) <= ALIKE * min(outcome.seconds[best]):
            best = variant
    return best


@dataclass
class _Rounds:
    steps: TimedSteps
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
            return  # no time left to measure the baseline
        for number in range(ROUNDS):
            for variant in alive if number % 2 == 0 else alive[::-1]:
                if not self._timed(variant, rows):
                    return
            alive = self._left(alive, number + 1)
            if len(alive) < 2:
                return

    def _rows(self) -> int:
        """Number of samples in a timed step; 0 if the budget is used up."""
        baseline, rows = self.variants[0], min(FIRST_ROWS, self.batch)
        if not self._warm_up(baseline, rows):
            if baseline in self.outcome.failed and rows < self.batch:  # it may need a full batch
                self.outcome.failed.clear()
                return self.batch
            return 0 if baseline not in self.outcome.failed else rows
        self.budget = max(BUDGET_SECONDS, BUDGET_SHARE * SAFE * self.planned_samples / rows * self.took[baseline])
        if self._spent() + self.took[baseline] > self.budget:
            return 0
        first, self.warm_rows = self._once(baseline, rows), rows
        self.budget = max(BUDGET_SECONDS, BUDGET_SHARE * SAFE * self.planned_samples / rows * self.took[baseline])
        if self.device.type != "cpu":
            return self.batch  # timings of few samples are not representative on a GPU
        return max(rows, min(self.batch, int(rows * STEP_SECONDS / max(first, 1e-6))))

    def _spent(self) -> float:
        """Seconds used of the budget. Time in which others had the processor is not counted, up to half of the total."""
        wall = now() - self.began
        return max(wall - (run_queue_seconds() - self.waited_before), wall / 2)

    def _over(self) -> bool:
        return self._spent() > self.budget

    def _warm_up(self, variant: Any, rows: int) -> bool:
        """Run the uncounted first step of a variant; return whether it can be timed."""
        start = self._spent()
        try:
            with self.steps.watched(self._over):
                self.steps.step(variant, rows)
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
        self.steps.step(variant, rows)
        taken = self.clock() - start
        self.took[variant] = self._spent() - spent
        return taken

    def _timed(self, variant: Any, rows: int) -> bool:
        if self._spent() + self.took.get(variant, 0.0) > self.budget:
            return False
        self.outcome.seconds.setdefault(variant, []).append(self._once(variant, rows))
        return True

    def _left(self, alive: list[Any], rounds: int) -> list[Any]:
        """The variants that may still win."""
        baseline = self.variants[0]
        if rounds < 2 or baseline not in alive:
            return alive
        ratios = {v: self.outcome.ratio(v, baseline) for v in alive if v != baseline}
        least = {v: min(self.outcome.seconds[v]) / min(self.outcome.seconds[baseline]) for v in ratios}
        beaten = {v for v in ratios if least[v] > FAR or (rounds >= NEAR_ROUNDS and least[v] > WORTH and ratios[v] > 1)}
        if all(v in beaten or (rounds >= LEAST_ROUNDS and ratios[v] <= CLEAR) for v in ratios):
            return []
        return [v for v in alive if v not in beaten]
