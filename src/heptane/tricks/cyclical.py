"""Cyclical learning rates: the learning rate rises to a peak and falls again, once or repeatedly; momentum moves the other
way.

Equation
    Triangular policies with s steps up and s steps down: cycle = floor(1 + t / 2s), x = |t/s - 2 cycle + 1|,
    lr(t) = start + (peak - start) max(0, 1 - x) f,
    with f = 1 (triangular), 1 / 2^(cycle - 1) (triangular2) or gamma^t (exp_range).
    1cycle is a single rise and fall over the whole run, linear or cosine, that ends far below where it began.
    All values are fractions of the peak, which is the optimizer's own learning rate. ``final`` is too, whereas PyTorch's
    ``final_div_factor`` divides the *start*: final = start / final_div_factor.

Source
    Smith 2017, section 3, arXiv:1506.01186 (triangular policies); Loshchilov and Hutter 2017, arXiv:1608.03983 (warm
    restarts); Smith and Topin 2018, arXiv:1708.07120 (1cycle; two phases and the cosine are fastai's variant).

Meets the loop at
    ``schedule``, as :class:`heptane.core.schedule.Rates`; its factor multiplies the one of ``lr_scaling``.

Costs, and when it does not help
    The cost per step is negligible. The length of the run must be known in advance, and a run that stops in mid-cycle ends
    at a high learning rate: plan whole cycles for triangular policies, and 1, 3, 7, ... first periods for restarts with
    factor 2. With Adam the cycle moves beta1. The momentum values here replace the optimizer's own.
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
        start, peak, final: fractions of the optimizer's own learning rate. For momentum, start and final lie above the peak.
        warm_fraction: fraction of the run spent rising, in [0, 1), and at most 0.5 with three phases.
        phases, anneal: 2 or 3; ``cosine`` or ``linear``.

    Returns:
        The schedule; after step n - 1 it stays at ``final``.

    Raises:
        InputError: an argument is out of range.

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
    """Endless triangles from start to peak and back: the equation of this module with 2s = cycle_steps.

    Args:
        cycle_steps: length of a whole cycle, up and down, at least 2.
        start, peak: lowest and highest value, as fractions of the optimizer's own learning rate.
        shape: ``triangular``, ``triangular2`` (the height halves each cycle) or ``exp_range`` (the height decays by gamma
            each step).
        gamma: in (0, 1].

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> [triangular(4, start=0.0, shape="triangular2")(step) for step in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]

    Source: Smith 2017, arXiv:1506.01186, section 3.
    """
    check_range("triangular: cycle_steps", cycle_steps, 2, whole=True)
    check_choice("triangular: shape", shape, SHAPES[1:4])
    check_range("triangular: gamma", gamma, 0, 1, low_open=True)

    def schedule(step: int) -> float:
        cycle, position = divmod(step, cycle_steps)
        height = 1 - abs(2 * position / cycle_steps - 1)
        factor = 1.0 if shape == "triangular" else 0.5**cycle if shape == "triangular2" else gamma**step
        return start + (peak - start) * height * factor

    return schedule


def cosine_restarts(period_steps: int, *, peak: float = 1.0, final: float = 0.0, factor: float = 2.0) -> Schedule:
    """SGDR: final + (peak - final) (1 + cos(pi t/T)) / 2, with t counted from the last restart and T growing by ``factor``.

    Args:
        period_steps: the first T, at least 1.
        peak, final: value at a restart and towards the end of a period, as fractions of the optimizer's own learning rate.
        factor: ratio of a period's length to the one before, at least 1.

    Raises:
        InputError: an argument is out of range.

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
    """Settings of a cyclical learning rate and momentum. The peak is the optimizer's own learning rate."""

    shape: str = "one_cycle"
    """one_cycle, triangular, triangular2 (the height halves each cycle), exp_range or cosine_restarts."""
    start: float = 0.04
    """Learning rate at the first step and at the lowest point of a triangle, as a fraction of the peak, in [0, 1]."""
    final: float = 4e-6
    """Learning rate at the end of one_cycle or of a cosine period, as a fraction of the peak (not of start), in [0, 1]."""
    warm_fraction: float = 0.3
    """Fraction of a one_cycle run spent rising, in [0, 1), and at most 0.5 with three phases."""
    phases: int = 2
    """Phases of one_cycle: 2 (up, down to final) or 3 (up, down to start, down to final)."""
    anneal: str = "cosine"
    """Interpolation of one_cycle: cosine or linear."""
    cycle_epochs: float = 2.0
    """Epochs of a whole triangle (Smith: 4 to 20), or of the first cosine period, above 0."""
    period_factor: float = 2.0
    """Ratio of the length of a cosine period to the one before, at least 1 (SGDR recommends 2)."""
    gamma: float = 0.99994
    """Decay per step of the height of exp_range, in (0, 1]."""
    momentum_low: float = 0.85
    """Momentum (or beta1) at the peak of the learning rate, in [0, momentum_high]."""
    momentum_high: float = 0.95
    """Momentum (or beta1) where the learning rate is low, in [0, 1)."""
    cycle_momentum: bool = True
    """Cycle the momentum (or beta1) opposite to the learning rate; off keeps the optimizer's own."""

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
        """Whether the cycle includes a warm-up, so that ``lr_scaling`` must not add another."""
        return self.shape == "one_cycle" and self.warm_fraction > 0

    def rates(self, total_steps: int, steps_per_epoch: int) -> Rates:
        """The schedules of a run of ``total_steps`` applied optimizer steps, at least 1; after it they keep their last
        values.

        Example:
            >>> rates = Cyclical().rates(total_steps=100, steps_per_epoch=10)
            >>> rates.learning_rate(29), rates.momentum(29)
            (1.0, 0.85)
        """
        check_range("total_steps", total_steps, 1, whole=True)
        check_range("steps_per_epoch", steps_per_epoch, 1, whole=True)
        lr = hold_last(self._cycle(total_steps, steps_per_epoch, self.start, 1.0, self.final), total_steps)
        if not self.cycle_momentum:
            return Rates(lr)
        low, high = self.momentum_low, self.momentum_high
        return Rates(lr, hold_last(self._cycle(total_steps, steps_per_epoch, high, low, high), total_steps))

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
