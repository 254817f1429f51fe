"""Cyclical learning rates: the rate rises to a peak and comes back, once or many times; the momentum mirrors it.

Equation
    With s steps up and s down: cycle = floor(1 + t / 2s), x = |t/s - 2 cycle + 1|,
    rate = start + (peak - start) max(0, 1 - x) f,
    f = 1 (triangular), 1 / 2^(cycle - 1) (triangular2), gamma^t (exp_range).
    1cycle is one triangle, straight or cosine, over the whole run, that ends far lower than it began.
    Rates are fractions of the peak, the optimizer's own rate. So is ``final``, where PyTorch's ``final_div_factor``
    divides the *start*: final = start / final_div_factor.

Source
    Smith 2017, section 3, arXiv:1506.01186 (triangles); Loshchilov and Hutter 2017, arXiv:1608.03983 (restarts);
    Smith and Topin 2018, arXiv:1708.07120 (1cycle; two phases and the cosine are fastai's variant).

Meets the loop at
    ``schedule``, as :class:`heptane.core.schedule.Rates`; it multiplies with ``lr_scaling``.

Costs, and when it does not help
    Next to nothing per step; but the length must be known beforehand, and a run that stops in mid-cycle ends at a high
    rate: plan triangles for whole cycles, restarts (with factor 2) for 1, 3, 7, ... first periods.
    With Adam it is beta1 that cycles, and the values here replace the optimizer's own, scaled or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from heptane.base.errors import InputError, check_bool, check_choice, check_range
from heptane.core.schedule import ANNEALS, Rates, Schedule, constant, hold_last, piecewise

SHAPES = ("one_cycle", "triangular", "triangular2", "exp_range", "cosine_restarts")


def one_cycle(
    total_steps: int,
    *,
    start: float = 0.04,
    peak: float = 1.0,
    final: float = 4e-6,
    warm_fraction: float = 0.3,
    phases: int = 2,
    anneal: str = "cosine",
) -> Schedule:
    """1cycle: start -> peak at step w = warm_fraction n - 1 -> (three phases: start at 2w ->) final at step n - 1.

    Args:
        total_steps: n, at least 1. A run too short to rise (w <= 0) begins at the peak; a single step stays there.
        start, peak, final: fractions of the optimizer's own rate; above the peak, start and final mirror it (momentum).
        warm_fraction: part of the run spent rising, in [0, 1), and at most 0.5 with three phases.
        phases, anneal: 2 or 3; ``cosine`` or ``linear``.

    Returns:
        The schedule; after step n - 1 it stays at ``final``.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> schedule = one_cycle(12, start=0.1, final=0.0, warm_fraction=0.5, anneal="linear")
        >>> [round(schedule(step), 2) for step in (0, 5, 8, 11, 99)]
        [0.1, 1.0, 0.5, 0.0, 0.0]

    Source: Smith and Topin 2018, arXiv:1708.07120; the corners are those of ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    check_range("one_cycle: total_steps", total_steps, 1, whole=True)
    _check_one_cycle("one_cycle: ", warm_fraction, phases, anneal)
    if total_steps == 1:
        return constant(peak)
    warm = max(warm_fraction * total_steps - 1, 0.0)
    middle = [(2 * warm, start)] if phases == 3 else []
    return piecewise([(0.0, start), (warm, peak), *middle, (total_steps - 1.0, final)], anneal)


def triangular(
    cycle_steps: int, *, start: float = 0.04, peak: float = 1.0, shape: str = "triangular", gamma: float = 0.99994
) -> Schedule:
    """Triangles from start to peak and back, without end: the first equation of this module, with 2s = cycle_steps.

    Args:
        cycle_steps: length of a whole cycle, up and down, at least 2.
        start, peak: fractions of the optimizer's own rate, at the foot and at the top.
        shape: ``triangular``, ``triangular2`` (the height halves each cycle) or ``exp_range`` (times gamma each step).
        gamma: in (0, 1].

    Returns:
        The schedule.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> [triangular(4, start=0.0, shape="triangular2")(step) for step in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]

    Source: Smith 2017, arXiv:1506.01186, section 3.
    """
    check_range("triangular: cycle_steps", cycle_steps, 2, whole=True)
    check_choice("triangular: shape", shape, SHAPES[1:4])
    check_range("triangular: gamma", gamma, 0, 1, low_open=True)

    def schedule(step: int) -> float:
        num_cycles, position = divmod(step, cycle_steps)
        height = 1 - abs(2 * position / cycle_steps - 1)
        factor = 1.0 if shape == "triangular" else 0.5**num_cycles if shape == "triangular2" else gamma**step
        return start + (peak - start) * height * factor

    return schedule


def cosine_restarts(period_steps: int, *, peak: float = 1.0, final: float = 0.0, factor: float = 2.0) -> Schedule:
    """SGDR: final + (peak - final) (1 + cos(pi t/T)) / 2, t counted from the last restart, T growing by ``factor``.

    Args:
        period_steps: the first T, at least 1.
        peak, final: fractions of the optimizer's own rate, at a restart and towards the end of a period.
        factor: each period lasts this many times the one before, at least 1.

    Returns:
        The schedule.

    Raises:
        InputError: if an argument is out of its range.

    Example:
        >>> [round(cosine_restarts(2)(step), 2) for step in range(7)]
        [1.0, 0.5, 1.0, 0.85, 0.5, 0.15, 1.0]

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, section 3.
    """
    check_range("cosine_restarts: period_steps", period_steps, 1, whole=True)
    check_range("cosine_restarts: factor", factor, 1)

    def schedule(step: int) -> float:
        position, period = float(step % period_steps if factor == 1 else step), float(period_steps)
        while position >= period:
            position, period = position - period, period * factor
        return ANNEALS["cosine"](peak, final, position / period)

    return schedule


