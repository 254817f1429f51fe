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
"""``step -> value``, from step 0. It keeps no state, and a step past its end gives its last value."""


@dataclass(frozen=True)
class Rates:
    """What the loop sets before each step: a multiplier of every group's own rate, and perhaps a momentum."""

    learning_rate: Schedule
    """Multiplier of each group's own learning rate."""
    momentum: Schedule | None = None
    """Momentum, or beta1 in the Adam family, as such (not a multiplier); None leaves the optimizer's own."""


def constant(value: float = 1.0) -> Schedule:
    """The same value at every step: the schedule that does nothing.

    Args:
        value: what to return, by default the multiplier 1.

    Example:
        >>> constant()(1000)
        1.0
    """
    return lambda step: value


def scale_schedules(*schedules: Schedule) -> Schedule:
    """The product of schedules, step by step: ``(a x b)(t) = a(t) b(t)``.

    Args:
        schedules: any number of them; none gives the constant 1.

    Example:
        >>> multiply(constant(0.5), lambda step: step)(6)
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
    """One schedule after another, each counting its steps from its own 0.

    Args:
        parts: pairs of a schedule and how many steps it lasts (a whole number, at least 0).
        then: what follows the last of them, for good.

    Raises:
        InputError: if a number of steps is negative or not whole.

    Example:
        >>> schedule = join((constant(0.1), 2), (constant(1.0), 1), then=lambda step: 1.0 / (2 + step))
        >>> [schedule(step) for step in range(5)]
        [0.1, 0.1, 1.0, 0.5, 0.3333333333333333]
    """
    for position, (_, num_steps) in enumerate(parts):
        check_range(f"join: the number of steps of part {position}", num_steps, 0, whole=True)

    def joined(step: int) -> float:
        for schedule, num_steps in parts:
            if step < num_steps:
                return schedule(step)
            step -= num_steps
        return then(step)

    return joined


def hold_last(schedule: Schedule, num_steps: int) -> Schedule:
    """The first ``num_steps`` values of a schedule, and the last of these from then on.

    Args:
        schedule: any, also one without an end of its own.
        num_steps: how many of its values count, at least 1.

    Raises:
        InputError: if ``num_steps`` is not a whole number of at least 1.

    Example:
        >>> [hold(lambda step: 10.0 * step, 3)(step) for step in range(5)]
        [0.0, 10.0, 20.0, 20.0, 20.0]
    """
    check_range("hold: num_steps", num_steps, 1, whole=True)
    last = num_steps - 1
    return lambda step: schedule(min(step, last))


def piecewise(corners: Sequence[tuple[float, float]], anneal: str = "linear") -> Schedule:
    """From corner a to corner b: ``a (1 - p) + b p``, or along half a cosine ``b + (a - b) (1 + cos(pi p)) / 2``.

    Here p in [0, 1] is how far the step is between the two. Of corners on one step the second is met; the last holds.

    Args:
        corners: pairs of a step (a fraction is allowed, the first is 0) and the value there, in the order of the steps.
        anneal: ``linear`` or ``cosine``.

    Raises:
        InputError: if ``anneal`` is neither, or the corners are not in order from step 0.

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
    """Each parameter group's learning rate now: what the multipliers multiply. Read it before the first step."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, base_rates: Sequence[float], multiplier: float, momentum: float | None = None) -> None:
    """Set the rates of one step: ``lr = base x multiplier`` in each group, and the momentum where one is given.

    A learning rate (or a beta) held in a tensor is filled in place, so that a captured graph sees it.

    Args:
        optimizer: any; passed through :func:`check_momentum` once, if a momentum will be given.
        base_rates: a learning rate per parameter group, in their order.
        multiplier: this step's value of the learning-rate schedule.
        momentum: this step's momentum: the group's ``betas[0]`` if it has betas, else its ``momentum``; None: leave it.

    Raises:
        ValueError: if ``base_rates`` and the parameter groups differ in number.

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
    """Raise unless every parameter group has a momentum that a schedule can move.

    Args:
        optimizer: the optimizer whose momentum a schedule is about to set.

    Raises:
        InputError: if a group has neither ``betas`` nor ``momentum``, or has momentum 0, which a cycle would turn on.

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
    """A PyTorch scheduler that follows pure schedules: for people with their own loop.

    Its ``state_dict`` holds the step; loading it sets that step's rates, so a run resumes anywhere.

    Args:
        optimizer: its learning rates are what the multipliers multiply: those it was built with, if a scheduler has moved
            them since.
        learning_rate: multiplier of each group's learning rate, as a function of the step.
        momentum: momentum or beta1 as a function of the step; None leaves the optimizer's own.

    Returns:
        An ``LRScheduler``, at step 0; call ``.step()`` after each ``optimizer.step()``.

    Raises:
        InputError: as :func:`check_momentum` does.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = as_scheduler(optimizer, lambda step: 1.0 / (1 + step))
        >>> optimizer.step(); scheduler.step(); scheduler.get_last_lr()
        [0.05]
    """
    if momentum is not None:
        check_momentum(optimizer)

    class PureScheduler(torch.optim.lr_scheduler.LRScheduler):
        # The schedules stay in the closure: in __dict__ they would end up in state_dict, where functions cannot go.
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


def _linear(left: float, right: float, part: float) -> float:
    return left * (1 - part) + right * part


def _cosine(left: float, right: float, part: float) -> float:
    return right + (left - right) / 2 * (1 + math.cos(math.pi * part))


ANNEALS = {"linear": _linear, "cosine": _cosine}


def _set_momentum(optimizer: Optimizer, momentum: float) -> None:
    for group in optimizer.param_groups:
        if "betas" not in group:
            group["momentum"] = momentum
        elif isinstance(group["betas"][0], torch.Tensor):
            group["betas"][0].fill_(momentum)
        else:
            group["betas"] = (momentum, *group["betas"][1:])
