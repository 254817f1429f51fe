"""Learning-rate scaling: when the batch grows k-fold, scale the learning rate by the optimizer's rule, after a warm-up.

Equation
    SGD family: lr -> k lr. Adam family: lr -> sqrt(k) lr, 1 - beta -> k (1 - beta), eps -> eps / sqrt(k).
    RMSprop: as Adam, with alpha for beta. Warm-up: linear, from the learning rate of the reference batch.

Source
    Goyal et al. 2017, sections 2.1 and 2.2, arXiv:1706.02677 (linear rule, gradual warm-up).
    Malladi et al. 2022, arXiv:2205.10287 (Adam, RMSprop; NAdam, RAdam, Adamax and SparseAdam by analogy).

Meets the loop at
    The base learning rates, scaled once before any schedule; and ``schedule``: the warm-up multiplies ``cyclical``.

Costs, and when it does not help
    Nothing per step. Beyond some batch size (8192 on ImageNet) accuracy falls whatever the rule. A learning rate that was
    chosen for the batch in use must not be scaled: set ``reference_batch`` to that batch.
    Momentum correction (Goyal, section 3) is not needed: it corrects optimizers that keep the learning rate inside the
    momentum buffer. PyTorch keeps it outside, v <- m v + g, w <- w - lr v, so a new learning rate acts at once on all of v.
    Weight decay is left to the optimizer: SGD adds wd w to the gradient, AdamW multiplies w by 1 - lr wd. Both shrink w by
    lr wd per step. An epoch has 1/k as many steps, so decay per epoch is unchanged by the linear rule and is divided by
    sqrt(k) under the square root rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch
from heptane.core.schedule import Schedule, constant, piecewise

if TYPE_CHECKING:
    from torch.optim import Optimizer

RULES = ("auto", "linear", "sqrt", "none")
_WARMUP_EPOCHS, _WARMUP_SHARE = 5, 5  # default: 5 epochs, but at most a fifth of the run


def scale_lr(lr: float, batch_size: int, reference_batch: int, rule: str) -> float:
    """The learning rate for a batch k = batch_size / reference_batch times as large: k lr (linear) or sqrt(k) lr (sqrt).

    Args:
        lr: learning rate at the reference batch.
        batch_size, reference_batch: global batches, in samples per optimizer step, at least 1.
        rule: ``linear``, ``sqrt`` or ``none``.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> scale_lr(0.1, 1024, 256, "linear"), scale_lr(0.001, 1024, 256, "sqrt")
        (0.4, 0.002)

    Source: Goyal et al. 2017, section 2.1; Malladi et al. 2022.
    """
    check_range("batch_size", batch_size, 1, whole=True)
    check_range("reference_batch", reference_batch, 1, whole=True)
    check_choice("rule", rule, RULES[1:])
    k = batch_size / reference_batch
    return lr * {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}[rule]


def scale_adam(betas: tuple[float, ...], eps: float, k: float) -> tuple[tuple[float, ...], float]:
    """Adam's betas and eps for a batch k times as large: 1 - beta -> k (1 - beta), eps -> eps / sqrt(k).

    Args:
        betas: decay rates in [0, 1). A beta of 0 has no memory and stays 0.
        eps: term added to the denominator.
        k: growth of the batch, above 0.

    Raises:
        InputError: k (1 - beta) >= 1, so that no positive beta is left.

    Example:
        >>> betas, eps = scale_adam((0.9, 0.999), 1e-8, 4)
        >>> [round(beta, 6) for beta in betas], eps
        ([0.6, 0.996], 5e-09)

    Source: Malladi et al. 2022, arXiv:2205.10287, the square root scaling rule.
    """
    check_range("k", k, 0, low_open=True)
    for beta in betas:
        # In floating point 1 - 0.9 < 0.1: without a margin, k = 10 would give a beta of 2e-16.
        if beta > 0 and k * (1 - beta) >= 1 - 1e-9:
            raise InputError(
                f"batch factor k={k:g}: with beta={beta:g} expected k below {1 / (1 - beta):g}; "
                "use a smaller batch, a larger LRScaling.reference_batch, or LRScaling.rule='none'"
            )
    return tuple(1 - k * (1 - beta) if beta > 0 else beta for beta in betas), eps / math.sqrt(k)


def warmup(warmup_steps: int, start: float = 0.0) -> Schedule:
    """A linear warm-up: the multiplier start + (1 - start) t / warmup_steps, and 1 from step ``warmup_steps`` on.

    Args:
        warmup_steps: the first step at which the multiplier is 1; 0 is no warm-up.
        start: multiplier of step 0, in [0, 1]; 0 makes the first step a no-op.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> [warmup(3, 0.25)(step) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Source: Goyal et al. 2017, section 2.2 (gradual warm-up).
    """
    check_range("warmup: warmup_steps", warmup_steps, 0, whole=True)
    check_range("warmup: start", start, 0, 1)
    return piecewise([(0, start), (warmup_steps, 1.0)])


@dataclass(frozen=True, kw_only=True)
class LRScaling:
    """Settings of learning-rate scaling and its warm-up."""

    reference_batch: int = 256
    """Batch size for which the learning rate was chosen, in samples per optimizer step, at least 1."""
    rule: str = "auto"
    """Scaling rule: auto (by the optimizer's family), linear, sqrt or none."""
    warmup_epochs: float | None = None
    """Epochs of warm-up, at least 0; None: 5 but at most a fifth of the run, or none if the cycle includes a warm-up."""
    warmup_steps: int | None = None
    """Optimizer steps of warm-up, at least 0; None: as warmup_epochs says."""
    start: float | None = None
    """Learning rate at the start of the warm-up, as a fraction of the scaled one, in [0, 1]; None: that of the reference
    batch."""

    def __post_init__(self) -> None:
        check_range("LRScaling.reference_batch", self.reference_batch, 1, whole=True)
        check_choice("LRScaling.rule", self.rule, RULES)
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise InputError(
                f"LRScaling.warmup_steps={self.warmup_steps!r} and LRScaling.warmup_epochs={self.warmup_epochs!r}: "
                "expected one of the two; leave the other at None"
            )
        if self.warmup_epochs is not None:
            check_range("LRScaling.warmup_epochs", self.warmup_epochs, 0)
        if self.warmup_steps is not None:
            check_range("LRScaling.warmup_steps", self.warmup_steps, 0, whole=True)
        if self.start is not None:
            check_range("LRScaling.start", self.start, 0, 1)

    def resolve_rule(self, optimizer: Optimizer) -> tuple[str, str]:
        """The rule (linear, sqrt or none) and the reason: the optimizer's family, or the field ``rule``.

        Raises:
            InputError: ``rule`` is auto and the optimizer belongs to no known family.

        Example:
            >>> LRScaling().resolve_rule(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]))
            ('sqrt', 'Adam family')
        """
        if self.rule != "auto":
            return self.rule, "set by LRScaling.rule"
        family = _family(optimizer)
        if family is None:
            raise InputError(
                f"LRScaling.rule='auto': {type(optimizer).__name__} belongs to no family with a known rule (SGD, Adam, "
                "RMSprop); set LRScaling.rule to linear, sqrt or none"
            )
        return ("linear" if family == "SGD" else "sqrt"), f"{family} family"

    def apply(self, optimizer: Optimizer, batch_size: int) -> str:
        """Scale every parameter group in place, once, before any schedule reads the learning rates.

        Args:
            optimizer: newly built, with the learning rates of the reference batch.
            batch_size: the global batch in samples per optimizer step: all workers and micro-batches together.

        Returns:
            What was scaled and why, as a note for the user.

        Raises:
            InputError: as :meth:`resolve_rule` and :func:`scale_adam`, and if a scheduler already holds the learning rates.

        Example:
            >>> LRScaling().apply(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), 1024)
            'batch 1024 is 4 x the reference 256: SGD family, linear rule, learning rate 0.1 -> 0.4'
        """
        rule, reason = self.resolve_rule(optimizer)
        groups, k = optimizer.param_groups, batch_size / self.reference_batch
        if any("initial_lr" in group for group in groups):
            raise InputError("LRScaling: a scheduler already holds this optimizer's learning rates; build it after scaling")
        adaptive = rule == "sqrt" and _family(optimizer) in ("Adam", "RMSprop")
        before = [{key: group[key] for key in _KEYS if key in group and (adaptive or key == "lr")} for group in groups]
        after = [self._scaled(values, batch_size, rule) for values in before]  # all groups, before any is changed
        note = f"batch {batch_size} is {k:g} x the reference {self.reference_batch}: {reason}, {rule} rule"
        note += "".join(f", {_KEYS[key]} {_show(before, key)} -> {_show(after, key)}" for key in _KEYS if key in after[0])
        for group, values in zip(groups, after, strict=True):
            for key, value in values.items():
                if isinstance(group[key], torch.Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = value
        return note

    def warmup_schedule(
        self, optimizer: Optimizer, batch_size: int, *, total_steps: int, steps_per_epoch: int, cycle_warms_up: bool
    ) -> Schedule:
        """The warm-up multiplier, from ``start`` to 1; constant 1 where the batch is not larger than the reference.

        Args:
            optimizer, batch_size: as for :meth:`apply`; they determine the learning rate of the reference batch.
            total_steps, steps_per_epoch: applied optimizer steps, at least 1.
            cycle_warms_up: the cycle includes a warm-up (``Cyclical.warms_up``).

        Raises:
            InputError: a warm-up was requested in addition to the cycle's, or is longer than the run.

        Example:
            >>> optimizer, scaling = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), LRScaling(warmup_steps=3)
            >>> run = {"total_steps": 10, "steps_per_epoch": 5, "cycle_warms_up": False}
            >>> ramp = scaling.warmup_schedule(optimizer, 1024, **run)
            >>> [round(ramp(step), 4) for step in range(5)]
            [0.25, 0.5, 0.75, 1.0, 1.0]
        """
        check_range("total_steps", total_steps, 1, whole=True)
        check_range("steps_per_epoch", steps_per_epoch, 1, whole=True)
        name, asked = "LRScaling.warmup_steps", self.warmup_steps
        num_steps = min(_WARMUP_EPOCHS * steps_per_epoch, total_steps // _WARMUP_SHARE) if asked is None else asked
        if self.warmup_epochs is not None:
            name, num_steps = "LRScaling.warmup_epochs", round(self.warmup_epochs * steps_per_epoch)
        for key, idle in (("warmup_steps", (None, 0)), ("warmup_epochs", (None, 0)), ("start", (None, 1))):
            value = getattr(self, key)
            if cycle_warms_up and value not in idle:
                given = f"LRScaling.{key}={value!r}"
                raise InputError(f"{given}: 1cycle already warms up; leave it at None, or choose another Cyclical.shape")
        if num_steps > total_steps:
            raise InputError(f"{name}: {num_steps} steps of warm-up exceed the run; expected <= {total_steps}")
        growth = scale_lr(1.0, batch_size, self.reference_batch, self.resolve_rule(optimizer)[0])
        start = min(1.0, 1.0 / growth) if self.start is None else self.start
        return constant() if cycle_warms_up or start == 1 else warmup(num_steps, start)

    def _scaled(self, values: dict[str, Any], batch_size: int, rule: str) -> dict[str, Any]:
        scaled: dict[str, Any] = {"lr": scale_lr(float(values["lr"]), batch_size, self.reference_batch, rule)}
        k = batch_size / self.reference_batch
        for key in ("betas", "alpha"):
            if key in values:
                decays = values[key] if key == "betas" else (values[key],)
                betas, scaled["eps"] = scale_adam(tuple(map(float, decays)), values["eps"], k)
                scaled[key] = betas if key == "betas" else betas[0]
        return scaled


# The settings of a parameter group that the rules change, and their names in the note.
_KEYS = {"lr": "learning rate", "betas": "betas", "alpha": "alpha", "eps": "eps"}


def _family(optimizer: Optimizer) -> str | None:
    optim = torch.optim
    families: dict[str, tuple[type[Optimizer], ...]] = {
        "SGD": (optim.SGD, optim.ASGD),
        "Adam": (optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.SparseAdam),  # AdamW is a subclass of Adam
        "RMSprop": (optim.RMSprop,),
    }
    return next((name for name, kinds in families.items() if isinstance(optimizer, kinds)), None)


def _show(groups: list[dict[str, Any]], key: str) -> str:
    """A setting of the parameter groups as text; where groups differ, that of the first and of the last."""
    texts = []
    for value in (groups[0][key], groups[-1][key]):
        numbers = [f"{float(number):.6g}" for number in (value if key == "betas" else [value])]
        texts.append(f"({', '.join(numbers)})" if key == "betas" else numbers[0])
    return texts[0] if texts[0] == texts[1] else "..".join(texts)
