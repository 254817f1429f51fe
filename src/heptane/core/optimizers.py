"""PyTorch's optimizers by name, with default learning rates for a batch of 128."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_range, did_you_mean, one_line
from heptane.base.lazy import torch
from heptane.core.checks import check_optimizer

if TYPE_CHECKING:
    from heptane.core.fit_options import OptimizerFactory

REFERENCE_BATCH = 128
LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "nadam": 1e-3, "radam": 1e-3, "rmsprop": 1e-3, "adagrad": 1e-2}
PEAK = 3.0  # default peak of a cycle, as a multiple of the constant learning rate
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD
EXCLUDED = ("optimizer", "lbfgs", "sparseadam")  # the base class; several losses per step; sparse gradients only


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """The optimizers of ``torch.optim`` by their names in lower case."""
    found = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    return {n: k for n, k in found.items() if issubclass(k, torch.optim.Optimizer) and n not in EXCLUDED}


def default_lr(name: str, *, peak: bool) -> float:
    """The default learning rate for a batch of 128; as the peak of a cycle it is 3 times as high.

    Raises:
        InputError: the optimizer has no default.

    Example:
        >>> default_lr("sgd", peak=True)
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
        name: a class of ``torch.optim``, in any case, such as "sgd" or "adamw".
        lr: learning rate, above 0.
        momentum: in [0, 1); None: 0.9 with Nesterov momentum for SGD, the optimizer's own default elsewhere.
        weight_decay: at least 0; None: 5e-4 for SGD, the optimizer's own default elsewhere.

    Raises:
        InputError: an unknown name, with the did_you_mean one, or a value out of range.

    Example:
        >>> optimizer_factory("sgd", 0.1)([torch.nn.Parameter(torch.zeros(1))]).defaults["nesterov"]
        True
    """
    known = optimizer_classes()
    if name.lower() not in known:
        raise InputError(f"optimizer={name!r} is not known{did_you_mean(name.lower(), known)}: expected {', '.join(known)}")
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
    """Turn the arguments ``optimizer`` and ``lr`` into a factory and a note for the user.

    Args:
        optimizer: a name, or a factory, which sets its own learning rate.
        lr: None: the default of that name for a batch of 128.
        peak: the learning rate is the peak of a cycle, whose default is 3 times as high.

    Raises:
        InputError: an unknown name; ``lr`` together with a factory; no ``lr`` for a name without a default.

    Example:
        >>> resolve_optimizer("adamw")[1]
        'optimizer adamw: lr 0.001, its default for a batch of 128'
    """
    if not isinstance(optimizer, str):
        if lr is not None:
            raise InputError(f"lr={lr!r} with an optimizer factory: set the learning rate in the factory")
        return optimizer, ""
    build = optimizer_factory(optimizer, 1.0 if lr is None else lr)
    if lr is not None:
        return build, f"optimizer {optimizer}: lr {lr:g}, asked for"
    lr = default_lr(optimizer.lower(), peak=peak)
    of = "of a cycle's peak " if peak else ""
    note = f"optimizer {optimizer}: lr {lr:g}, its default {of}for a batch of {REFERENCE_BATCH}"
    return optimizer_factory(optimizer, lr), note


def build_optimizer(factory: OptimizerFactory, params: list[Any]) -> Any:
    """Build an optimizer from a factory; ``params`` is a list, since a generator could be read only once.

    Raises:
        InputError: PyTorch refuses the factory's settings, or a parameter is listed twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")  # refused below
            built = factory(params)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"the optimizer factory failed ({one_line(error)}): it received {len(params)} parameters or parameter groups "
            "and must pass each parameter to the optimizer once, with valid settings"
        ) from error
    for at, group in enumerate(getattr(built, "param_groups", ())):
        twice = len(group["params"]) - len({id(parameter) for parameter in group["params"]})
        if twice:
            raise InputError(
                f"the optimizer factory lists {twice} parameter(s) twice in group {at}, which would update them twice: "
                "pass each parameter to the optimizer once"
            )
    return built


def model_optimizer(
    factory: OptimizerFactory,
    model: torch.nn.Module,
    of_loss: list[torch.nn.Parameter],
    groups: list[dict[str, Any]] | None,
) -> torch.optim.Optimizer:
    """The optimizer of the model's parameters and, after them, of the loss's.

    Args:
        factory: the user's.
        model: whose parameters train.
        of_loss: the parameters of the loss.
        groups: groups of the model's parameters, with factors of the learning rate as ``lr``; None for one group.
    """
    if groups is None:
        built: torch.optim.Optimizer = build_optimizer(factory, list(model.parameters()))
        check_optimizer(built, None)
        held = {id(parameter) for group in built.param_groups for parameter in group["params"]}
        if not all(id(parameter) in held for parameter in of_loss):  # unless the factory has put them in by itself
            built = build_optimizer(factory, [*model.parameters(), *of_loss])
        return built
    groups = groups + ([{"params": of_loss, "lr": 1.0, "name": "loss"}] if of_loss else [])
    built = build_optimizer(factory, [{"params": group["params"], "name": group["name"]} for group in groups])
    check_optimizer(built, len(groups))
    for group, factor in zip(built.param_groups, groups, strict=True):
        group["lr"] = group["lr"] * factor["lr"]
    return built


def has_momentum(factory: OptimizerFactory) -> bool:
    """Whether the optimizer that the factory builds has a momentum (or beta1) above 0, which can be cycled."""
    group = factory([torch.nn.Parameter(torch.zeros(1, device="cpu"))]).param_groups[0]
    return bool(group["betas"][0] > 0 if "betas" in group else group.get("momentum", 0) > 0)


def switch_weights(optimizer: Any, mode: str) -> None:
    """Switch an optimizer that keeps different weights for training and evaluation, such as a schedule-free one.

    Args:
        optimizer: any; one without the method is left as it is.
        mode: the method to call, "train" or "eval".
    """
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()
