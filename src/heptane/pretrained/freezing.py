"""Choose what trains: replace the head, freeze layer groups, keep them in eval mode and set learning rates by depth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from heptane.base.errors import InputError, check_range, did_you_mean
from heptane.base.lazy import torch
from heptane.model.names import without_compiled
from heptane.pretrained.anatomy import Anatomy, anatomy
from heptane.pretrained.layers import find_head
from heptane.pretrained.lora import merge

_FROZEN = "_heptane_frozen"  # attribute of a model: names of the parameters that freeze() froze
_SAVED = "_heptane_saved"  # attribute of a model during a run: what trained before it, and what freeze() had frozen


def swap_head(model: torch.nn.Module, num_classes: int, name: str | None = None) -> str:
    """Replace the classifier by a new one with ``num_classes`` outputs, unless it has that many already.

    The new layer has PyTorch's default initialization, the old layer's device and dtype, and trains. ``num_labels`` of a
    transformers model is updated.

    Args:
        model: changed in place.
        num_classes: number of outputs, 1 or more.
        name: of the classifier, such as ``hp.anatomy(model, inputs).head``; None: the last registered ``Linear``, else the
            last 1x1 ``Conv2d``.

    Returns:
        The classifier's dotted name.

    Raises:
        InputError: no classifier, a lazy one, or a model that is itself the layer to replace.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1000))
        >>> swap_head(net, 10), net[1].out_features
        ('1', 10)
    """
    check_range("num_classes", num_classes, 1, whole=True)
    name, old = head_layer(model, name)
    if old.weight.shape[0] == num_classes:
        return name
    if not name:
        raise InputError(
            f"the model is a single {type(old).__name__}, which cannot be replaced; build it with {num_classes} outputs"
        )
    like: dict[str, Any] = {"bias": old.bias is not None, "dtype": old.weight.dtype}
    if isinstance(old, torch.nn.Linear):
        new: torch.nn.Module = torch.nn.Linear(old.in_features, num_classes, **like)
    else:
        new = torch.nn.Conv2d(old.in_channels, num_classes, 1, old.stride, old.padding, **like)  # type: ignore[arg-type]
    new.to(old.weight.device).train(old.training)
    for other, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(other, new)
    for owner in (model, getattr(model, "config", None)):  # the loss of transformers depends on it
        if getattr(owner, "num_labels", None) == len(old.weight):
            owner.num_labels = num_classes  # type: ignore[union-attr]
    return name


def layer_groups(model: torch.nn.Module, groups: Anatomy | None = None) -> list[tuple[str, list[torch.nn.Parameter]]]:
    """The parameters in groups from the input to the output; the head is in the last.

    Args:
        model: any module.
        groups: its :func:`heptane.anatomy`; None: the library's own grouping, else groups as registered. For the latter,
            containers (``Sequential``, ``ModuleList``, ``ModuleDict``), wrappers and modules with a stack of similar blocks
            are opened; any other module with weights is one group, together with the normalization after it.

    Returns:
        (name, parameters) per group. Each parameter occurs once: one shared with the head in the head's group, the model's
        own (such as a class token) in the first.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))
        >>> [(name, len(parameters)) for name, parameters in layer_groups(net)]
        [('0', 4), ('2', 2)]

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2.
    """
    return [(group.name, group.parameters) for group in (groups or anatomy(model)).groups(model)]


def freeze(model: torch.nn.Module, num_groups: int, groups: Anatomy | None = None) -> list[str]:
    """Freeze the first layer groups, and unfreeze the others if an earlier call froze them.

    What you froze yourself stays frozen. Call it before the model goes to the optimizer and the data-parallel wrapper, and
    use :func:`train_mode` instead of ``model.train()`` afterwards.

    Args:
        model: changed in place.
        num_groups: how many, from the input; 0 to one less than there are, or -1 for all but the head.
        groups: the model's :func:`heptane.anatomy`; None: the library's own grouping, else groups as registered.

    Returns:
        The names of the frozen groups.

    Raises:
        InputError: nothing would be left to train.

    Example:
        >>> freeze(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), -1)
        ['0']

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.3.
    """
    layers = layer_groups(model, groups)
    count = count_frozen("num_groups", num_groups, len(layers))
    frozen = {id(parameter) for _, parameters in layers[:count] for parameter in parameters}
    frozen_names: set[str] = model.__dict__.setdefault(_FROZEN, set())
    for name, parameter in model.named_parameters():
        if id(parameter) in frozen and parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen_names.add(name)
        elif id(parameter) not in frozen and name in frozen_names:
            parameter.requires_grad_(True)
            frozen_names.discard(name)
    return [name for name, _ in layers[:count]]


def save_freezing(model: torch.nn.Module) -> None:
    """Record what trains before a run, and what :func:`freeze` had frozen, for :func:`restore_freezing`."""
    own = ((module, name, p) for module in model.modules() for name, p in module._parameters.items())
    trains = [(module, name, p.requires_grad) for module, name, p in own if p is not None]
    model.__dict__[_SAVED] = trains, set(model.__dict__.get(_FROZEN, ()))


def restore_freezing(model: torch.nn.Module) -> None:
    """After a run, merge adapters and restore what :func:`save_freezing` recorded, if anything."""
    if not isinstance(model, torch.nn.Module):
        return  # the run was refused
    merge(model)
    if _SAVED not in model.__dict__:
        return
    trains, model.__dict__[_FROZEN] = model.__dict__.pop(_SAVED)
    for module, name, trained in trains:
        parameter = module._parameters.get(name)
        if parameter is not None:
            parameter.requires_grad_(trained)


def train_mode(model: torch.nn.Module, groups: Anatomy | None = None) -> torch.nn.Module:
    """Call ``model.train()`` and put frozen layers back in eval mode, so that their BatchNorm statistics do not change.

    Args:
        model: changed in place.
        groups: the model's :func:`heptane.anatomy`; None: the library's own grouping, else groups as registered.

    Returns:
        The model.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 2, 1))
        >>> _ = freeze(net, 1)
        >>> [layer.training for layer in train_mode(net)]
        [False, False, True]
    """
    _set_modes(model, groups, set())
    return model


def frozen_modes(model: torch.nn.Module, groups: Anatomy | None = None) -> None:
    """:func:`train_mode` without transfer: layers that the user froze stay in train mode, as in a hand-written loop."""
    frozen_names = model.__dict__.get(_FROZEN, set())
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    ours = {id(parameter) for name, parameter in model.named_parameters() if name in frozen_names}
    _set_modes(model, groups, frozen - ours)


def _set_modes(model: torch.nn.Module, groups: Anatomy | None, theirs: set[int]) -> None:
    """Train mode, and eval mode for what is frozen, unless all of it is in ``theirs``: ids of parameters frozen by the
    user."""

    def is_ours(parameters: Iterable[torch.nn.Parameter]) -> bool:
        parameters = list(parameters)
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        return frozen and not {id(parameter) for parameter in parameters} <= theirs

    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        if is_ours(module.parameters()):
            module.eval()
    for group in (groups or anatomy(model)).groups(model):
        if is_ours(group.parameters):
            for norm in group.bare_norms:
                norm.eval()


def param_groups(
    model: torch.nn.Module, lr: float, factor: float = 2.6, groups: Anatomy | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one per layer group, each with its learning rate; frozen groups are included.

    Args:
        model: with its final head.
        lr: learning rate of the last group, the head; above 0.
        factor: ratio of the learning rates of adjacent groups, at least 1; 1: all equal.
        groups: the model's :func:`heptane.anatomy`; None: the library's own grouping, else groups as registered.

    Returns:
        A dict per group, from the input, with ``params``, ``lr`` and ``name``.

    Raises:
        InputError: ``lr`` or ``factor`` out of range, or a model without parameters.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> optimizer = torch.optim.SGD(param_groups(net, 0.26), lr=0.26)
        >>> [(group["name"], round(group["lr"], 6)) for group in optimizer.param_groups]
        [('0', 0.1), ('1', 0.26)]

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2.
    """
    check_range("lr", lr, 0, low_open=True)
    check_range("factor", factor, 1)
    layers = layer_groups(model, groups)
    if not layers:
        raise InputError(f"{type(model).__name__} has no parameters: there is nothing to train")
    learning_rates = [lr * (1 / factor) ** (len(layers) - 1 - depth) for depth in range(len(layers))]
    return [
        {"params": params, "lr": group_lr, "name": without_compiled(name)}
        for (name, params), group_lr in zip(layers, learning_rates, strict=True)
    ]


def head_layer(model: torch.nn.Module, name: str | None = None) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d]:
    """The name and module of the model's head; a missing or lazy one is refused."""
    layers = {key: module for key, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    if name is not None and name not in layers:
        raise InputError(f"name={name!r} is not a Linear or Conv2d of the model{did_you_mean(name, layers)}")
    found = find_head(model) if name is None else (name, layers[name])
    if found is None:
        remedy = "set swap_head=False and build the model with the right number of outputs"
        raise InputError(f"{type(model).__name__} does not end in a Linear or a 1x1 Conv2d that could be its head; {remedy}")
    if torch.nn.parameter.is_lazy(found[1].weight):
        raise InputError(f"{found[0] or 'the model'} is lazy and not initialized; run one batch through the model first")
    return found


def count_frozen(field: str, value: int, num_groups: int) -> int:
    """The number of frozen groups that ``value`` means; -1 is all but the head."""
    check_range(field, value, -1, whole=True)
    count = max(num_groups - 1, 0) if value == -1 else value
    if value and count >= num_groups:
        raise InputError(f"{field}={value} leaves nothing of {num_groups} groups to train: expected -1 to {num_groups - 1}")
    return count
