"""PyTorch's optimizers by name, with the learning rates that are a fair start for a batch of 128."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_range, nearest, one_line
from heptane.base.lazy import torch

if TYPE_CHECKING:
    from heptane.core.run import OptimizerFactory

REFERENCE_BATCH = 128
LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "nadam": 1e-3, "radam": 1e-3, "rmsprop": 1e-3, "adagrad": 1e-2}
PEAK = 3.0  # a cycle's peak may stand this far above a constant rate
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD
EXCLUDED = ("optimizer", "lbfgs", "sparseadam")  # the base class; many losses per step; sparse gradients only


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer of ``torch.optim`` by its name in lower case."""
    found = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    return {n: k for n, k in found.items() if issubclass(k, torch.optim.Optimizer) and n not in EXCLUDED}


def default_lr(name: str, *, peak: bool) -> float:
    """The learning rate for a batch of 128 where none is given; as the peak of a cycle it is 3 times as high.

    Raises:
        InputError: an optimizer without a default.

    Example:
        >>> default_rate("sgd", peak=True)
        0.3
    """
    if name not in LEARNING_RATES:
        raise InputError(f"lr=None: there is no default learning rate for optimizer {name!r}; pass lr (--lr)")
    return round(LEARNING_RATES[name] * (PEAK if peak else 1.0), 12)


def optimizer_factory(
    name: str, lr: float, *, momentum: float | None = None, weight_decay: float | None = None
) -> OptimizerFactory:
    """A factory for :func:`heptane.fit`.

    Args:
        name: of a class in ``torch.optim``, in any case, such as "sgd" or "adamw".
        lr: learning rate, above 0.
        momentum: in [0, 1); None is 0.9 with Nesterov's form for SGD, and the optimizer's own default elsewhere.
        weight_decay: at least 0; None is 5e-4 for SGD, and the optimizer's own default elsewhere.

    Raises:
        InputError: an unknown name, with the nearest one, or a value out of range.

    Example:
        >>> factory("sgd", 0.1)([torch.nn.Parameter(torch.zeros(1))]).defaults["nesterov"]
        True
    """
    known = optimizer_classes()
    if name.lower() not in known:
        raise InputError(f"optimizer={name!r} is not known{nearest(name.lower(), known)}: expected {', '.join(known)}")
    check_range("lr", lr, 0, low_open=True)
    settings: dict[str, Any] = {"lr": lr}
    if name.lower() == "sgd":
        momentum = MOMENTUM if momentum is None else momentum
        weight_decay = WEIGHT_DECAY if weight_decay is None else weight_decay
        settings["nesterov"] = momentum > 0
    if momentum is not None:
        check_range("momentum", momentum, 0, 1, high_open=True)
        settings["momentum"] = momentum
    if weight_decay is not None:
        check_range("weight_decay", weight_decay, 0)
        settings["weight_decay"] = weight_decay
    kind = known[name.lower()]

    def build(params: Any) -> torch.optim.Optimizer:
        try:
            return kind(params, **settings)
        except TypeError as error:
            raise InputError(f"optimizer {name!r} does not take {', '.join(settings)} ({error})") from None

    return build


def resolve_optimizer(optimizer: Any, lr: float | None = None, *, peak: bool = False) -> tuple[Any, str]:
    """What ``optimizer=`` and ``lr=`` were given, as a factory; and what to say of it.

    Args:
        optimizer: a name, or a factory, which brings its own rate.
        lr: None is the default of that name for a batch of 128.
        peak: the rate is the peak of a cycle, whose default is 3 times as high.

    Raises:
        InputError: an unknown name; a rate beside a factory, or none for a name without a default.

    Example:
        >>> resolve("adamw")[1]
        'optimizer adamw: lr 0.001, its default for a batch of 128'
    """
    if not isinstance(optimizer, str):
        if lr is not None:
            raise InputError(f"lr={lr!r} and an optimizer that is no name: set the rate where the optimizer is built")
        return optimizer, ""
    build = optimizer_factory(optimizer, 1.0 if lr is None else lr)
    if lr is not None:
        return build, f"optimizer {optimizer}: lr {lr:g}, asked for"
    rate = default_lr(optimizer.lower(), peak=peak)
    of = "of a cycle's peak " if peak else ""
    return optimizer_factory(
        optimizer, rate
    ), f"optimizer {optimizer}: lr {rate:g}, its default {of}for a batch of {REFERENCE_BATCH}"


def build_optimizer(factory: OptimizerFactory, params: list[Any]) -> Any:
    """What a factory makes of ``params``, a list: a generator would be used up by the first look at it.

    Raises:
        InputError: PyTorch refuses what the factory gives it, or a parameter is listed twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")  # refused below
            built = factory(params)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"the optimizer factory failed ({one_line(error)}): it is given {len(params)} parameters or groups of them, and "
            "must give each parameter to the optimizer once, with settings that it takes"
        ) from error
    for at, group in enumerate(getattr(built, "param_groups", ())):
        twice = len(group["params"]) - len({id(parameter) for parameter in group["params"]})
        if twice:
            raise InputError(
                f"the optimizer factory lists {twice} parameter(s) twice in group {at}, where they would be stepped twice: "
                "give each parameter to the optimizer once"
            )
    return built


def has_momentum(factory: OptimizerFactory) -> bool:
    """Whether what the factory builds has a momentum (or beta1) above 0, that a cycle can move."""
    group = factory([torch.nn.Parameter(torch.zeros(1, device="cpu"))]).param_groups[0]
    return bool(group["betas"][0] > 0 if "betas" in group else group.get("momentum", 0) > 0)
