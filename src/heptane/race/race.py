"""The everyday call of a race: check what was asked for, then conduct it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.core.checks import check_model
from heptane.core.custom_metrics import flatten_metrics
from heptane.core.optimizers import PEAK, resolve_optimizer
from heptane.core.run import OptimizerFactory
from heptane.data.cast import to_tensors
from heptane.distributed.workers import under_launcher
from heptane.race.arms import make_arms
from heptane.race.attempt import RaceSpec
from heptane.race.conduct import RaceRunner
from heptane.race.tuning import TRIALS
from heptane.session.history import check_target
from heptane.session.run_folder import check_folder
from heptane.tricks import Tricks, check_tricks


@dataclass(repr=False)
class RaceResult:
    """What came of a race; ``record`` is the content of ``race.json``.

    ``headline`` is the result in at most twelve words, ``speedup`` how many times faster all reached the target than plain,
    ``effects`` what each trick is worth, and ``summary`` the paragraph in words.
    """

    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"RaceResult({self.summary!r})"

    @property
    def speedup(self) -> dict[str, Any]:
        """``estimate``, ``interval``, ``verdict``, ``words``, ``why``, ``p``, and ``values`` per seed."""
        found: dict[str, Any] = self.record["speedup"]
        return found

    @property
    def effects(self) -> list[dict[str, Any]]:
        """Per trick that was measured: ``trick``, ``estimate``, ``interval``, ``verdict``, ``words``, ``why``, and the two
        ways of measuring it, ``alone`` and ``without``."""
        found: list[dict[str, Any]] = self.record["effects"]
        return found

    @property
    def headline(self) -> str:
        """The result in at most twelve words."""
        return str(self.record["headline"])

    @property
    def summary(self) -> str:
        """One paragraph in plain words."""
        return str(self.record["summary"])


def race(
    model: Callable[[], torch.nn.Module],
    train: Any,
    valid: Any,
    *,
    optimizer: OptimizerFactory | str,
    lr: float | None = None,
    epochs: float,
    target: float | tuple[str, float] | None = None,
    accuracy_in: float | None = None,
    tricks: Tricks | None = None,
    arms: Sequence[str] | None = None,
    seeds: int = 3,
    seed: int = 0,
    budget: float | None = None,
    fixed_seeds: bool = False,
    tune: int = TRIALS,
    peak: float = PEAK,
    planned_epochs: float | None = None,
    test: Any = None,
    out: Any = None,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    evaluate_every_epochs: float = 0.5,
    metrics: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
    **settings: Any,
) -> RaceResult:
    """Race plain training against the tricks, to a target or for a time, and say what each trick is worth.

    Args:
        model: makes a new model each time; it is called after PyTorch's generator was seeded, alike in all arms.
        train, valid, test: as in :func:`heptane.fit`; the target is on ``valid``, ``test`` is read at the end of each run.
        optimizer: a factory, ``params -> torch.optim.Optimizer``, with the learning rate of plain training; or a name, as in
            :func:`heptane.fit`.
        lr: learning rate of plain training where the optimizer is named; None is the name's default.
        epochs: the longest a run may be.
        target: stop when a validation metric reaches this: an accuracy, or a metric and a value.
        accuracy_in: race for the best validation accuracy within so many seconds of training instead.
        tricks: the set to race; None for the recommended one.
        arms: such as ``["plain", "all"]``, ``all-mixup`` or ``plain+cyclical``; None for every arm.
        seeds: how many, at least 1; there is no verdict on fewer than 2, and few on 2.
        seed: the first of them.
        budget: seconds for the whole race, tuning included; what does not fit is left out, and said.
        fixed_seeds: run all of them, also where a verdict is clear sooner, and never more: then verdicts are tested at 5%,
            in place of 1%, which leaves room for looking again and again.
        tune: trials per side before the race: rates for plain, lengths of the cycle for the arms that have one. 0 takes the
            optimizer's rate and ``planned_epochs`` as they are.
        peak: the peak of a cycle, in multiples of the optimizer's own rate.
        planned_epochs: length of the arms with a cycle; None is tuned, or ``epochs`` where nothing is.
        out: a folder for ``race.json`` and ``report.html``.
        resume: go on with the race in ``out``: runs that are done are not run again.
        force: replace the race in ``out``.
        dry_run: measure a few steps of each arm, and give a record with ``expected_seconds`` per arm; nothing is written.
        progress: show a live table, or a line per run where there is no terminal.
        evaluate_every_epochs, metrics, settings: as in :func:`heptane.fit`.
        about: facts for the record: command, data, model, settings, reasons.

    Returns:
        A :class:`RaceResult`.

    Raises:
        InputError: input that is wrong, before any training.

    Example:
        >>> x = torch.randn(256, 4)
        >>> data = x, (x.sum(1) > 0).long()
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> result = hp.race(lambda: torch.nn.Linear(4, 2), data, data, optimizer=sgd, epochs=4, batch_size=32, target=0.8,
        ...                  tricks=hp.Tricks(cyclical=hp.Cyclical(cycle_momentum=False)), seeds=2, tune=0)
        >>> [arm["name"] for arm in result.record["arms"]]
        ['plain', 'all']
    """
    check_range("seeds", seeds, 1, 1000, whole=True)
    check_range("seed", seed, 0, 2**29, whole=True)
    check_range("tune", tune, 0, 20, whole=True)
    check_range("peak", peak, 0, low_open=True)
    for name, value in (("budget", budget), ("accuracy_in", accuracy_in), ("planned_epochs", planned_epochs)):
        if value is not None:
            check_range(name, value, 0, low_open=True)
    if (target is None) == (accuracy_in is None):
        raise InputError("a race needs a target, such as target=0.9, or a time, such as accuracy_in=60; and not both")
    if valid is None:
        raise InputError("valid=None: a race is decided on validation data; pass valid")
    if under_launcher():
        raise InputError("a race starts its workers itself: run it without torchrun, with tricks=Tricks(data_parallel=...)")
    if isinstance(model, torch.nn.Module) or not callable(model):
        kind = type(model).__name__
        raise InputError(f"model of type {kind}: expected a function that makes a new model, such as lambda: Net()")
    first, second = model(), model()
    check_model(first)
    if first is second:
        raise InputError("model: expected a function that makes a new model each time, and it gave the same one twice")
    train, valid, test = (to_tensors(data) for data in (train, valid, test))
    metrics = flatten_metrics(metrics)
    goal = check_target(target, valid, metrics)
    chosen = Tricks.recommended(data=train, epochs=epochs) if tricks is None else check_tricks(tricks)
    if isinstance(arms, str):
        raise InputError(f"arms={arms!r}: expected a list of names, such as {arms.split(',')!r}")
    course = RaceSpec(
        model=model,
        train=train,
        valid=valid,
        test=test,
        optimizer=resolve_optimizer(optimizer, lr)[0],
        metric=goal[0] if goal else "valid_accuracy",
        target=goal[1] if goal else None,
        seconds=accuracy_in,
        lower=goal.lower if goal else None,
        settings={"evaluate_every_epochs": evaluate_every_epochs, "metrics": metrics, **settings},
    )
    plan = {
        "epochs": float(epochs),
        "seeds": list(range(seed, seed + seeds)),
        "budget_seconds": budget,
        "fixed_seeds": bool(fixed_seeds),
        "tune": tune,
        "peak": float(peak),
        "planned_epochs": planned_epochs,
    }
    if out is not None and not dry_run:
        check_folder(out, force=force, resume=resume)
    conduct = RaceRunner(course, make_arms(chosen, arms), chosen, plan, about or {})
    if dry_run:
        return RaceResult(conduct.dry_run())
    return RaceResult(conduct.go(out, force=force, resume=resume, progress=progress))
