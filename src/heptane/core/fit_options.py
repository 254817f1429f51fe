"""What a run is asked to do: the everyday arguments of :func:`heptane.fit` in a ``Plan``, the rest in ``Extras``.

Each option has its default, its check and its description here. ``fit``, ``train``, ``race``, the command's flags and the
settings file take them from here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ParamSpec, TypeVar

from heptane.base.errors import InputError, check_choice, check_range
from heptane.base.lazy import torch
from heptane.core.losses import CrossEntropy, Loss
from heptane.data.augment import Augment, as_augment
from heptane.data.balance import SAMPLINGS, check_class_weights
from heptane.data.resize import ProgressiveResize
from heptane.model.forward import GRAPH_MODES, check_compile

OptimizerFactory = Callable[[Any], Any]

ON_NAN = ("skip", "stop", "rewind", "ignore")
WEIGHTS = ("best", "last")
PLAIN = ("steps", "augment")  # extras so common that fit takes them by their own names without a warning

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Options beside the everyday ones: ``hp.fit(..., extras=hp.Extras(patience=3, on_nan="stop"))``.

    Raises:
        InputError: a value out of range; the message names the option, the value and what is accepted.
    """

    steps: int | None = None
    """Optimizer steps, at least 1, in place of ``epochs``. Data without a length, such as an ``IterableDataset``, need it;
    a tenth of the steps then counts as an epoch."""
    augment: Augment | Sequence[Augment] | Callable[[Any], Any] | None = None
    """Augmentation, such as ``hp.CropFlip()``; a list of them, in order; or a function from a batch of inputs to one, such
    as torchvision's transforms. A function gets each global batch as a whole, with the global random generators seeded by
    (seed, step)."""
    sampling: str = "shuffle"
    """The order of an epoch: "shuffle", or "balanced", which draws as many samples with replacement, each class with the
    same probability, so that rare classes are seen as often as the others. Needs data in memory."""
    class_weights: str | Sequence[float] | None = None
    """Weights of the classes in the cross-entropy: "balanced", so that each class weighs the same in all, or a number for
    each class. They are scaled to a mean of 1 over the training samples. Needs data in memory."""
    resize: ProgressiveResize | None = None
    """Smaller images at first, such as ``hp.ProgressiveResize(size=20)``."""
    average_decay: float | None = None
    """Evaluate and return an exponential moving average of the weights, with this decay per step, in (0, 1), such as 0.999;
    less at first."""
    compile: bool | str = False
    """Compile the model with ``torch.compile``; compile time counts as training time. Or the name of a mode: on a GPU
    "reduce-overhead" replays CUDA graphs, which pays where a step is many small kernels."""
    evaluate_every_epochs: float = 1.0
    """How often to evaluate on ``valid``, in epochs, above 0."""
    max_seconds: float | None = None
    """Stop after this many seconds of training, above 0, with a last evaluation. Several workers look at the clock only when
    they evaluate."""
    patience: int | None = None
    """Stop after this many evaluations in a row without an improvement, at least 1. It cuts a cycle short."""
    weights: str = "best"
    """Which weights the model ends with: those of the "best" evaluation, by the target's metric, else accuracy, else loss;
    or of the "last" step. The result's metrics, and ``test``, are of these weights."""
    on_nan: str = "skip"
    """What to do with a step whose gradients are not finite (in fp16: at any loss scale): skip it, stop, rewind to the last
    checkpoint and continue after that batch, or ignore: no check, which saves a GPU one
    synchronization per step."""
    nan_limit: int = 10
    """Stop after this many such steps in a row, at least 1."""
    skip_bad: int = 0
    """Leave out up to this many samples that cannot be read, differ in shape or type from the others of their batch, or
    have a label out of range; the notes name them. 0: the first one is an error."""
    force: bool = False
    """Replace the run that ``run_dir`` holds."""
    checkpoint_every: int | str | None = None
    """How often to save a checkpoint in ``run_dir``: every so many steps, or a time such as "90s" or "5m"; None: at each
    evaluation. The best evaluation and the last step are saved in any case."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep, at least 1; the best one is kept too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", as_augment(self.augment))
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The everyday arguments of :func:`heptane.fit` that say how to train, where its other arguments say what."""

    optimizer: OptimizerFactory | str
    lr: float | None = None
    epochs: float | None = None
    batch_size: int | None = None
    loss: str | Loss | CrossEntropy | None = None
    seed: int = 0
    accumulate: int = 1
    clip_norm: float | None = None
    device: str | None = None
    extras: Extras = field(default_factory=Extras)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, torch.optim.Optimizer) or not (
            callable(self.optimizer) or isinstance(self.optimizer, str)
        ):
            raise InputError(
                f"optimizer={type(self.optimizer).__name__}: expected a factory, "
                "such as lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), or a name, such as 'adamw'"
            )
        if not isinstance(self.extras, Extras):
            raise InputError(f"extras={self.extras!r}: expected heptane.Extras(...)")
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"epochs={self.epochs} and steps={self.steps}: expected one of the two")
        check_options(self)
        if self.extras.compile in GRAPH_MODES and self.accumulate > 1:
            raise InputError(
                f"compile={self.extras.compile!r} with accumulate={self.accumulate}: a CUDA graph writes the gradients of "
                "each micro-batch over the last one's; use compile=True or accumulate=1"
            )

    @property
    def steps(self) -> int | None:
        """The length in optimizer steps, where that was given in place of epochs."""
        return self.extras.steps

    @classmethod
    def of(cls, **options: Any) -> Plan:
        """A plan of fields of its own and of :class:`Extras`, by name."""
        return cls(**with_extras(options))

    def facts(self) -> dict[str, Any]:
        """What must be the same on all workers: every option but the optimizer, the loss and the device."""
        own = ("epochs", "batch_size", "seed", "accumulate", "clip_norm")
        extras = ("steps", "sampling", "class_weights", "resize", "average_decay", "on_nan", "nan_limit", "skip_bad")
        return {name: getattr(self, name) for name in own} | {name: getattr(self.extras, name) for name in extras}