@dataclass(frozen=True, kw_only=True)
class Cyclical:
    """Cyclical learning rate and momentum; every rate is a fraction of the peak, the optimizer's own learning rate."""

    shape: str = "one_cycle"
    """Shape: one_cycle, triangular, triangular2 (the height halves each cycle), exp_range or cosine_restarts."""
    start: float = 0.04
    """Rate at the first step and at the foot of a triangle, as a fraction of the peak, in [0, 1]."""
    final: float = 4e-6
    """Rate at the end of one_cycle or of a cosine period, as a fraction of the peak (not of the start), in [0, 1]."""
    warm_fraction: float = 0.3
    """Part of a one_cycle run spent rising, in [0, 1), and at most 0.5 with three phases."""
    phases: int = 2
    """Phases of one_cycle: 2 (up, down to final) or 3 (up, down to start, on down to final)."""
    anneal: str = "cosine"
    """Form of the slopes of one_cycle: cosine or linear."""
    cycle_epochs: float = 2.0
    """Epochs of a whole triangle (Smith: 4 to 20), or of the first cosine period, above 0."""
    period_factor: float = 2.0
    """Each cosine period lasts this many times the one before, at least 1 (SGDR recommends 2)."""
    gamma: float = 0.99994
    """Factor of the height of exp_range per step, in (0, 1]."""
    momentum_low: float = 0.85
    """Momentum (or beta1) at the peak of the rate, in [0, momentum_high]."""
    momentum_high: float = 0.95
    """Momentum (or beta1) where the rate is low, in [0, 1)."""
    cycle_momentum: bool = True
    """Move the momentum (or beta1) opposite to the rate; off leaves the optimizer's own."""

    def __post_init__(self) -> None:
        check_choice("Cyclical.shape", self.shape, SHAPES)
        check_bool("Cyclical.cycle_momentum", self.cycle_momentum)
        check_range("Cyclical.start", self.start, 0, 1)
        check_range("Cyclical.final", self.final, 0, 1)
        _check_one_cycle("Cyclical.", self.warm_fraction, self.phases, self.anneal)
        check_range("Cyclical.cycle_epochs", self.cycle_epochs, 0, low_open=True)
        check_range("Cyclical.period_factor", self.period_factor, 1)
        check_range("Cyclical.gamma", self.gamma, 0, 1, low_open=True)
        check_range("Cyclical.momentum_high", self.momentum_high, 0, 1, high_open=True)
        check_range("Cyclical.momentum_low", self.momentum_low, 0, self.momentum_high)

    @property
    def warms_up(self) -> bool:
        """Whether the cycle begins with a warm-up of its own, so that none may go on top of it."""
        return self.shape == "one_cycle" and self.warm_fraction > 0

    def rates(self, total_steps: int, steps_per_epoch: int) -> Rates:
        """The schedules of a run of so many applied optimizer steps (at least 1); past it their last values hold.

        Example:
            >>> rates = Cyclical().rates(total_steps=100, steps_per_epoch=10)
            >>> rates.learning_rate(29), rates.momentum(29)
            (1.0, 0.85)
        """
        check_range("total_steps", total_steps, 1, whole=True)
        check_range("steps_per_epoch", steps_per_epoch, 1, whole=True)
        rate = hold_last(self._cycle(total_steps, steps_per_epoch, self.start, 1.0, self.final), total_steps)
        if not self.cycle_momentum:
            return Rates(rate)
        low, high = self.momentum_low, self.momentum_high
        return Rates(rate, hold_last(self._cycle(total_steps, steps_per_epoch, high, low, high), total_steps))

    def _cycle(self, total_steps: int, steps_per_epoch: int, start: float, peak: float, final: float) -> Schedule:
        if self.shape == "one_cycle":
            corners = {"start": start, "peak": peak, "final": final, "warm_fraction": self.warm_fraction}
            return one_cycle(total_steps, **corners, phases=self.phases, anneal=self.anneal)
        cycle_steps = max(round(self.cycle_epochs * steps_per_epoch), 1)
        if self.shape == "cosine_restarts":
            return cosine_restarts(cycle_steps, peak=peak, final=final, factor=self.period_factor)
        return triangular(max(cycle_steps, 2), start=start, peak=peak, shape=self.shape, gamma=self.gamma)


def _check_one_cycle(owner: str, warm_fraction: float, phases: int, anneal: str) -> None:
    check_choice(f"{owner}anneal", anneal, ANNEALS)
    check_range(f"{owner}phases", phases, 2, 3, whole=True)
    check_range(f"{owner}warm_fraction", warm_fraction, 0, 1, high_open=True)
    if phases == 3 and warm_fraction > 0.5:
        raise InputError(f"{owner}warm_fraction={warm_fraction!r} with phases=3: expected a number in [0, 0.5]")
