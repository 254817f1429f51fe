"""Schedules: pure functions of the step, how they combine, and how their values reach an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Schedule = Callable[[int], float]
"""``step -> value``, from step 0. It has no state; past its end it keeps its last value."""


@dataclass(frozen=True)
class Rates:
    """The schedules that the loop applies before each step."""

    learning_rate: Schedule
    """Multiplier of each parameter group's own learning rate."""
    momentum: Schedule | None = None
    """Momentum (or beta1), as a value rather than a multiplier; None keeps the optimizer's own."""


def constant(value: float = 1.0) -> Schedule:
    """A constant schedule; the default multiplier 1 leaves the learning rate unchanged.

    Example:
        >>> constant()(1000)
        1.0
    """
    return lambda step: value


def scale_schedules(*schedules: Schedule) -> Schedule:
    """The product of any number of schedules: ``(a x b)(t) = a(t) b(t)``; without any, the constant 1.

    Example:
        >>> scale_schedules(constant(0.5), lambda step: step)(6)
        3.0
    """
    if len(schedules) == 1:
        return schedules[0]

    def product(step: int) -> float:
        value = 1.0
        for schedule in schedules:
            value *= schedule(step)
        return value

    return product


def join_schedules(*parts: tuple[Schedule, int], then: Schedule) -> Schedule:
    """One schedule after another, each counting steps from its own start.

    Args:
        parts: pairs of a schedule and its number of steps (a whole number, at least 0).
        then: the schedule after the last of them.

    Raises:
        InputError: a number of steps is negative or not whole.

    Example:
        >>> schedule = join_schedules((constant(0.1), 2), (constant(1.0), 1), then=lambda step: 1.0 / (2 + step))
        >>> [schedule(step) for step in range(5)]
        [0.1, 0.1, 1.0, 0.5, 0.3333333333333333]
    """
    for position, (_, num_steps) in enumerate(parts):
        check_range(f"join_schedules: the number of steps of part {position}", num_steps, 0, whole=True)

    def joined(step: int) -> float:
        for schedule, num_steps in parts:
            if step < num_steps:
                return schedule(step)
            step -= num_steps
        return then(step)

    return joined


def hold_last(schedule: Schedule, num_steps: int) -> Schedule:
    """The first ``num_steps`` values of a schedule, and the last of them from then on.

    Raises:
        InputError: ``num_steps`` is not a whole number of at least 1.

    Example:
        >>> [hold_last(lambda step: 10.0 * step, 3)(step) for step in range(5)]
        [0.0, 10.0, 20.0, 20.0, 20.0]
    """
    check_range("hold_last: num_steps", num_steps, 1, whole=True)
    last = num_steps - 1
    return lambda step: schedule(min(step, last))


def piecewise(corners: Sequence[tuple[float, float]], anneal: str = "linear") -> Schedule:
    """Interpolate between corners a and b: ``a (1 - p) + b p``, or with a cosine ``b + (a - b) (1 + cos(pi p)) / 2``.

    p in [0, 1] is the position of the step between the two. If two corners share a step, the later one counts; the last
    holds.

    Args:
        corners: pairs of a step (possibly fractional, the first is 0) and the value there, ordered by step.
        anneal: ``linear`` or ``cosine``.

    Raises:
        InputError: ``anneal`` is neither, or the corners are not ordered from step 0.

    Example:
        >>> schedule = piecewise([(0, 0.2), (4, 1.0)])
        >>> [round(schedule(step), 3) for step in (0, 1, 2, 3, 4, 99)]
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    """
    check_choice("anneal", anneal, ANNEALS)
    blend = ANNEALS[anneal]
    at = [step for step, _ in corners]
    if not at or at[0] != 0 or at != sorted(at):
        raise InputError(f"piecewise: corners at steps {at}: expected them in order, the first at step 0")

    def schedule(step: int) -> float:
        begin, left = corners[0]
        for end, right in corners[1:]:
            if step <= end:
                return blend(left, right, (step - begin) / (end - begin)) if end > begin else right
            begin, left = end, right
        return left

    return schedule