def _at_least(name: str, value: Any, low: float) -> None:
    check_range(name, value, low, whole=True)


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "epochs": lambda name, value: check_range(name, value, 0, 1e9, low_open=True),
    "steps": lambda name, value: _at_least(name, value, 1),
    "seed": lambda name, value: check_range(name, value, 0, 2**31, whole=True),
    "accumulate": lambda name, value: _at_least(name, value, 1),
    "clip_norm": lambda name, value: check_range(name, value, 0, low_open=True),
    "average_decay": lambda name, value: check_range(name, value, 0, 1, low_open=True, high_open=True),
    "compile": lambda name, value: check_compile(value),
    "sampling": lambda name, value: check_choice(name, value, SAMPLINGS),
    "class_weights": check_class_weights,
    "evaluate_every_epochs": lambda name, value: check_range(name, value, 0, low_open=True),
    "max_seconds": lambda name, value: check_range(name, value, 0, low_open=True),
    "patience": lambda name, value: _at_least(name, value, 1),
    "weights": lambda name, value: check_choice(name, value, WEIGHTS),
    "on_nan": lambda name, value: check_choice(name, value, ON_NAN),
    "nan_limit": lambda name, value: _at_least(name, value, 1),
    "skip_bad": lambda name, value: _at_least(name, value, 0),
    "keep_checkpoints": lambda name, value: _at_least(name, value, 1),
}
"""The check of each option, by name; None always stands for the default"""


def check_options(options: Any) -> None:
    """Check each field of a dataclass that is an option.

    Raises:
        InputError: the first value that is not accepted.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name in CHECKS and value is not None:
            CHECKS[option.name](option.name, value)


def with_extras(options: dict[str, Any], kind: type[Extras] = Extras) -> dict[str, Any]:
    """``options`` with those that are fields of ``kind`` put into ``extras``."""
    names = {option.name for option in fields(kind)}
    own = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    if own:
        given = rest.get("extras")
        rest["extras"] = kind(**own) if given is None else replace(given, **own)
    return rest


def accepts_extras(kind: type[Extras], *plain: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function with an argument ``extras`` accept the fields of ``kind`` by name too.

    Args:
        kind: of ``extras``.
        plain: names without a warning; the others were arguments of an earlier release.
    """
    names = {option.name for option in fields(kind)}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old := sorted((names & kwargs.keys()) - set(plain)):
                shown = ", ".join(f"{name}=..." for name in old)
                warnings.warn(f"pass extras=heptane.{kind.__name__}({shown})", FutureWarning, stacklevel=2)
            return function(*args, **with_extras(kwargs, kind))

        return call

    return decorate
