"""Time variants of one computation against each other: in turn, on few samples, dropping each once it cannot win.

On a CPU the measure is the processor time of one thread. It hardly depends on the load of the machine, and it ranks the
variants as the time of a step does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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

now = time.perf_counter


class TooSlow(BaseException):  # not an Exception, which the user's model may catch
    """The time budget is used up."""


class TimedSteps(Protocol):
    """The computation whose variants are compared."""

    def step(self, variant: Any, rows: int) -> None:
        """Run one step of a variant on ``rows`` samples."""

    def watched(self, over: Callable[[], bool]) -> Any:
        """A context in which a step raises :class:`TooSlow` once ``over()`` is true."""


def run_queue_seconds() -> float:
    """Seconds that this thread was runnable while others had the processor; 0 if the system does not report it."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Use one CPU thread, whose processor time can be read."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(device: torch.device) -> float:
    """The clock of a step."""
    if device.type == "cpu":
        return time.thread_time()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Comparison:
    """Times the variants against the first of them, the baseline."""

    steps: TimedSteps
    variants: list[Any]
    """two or more"""
    batch: int
    """samples in a training step, the most that are used"""
    planned_samples: float
    """of the training, over all epochs"""
    device: torch.device
    seconds: dict[Any, list[float]] = field(default_factory=dict)
    """per variant that ran, the time of each round"""
    failed: dict[Any, str] = field(default_factory=dict)
    """per variant that raised, the error"""
    slow: set[Any] = field(default_factory=set)
    """variants stopped by the time budget"""
    rows: int = 0
    """samples in a step"""
    _took: dict[Any, float] = field(default_factory=dict)

    def run(self) -> None:
        """Time the variants."""
        self._began, self._waited, self._budget = now(), run_queue_seconds(), BUDGET_SECONDS
        with single_thread(self.device):
            self._compare()

    def ratio(self, variant: Any) -> float:
        """The time of a variant divided by the baseline's: of the fastest rounds or of the second fastest, whichever is
        larger.

        Interference only ever makes a step slower, so the fastest rounds are the undisturbed ones.
        """
        own, other = sorted(self.seconds.get(variant, [])), sorted(self.seconds.get(self.variants[0], []))
        return max((a / b for a, b in zip(own[:2], other[:2], strict=False)), default=float("inf"))

    def fastest(self) -> Any:
        """The variant to use: the baseline unless another is clearly faster or the baseline does not run."""
        best = baseline = self.variants[0]
        least = {variant: min(seconds) for variant, seconds in self.seconds.items()}
        if baseline in self.failed and least:
            return min(self.variants, key=lambda variant: least.get(variant, float("inf")))
        for variant in self.variants[1:]:
            enough = WORTH if len(self.seconds.get(variant, [])) > 1 else CLEAR
            if self.ratio(variant) <= enough and (best == baseline or least[variant] <= ALIKE * least[best]):
                best = variant
        return best

    def _compare(self) -> None:
        baseline, warm = self.variants[0], self._size_steps()
        if not self.rows:
            return
        alive = [v for v in self.variants if v in warm or self._warm_up(v, self.rows)]
        if baseline not in alive and baseline not in self.failed:
            return  # no time left to measure the baseline
        for number in range(ROUNDS):
            for variant in alive if number % 2 == 0 else alive[::-1]:
                if not self._has_time(variant):
                    return
                self.seconds.setdefault(variant, []).append(self._timed(variant, self.rows))
            alive = self._left(alive, number + 1)
            if len(alive) < 2:
                return

    def _size_steps(self) -> list[Any]:
        """Set the number of samples in a timed step, 0 if the budget is used up; return the variants that are warm at it."""
        baseline, first_rows = self.variants[0], min(FIRST_ROWS, self.batch)
        if not self._warm_up(baseline, first_rows):
            if baseline in self.failed:
                self.rows = self.batch  # it may need a full batch
                if first_rows < self.batch:
                    self.failed.clear()
            return []
        self._set_budget(first_rows)
        if not self._has_time(baseline):
            return []
        first = self._timed(baseline, first_rows)
        self._set_budget(first_rows)
        self.rows = self.batch  # timings of few samples are not representative on a GPU
        if self.device.type == "cpu":
            self.rows = max(first_rows, min(self.batch, int(first_rows * STEP_SECONDS / max(first, 1e-6))))
        return [baseline] if self.rows == first_rows else []

    def _set_budget(self, rows: int) -> None:
        training = self.planned_samples / rows * self._took[self.variants[0]]
        self._budget = max(BUDGET_SECONDS, BUDGET_SHARE * SAFE * training)

    def _spent(self) -> float:
        """Seconds used of the budget. Time in which others had the processor is not counted, up to half of the total."""
        wall = now() - self._began
        return max(wall - (run_queue_seconds() - self._waited), wall / 2)

    def _has_time(self, variant: Any) -> bool:
        """Whether the budget allows one more step."""
        return self._spent() + self._took.get(variant, 0.0) <= self._budget

    def _warm_up(self, variant: Any, rows: int) -> bool:
        """Run the uncounted first step of a variant; return whether it can be timed."""
        try:
            with self.steps.watched(lambda: self._spent() > self._budget):
                self._timed(variant, rows)
        except TooSlow:
            self.slow.add(variant)
            return False
        except Exception as error:
            self.failed[variant] = one_line(error)
            return False
        return True

    def _timed(self, variant: Any, rows: int) -> float:
        spent, start = self._spent(), _seconds(self.device)
        self.steps.step(variant, rows)
        taken = _seconds(self.device) - start
        self._took[variant] = self._spent() - spent
        return taken

    def _left(self, alive: list[Any], rounds: int) -> list[Any]:
        """The variants that may still win."""
        baseline = self.variants[0]
        if rounds < 2 or baseline not in alive:
            return alive
        ratios = {v: self.ratio(v) for v in alive if v != baseline}
        least = {v: min(self.seconds[v]) / min(self.seconds[baseline]) for v in ratios}
        beaten = {v for v in ratios if least[v] > FAR or (rounds >= NEAR_ROUNDS and least[v] > WORTH and ratios[v] > 1)}
        if all(v in beaten or (rounds >= LEAST_ROUNDS and ratios[v] <= CLEAR) for v in ratios):
            return []
        return [v for v in alive if v not in beaten]