def base_rates(optimizer: Optimizer) -> list[float]:
    """The current learning rate of each parameter group, to which multipliers apply. Read it before the first step."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, base_rates: Sequence[float], multiplier: float, momentum: float | None = None) -> None:
    """Set the learning rates of one step, ``lr = base x multiplier`` in each group, and the momentum if one is given.

    A learning rate or beta held in a tensor is filled in place, so that a captured graph sees it.

    Args:
        optimizer: any; call :func:`check_momentum` once beforehand if a momentum will be given.
        base_rates: base learning rate of each parameter group, in order.
        multiplier: value of the learning-rate schedule at this step.
        momentum: momentum at this step, for ``betas[0]`` or else ``momentum`` of each group; None leaves it.

    Raises:
        ValueError: the numbers of ``base_rates`` and parameter groups differ.

    Example:
        >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        >>> set_rates(optimizer, base_rates(optimizer), 0.5, momentum=0.85)
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]
        (0.005, (0.85, 0.999))
    """
    for group, base in zip(optimizer.param_groups, base_rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(base * multiplier)
        else:
            group["lr"] = base * multiplier
    if momentum is not None:
        _set_momentum(optimizer, momentum)


def check_momentum(optimizer: Optimizer) -> None:
    """Refuse an optimizer with a parameter group that has no momentum to cycle.

    Raises:
        InputError: a group has neither ``betas`` nor ``momentum``, or has momentum 0, which a cycle would turn on.

    Example:
        >>> check_momentum(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9))
    """
    kind = type(optimizer).__name__
    for position, group in enumerate(optimizer.param_groups):
        where = f"Cyclical.cycle_momentum=True with {kind} (parameter group {position})"
        if "betas" not in group and "momentum" not in group:
            raise InputError(f"{where}: it has neither momentum nor betas to cycle; set cycle_momentum=False")
        current = group["betas"][0] if "betas" in group else group["momentum"]
        if not current > 0:
            name = "beta1" if "betas" in group else "momentum"
            raise InputError(
                f"{where}: {name} is {float(current):g}, and cycling would turn it on; "
                f"set {name} > 0 in the optimizer, or cycle_momentum=False"
            )


def as_scheduler(optimizer: Optimizer, learning_rate: Schedule, momentum: Schedule | None = None) -> LRScheduler:
    """A PyTorch scheduler that follows pure schedules, for a loop of your own.

    Its ``state_dict`` holds the step; loading it applies the learning rates of that step, so a run resumes anywhere.

    Args:
        optimizer: multipliers apply to the learning rates it was built with, even if another scheduler has changed them.
        learning_rate: multiplier of each group's learning rate, as a function of the step.
        momentum: momentum or beta1 as a function of the step; None keeps the optimizer's own.

    Returns:
        An ``LRScheduler`` at step 0; call ``.step()`` after each ``optimizer.step()``.

    Raises:
        InputError: as :func:`check_momentum`.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = as_scheduler(optimizer, lambda step: 1.0 / (1 + step))
        >>> optimizer.step(); scheduler.step(); scheduler.get_last_lr()
        [0.05]
    """
    if momentum is not None:
        check_momentum(optimizer)

    class PureScheduler(torch.optim.lr_scheduler.LRScheduler):
        # The schedules stay in the closure: attributes would end up in state_dict, which cannot hold functions.
        def get_lr(self) -> list[float | torch.Tensor]:
            multiplier = learning_rate(self.last_epoch)
            return [base * multiplier for base in self.base_lrs]

        def step(self, epoch: int | None = None) -> None:
            super().step(epoch)
            if momentum is not None:
                _set_momentum(self.optimizer, momentum(self.last_epoch))

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            at = self.last_epoch
            bases = [float(base) for base in self.base_lrs]
            set_rates(self.optimizer, bases, learning_rate(at), momentum(at) if momentum is not None else None)

    return PureScheduler(optimizer)


def _linear(left: float, right: float, position: float) -> float:
    return left * (1 - position) + right * position


def _cosine(left: float, right: float, position: float) -> float:
    return right + (left - right) / 2 * (1 + math.cos(math.pi * position))


ANNEALS = {"linear": _linear, "cosine": _cosine}


def _set_momentum(optimizer: Optimizer, momentum: float) -> None:
    for group in optimizer.param_groups:
        if "betas" not in group:
            group["momentum"] = momentum
        elif isinstance(group["betas"][0], torch.Tensor):
            group["betas"][0].fill_(momentum)
        else:
            group["betas"] = (momentum, *group["betas"][1:])
