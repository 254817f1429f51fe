"""The everyday call of a race: check what was asked for, then conduct it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.core.checks import check_model
from heptane.core.custom_metrics import flatten_metrics
from heptane.core.fit_options import PLAIN, Extras, OptimizerFactory, Plan, accepts_extras
from heptane.core.losses import Loss
from heptane.core.optimizers import PEAK, resolve_optimizer
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


@dataclass(frozen=True, kw_only=True)
class RaceExtras(Extras):
    """Options of a race beside the everyday ones: those of its runs, as in :class:`heptane.Extras`, and of the race."""

    evaluate_every_epochs: float = 0.5
    weights: str = "last"  # a race keeps no weights: it pays for no copy of the best ones
    accumulate: int = 1
    """As in :func:`heptane.fit`."""
    clip_norm: float | None = None
    """As in :func:`heptane.fit`."""
    device: str | None = None
    """As in :func:`heptane.fit`."""
    accuracy_in: float | None = None
    """Race for the best validation accuracy within this many seconds of training, in place of a target."""
    fixed_seeds: bool = False
    """Run all the seeds, also where a verdict is clear sooner, and never more: verdicts are then tested at 5%, in place of
    1%, which leaves room for looking again and again."""
    tune: int = TRIALS
    """Trials per side before the race: learning rates for plain, lengths of the cycle for the arms that have one. 0 takes
    the optimizer's learning rate and ``planned_epochs`` as they are."""
    peak: float = PEAK
    """Peak of a cycle, in multiples of the optimizer's own learning rate, above 0."""
    planned_epochs: float | None = None
    """Length of the arms with a cycle; None is tuned, or ``epochs`` where nothing is."""
    dry_run: bool = False
    """Measure a few steps of each arm, and give a record with ``expected_seconds`` per arm; nothing is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("tune", self.tune, 0, 20, whole=True)
        check_range("peak", self.peak, 0, low_open=True)
        for name in ("accuracy_in", "planned_epochs"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, low_open=True)


@accepts_extras(RaceExtras, *PLAIN)
def race(
    model: Callable[[], torch.nn.Module],
    train: Any,
    valid: Any,
    *,
    optimizer: OptimizerFactory | str,
    lr: float | None = None,
    epochs: float,
    batch_size: int | None = None,
    loss: str | Loss | None = None,
    target: float | tuple[str, float] | None = None,
    tricks: Tricks | None = None,
    arms: Sequence[str] | None = None,
    seeds: int = 3,
    seed: int = 0,
    budget: float | None = None,
    test: Any = None,
    metrics: Any = None,
    out: Any = None,
    resume: bool = False,
    progress: bool = False,
    extras: RaceExtras | None = None,
) -> RaceResult:
    """Race plain training against the tricks, to a target or for a time, and say what each trick is worth.

    Args:
        model: makes a new model each time; it is called after PyTorch's generator was seeded, alike in all arms.
        train, valid, test: as in :func:`heptane.fit`; the target is on ``valid``, ``test`` is read at the end of each run.
        optimizer: a factory, ``params -> torch.optim.Optimizer``, with the learning rate of plain training; or a name, as in
            :func:`heptane.fit`.
        lr: learning rate of plain training where the optimizer is named; None is the name's default.
        epochs: the longest a run may be.
        batch_size, loss, metrics: as in :func:`heptane.fit`.
        target: stop when a validation metric reaches this: an accuracy, or a metric and a value.
        tricks: the set to race; None for the recommended one.
        arms: such as ``["plain", "all"]``, ``all-mixup`` or ``plain+cyclical``; None for every arm.
        seeds: how many, at least 1; there is no verdict on fewer than 2, and few on 2.
        seed: the first of them.
        budget: seconds for the whole race, tuning included; what does not fit is left out, and said.
        out: a folder for ``race.json`` and ``report.html``.
        resume: go on with the race in ``out``: runs that are done are not run again.
        progress: show a live table, or a line per run where there is no terminal.
        extras: everything else: :class:`RaceExtras`.

    Returns:
        A :class:`RaceResult`.

    Raises:
        InputError: input that is wrong, before any training.

    Example:
        >>> x = torch.randn(256, 4)
        >>> data = x, (x.sum(1) > 0).long()
        >>> sgd = lambda params: torch.optim.SGD(params, lr=0.1)
        >>> result = hp.race(lambda: torch.nn.Linear(4, 2), data, data, optimizer=sgd, epochs=4, batch_size=32, target=0.8,
        ...                  tricks=hp.Tricks(cyclical=hp.Cyclical(cycle_momentum=False)), seeds=2,
        ...                  extras=hp.RaceExtras(tune=0))
        >>> [arm["name"] for arm in result.record["arms"]]
        ['plain', 'all']
    """
    extras = extras or RaceExtras()
    plan = Plan(
        optimizer=resolve_optimizer(optimizer, lr)[0],
        epochs=epochs,
        batch_size=batch_size,
        loss=loss,
        seed=seed,
        accumulate=extras.accumulate,
        clip_norm=extras.clip_norm,
        device=extras.device,
    )
    what: dict[str, Any] = {"target": target, "tricks": tricks, "arms": arms, "seeds": seeds, "budget": budget, "test": test}
    request = RaceRequest(model, train, valid, plan, extras, **what, metrics=metrics)
    return request.race(out, resume=resume, progress=progress)


@dataclass
class RaceRequest:
    """What one call of :func:`race` asks for, checked; ``about`` are the command's facts for the record.

    The extras of ``plan`` are replaced by those of ``extras``.

    Raises:
        InputError: a value that is not accepted, or two that contradict each other.
    """

    model: Callable[[], torch.nn.Module]
    train: Any
    valid: Any
    plan: Plan
    extras: RaceExtras
    target: Any = None
    tricks: Any = None
    arms: Any = None
    seeds: int = 3
    budget: float | None = None
    test: Any = None
    metrics: Any = None
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, 1, 1000, whole=True)
        check_range("seed", self.plan.seed, 0, 2**29, whole=True)
        if self.budget is not None:
            check_range("budget", self.budget, 0, low_open=True)
        if (self.target is None) == (self.extras.accuracy_in is None):
            raise InputError("a race needs a target, such as target=0.9, or a time, such as accuracy_in=60; and not both")
        if self.valid is None:
            raise InputError("valid=None: a race is decided on validation data; pass valid")
        if under_launcher():
            raise InputError(
                "a race starts its workers itself: run it without torchrun, with tricks=Tricks(data_parallel=...)"
            )
        if isinstance(self.arms, str):
            raise InputError(f"arms={self.arms!r}: expected a list of names, such as {self.arms.split(',')!r}")
        _check_factory(self.model)
        self.train, self.valid, self.test = (to_tensors(data) for data in (self.train, self.valid, self.test))
        self.metrics = flatten_metrics(self.metrics)
        of_a_run = Extras(**{option.name: getattr(self.extras, option.name) for option in fields(Extras)})
        self.plan = replace(self.plan, extras=of_a_run)
        epochs = self.plan.epochs
        self.chosen = (
            Tricks.recommended(data=self.train, epochs=epochs) if self.tricks is None else check_tricks(self.tricks)
        )

    @property
    def spec(self) -> RaceSpec:
        """What all arms share."""
        goal = check_target(self.target, self.valid, self.metrics)
        return RaceSpec(
            model=self.model,
            train=self.train,
            valid=self.valid,
            test=self.test,
            metrics=self.metrics,
            plan=self.plan,
            metric=goal[0] if goal else "valid_accuracy",
            target=goal[1] if goal else None,
            seconds=self.extras.accuracy_in,
            lower=goal.lower if goal else None,
        )

    def race(self, out: Any = None, *, resume: bool = False, progress: bool = False) -> RaceResult:
        """Race, or measure what a race would take."""
        extras, seed = self.extras, self.plan.seed
        plan = {
            "epochs": float(self.plan.epochs or 0),
            "seeds": list(range(seed, seed + self.seeds)),
            "budget_seconds": self.budget,
            "fixed_seeds": bool(extras.fixed_seeds),
            "tune": extras.tune,
            "peak": float(extras.peak),
            "planned_epochs": extras.planned_epochs,
        }
        spec, arms = self.spec, make_arms(self.chosen, self.arms)
        if out is not None and not extras.dry_run:
            check_folder(out, force=extras.force, resume=resume)
        runner = RaceRunner(spec, arms, self.chosen, plan, self.about)
        if extras.dry_run:
            return RaceResult(runner.dry_run())
        return RaceResult(runner.go(out, force=extras.force, resume=resume, progress=progress))


def _check_factory(model: Any) -> None:
    """Refuse what does not make a new model each time."""
    if isinstance(model, torch.nn.Module) or not callable(model):
        kind = type(model).__name__
        raise InputError(f"model of type {kind}: expected a function that makes a new model, such as lambda: Net()")
    first, second = model(), model()
    check_model(first)
    if first is second:
        raise InputError("model: expected a function that makes a new model each time, and it gave the same one twice")
