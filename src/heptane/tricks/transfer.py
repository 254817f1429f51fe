"""Transfer learning: start from somebody else's weights, with a new head, a rate per depth and gradual unfreezing.

Equation
    rate of group l-1 = rate of group l / factor; the head, the last of g groups, has the full rate (factor 2.6).
    groups that train at a step = min(g, g - frozen + floor(step / (every epochs * steps per epoch))).

Source
    Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (ULMFiT), arXiv:1801.06146,
    section 3.2 (discriminative fine-tuning) and section 3.3 (gradual unfreezing).

Meets the loop at
    Before the loop: the model (load, swap the head, freeze) and the optimizer (all groups, up front). With gradual
    unfreezing the loop runs phase by phase, and wraps the model for data parallelism again at each.

Costs, and when it does not help
    Nothing per step; frozen groups save their backward pass. The gain is largest on little data (TREC-6: error 10.67%
    to 5.69%) and shrinks as the data grow; weights from a far domain or image size may not pay at all.
    The factor compounds. The paper's network has three LSTM layers; over 20 groups a factor of 2.6 leaves the first one
    1e-8 of the rate, which is freezing: use 1.1 to 1.3 on a deep network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, NamedTuple

from heptane._lazy import torch
from heptane.errors import InputError, check_range
from heptane.weights import find_head, load_weights

_SLACK = 1e-9  # of a period: keeps a step that lies on a boundary there when the period is a rounded product


def head_name(model: torch.nn.Module) -> str:
    """The name of the classifier, the last ``Linear`` in order or else the last 1x1 ``Conv2d``; raises without one.

    Example:
        >>> head_name(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
        '2'
    """
    return _head(model)[0]


def swap_head(model: torch.nn.Module, num_classes: int) -> str:
    """Replace the classifier by a fresh one of ``num_classes`` outputs, unless it has that many already.

    The new layer has PyTorch's usual initial values, on the old one's device and in its dtype. Returns its dotted name;
    raises :class:`InputError` for a model without a head, or that is itself the layer to replace.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1000))
        >>> swap_head(net, 10), net[1].out_features
        ('1', 10)
    """
    check_range("num_classes", num_classes, 1, whole=True)
    name, old = _head(model)
    if old.weight.shape[0] == num_classes:
        return name
    if not name:
        raise InputError(f"the model is one {type(old).__name__}; build it with num_classes={num_classes} instead")
    like: dict[str, Any] = {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, torch.nn.Linear):
        new: torch.nn.Module = torch.nn.Linear(old.in_features, num_classes, **like)
    else:
        new = torch.nn.Conv2d(old.weight.shape[1], num_classes, 1, **like)
    new.train(old.training)
    for other, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(other, new)
    return name


def layer_groups(model: torch.nn.Module) -> list[tuple[str, list[torch.nn.Parameter]]]:
    """The parameters in groups from the input to the output, as registered; the head is the last group.

    Containers (``Sequential``, ``ModuleList``, ``ModuleDict``), wrappers and bodies that hold a stack of like blocks
    are opened; other modules with weights are one group each. A normalisation joins the layer before it.

    Args:
        model: any module.

    Returns:
        (name, parameters) per group; each parameter once, one shared with the head in the head's group, and the
        model's own (such as a class token) in the first.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))
        >>> [(name, len(parameters)) for name, parameters in layer_groups(net)]
        [('0', 4), ('2', 2)]

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2.
    """
    return [(group.name, group.parameters) for group in _groups(model)]


def freeze(model: torch.nn.Module, num_groups: int) -> list[str]:
    """Stop the gradients of the first groups, and start those of all others.

    Call it before the optimizer and the data-parallel wrap see the model, and :func:`train_mode` instead of
    ``model.train()`` afterwards.

    Args:
        model: changed in place.
        num_groups: how many, from the input; 0 to one less than there are, or -1 for all but the head.

    Returns:
        The names of the frozen groups.

    Raises:
        InputError: nothing would be left to train.

    Example:
        >>> freeze(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), -1)
        ['0']

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.3.
    """
    groups = layer_groups(model)
    count = _count_frozen("num_groups", num_groups, len(groups))
    for index, (_, parameters) in enumerate(groups):
        for parameter in parameters:
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(index >= count)
    return [name for name, _ in groups[:count]]


def train_mode(model: torch.nn.Module) -> torch.nn.Module:
    """``model.train()``, and then what is frozen back in eval mode, so that its BatchNorm keeps its statistics.

    Args:
        model: changed in place.

    Returns:
        The model.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 2, 1))
        >>> _ = freeze(net, 1)
        >>> [layer.training for layer in train_mode(net)]
        [False, False, True]
    """
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return model
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    for group in _groups(model):
        if not any(parameter.requires_grad for parameter in group.parameters):
            for norm in group.bare_norms:
                norm.eval()
    return model


def param_groups(model: torch.nn.Module, lr: float, factor: float = 2.6) -> list[dict[str, Any]]:
    """An optimizer's parameter groups, one per depth, each with its own rate; the frozen ones are there too.

    Args:
        model: after its head was swapped.
        lr: the rate of the last group, the head; more than 0.
        factor: each group has the rate of the next one divided by this, 1 (all equal) or more.

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
    groups = layer_groups(model)
    if not groups:
        raise InputError(f"{type(model).__name__} has no parameters: there is nothing to train")
    rates = [lr * (1 / factor) ** (len(groups) - 1 - depth) for depth in range(len(groups))]
    return [{"params": params, "lr": rate, "name": name} for (name, params), rate in zip(groups, rates, strict=True)]


def unfrozen_groups(step: int, *, num_groups: int, frozen: int, every_steps: float) -> int:
    """The number of groups, from the last, that train at a step: one more after each ``every_steps``; 0: never.

    Example:
        >>> [unfrozen_groups(step, num_groups=4, frozen=3, every_steps=10) for step in (0, 9, 10, 25, 99)]
        [1, 1, 2, 3, 4]
    """
    thawed = floor(step / every_steps + _SLACK) if every_steps else 0
    return num_groups - max(frozen - thawed, 0)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Start from pretrained weights.

    Example:
        >>> Transfer(freeze=-1, unfreeze_every_epochs=1).phases(total_steps=40, steps_per_epoch=10, num_groups=3)
        [(0, 2), (10, 1), (20, 0)]
    """

    weights: str | None = None
    """The file to start from (.safetensors, .pth, .pt, .bin, .ckpt); None: the weights that the model holds."""
    swap_head: bool = True
    """Replace the classifier when its number of outputs is not the number of classes."""
    freeze: int = 0
    """Freeze the first so many groups; -1: all but the head."""
    unfreeze_every_epochs: float = 0.0
    """Unfreeze one more group, from the last, every so many epochs; 0: never."""
    rate_factor: float = 2.6
    """Each group has the rate of the next one divided by this, 1 or more; 1: equal rates."""
    min_match: float = 0.5
    """The least share of the parameters outside the head that the file must hold, 0 to 1."""

    def __post_init__(self) -> None:
        if self.weights is not None and (not isinstance(self.weights, str) or not self.weights):
            raise InputError(f"Transfer.weights={self.weights!r}: expected the path of a file, or None")
        if not isinstance(self.swap_head, bool):
            raise InputError(f"Transfer.swap_head={self.swap_head!r}: expected True or False")
        check_range("Transfer.freeze", self.freeze, -1, whole=True)
        check_range("Transfer.unfreeze_every_epochs", self.unfreeze_every_epochs, 0)
        check_range("Transfer.rate_factor", self.rate_factor, 1)
        check_range("Transfer.min_match", self.min_match, 0, 1)
        if self.unfreeze_every_epochs and not self.freeze:
            every = self.unfreeze_every_epochs
            raise InputError(f"Transfer.unfreeze_every_epochs={every:g} has nothing to unfreeze: set freeze, say to -1")

    def prepare(self, model: torch.nn.Module, num_classes: int | None) -> list[str]:
        """Load, swap the head and freeze, in that order; returns a sentence for the log on each thing done."""
        said = []
        if self.weights is not None:
            report = load_weights(model, self.weights, min_match=self.min_match)
            said += [f"{self.weights}: {line}" for line in str(report).splitlines()]
        if self.swap_head and num_classes is not None:
            outputs = _head(model)[1].weight.shape[0]
            name = swap_head(model, num_classes) or type(model).__name__
            done = "kept" if outputs == num_classes else f"replaced: {outputs} -> {num_classes} outputs"
            said.append(f"head {name} {done}")
        groups = layer_groups(model)
        frozen = _count_frozen("Transfer.freeze", self.freeze, len(groups))
        if frozen:
            freeze(model, frozen)
            said.append(f"frozen: the first {frozen} of {len(groups)} groups, up to {groups[frozen - 1][0]}")
        if self.rate_factor > 1 and len(groups) > 1:
            least = self.rate_factor ** (1 - len(groups))
            first = f"{groups[0][0]} has {least:.1e} of the head's"
            said.append(f"rates fall {self.rate_factor:g} times per group, {len(groups)} groups: {first}")
        return said

    def param_groups(self, model: torch.nn.Module, lr: float) -> list[dict[str, Any]]:
        """All of the optimizer's groups, up front; see :func:`param_groups`."""
        return param_groups(model, lr, self.rate_factor)

    def phases(self, total_steps: int, steps_per_epoch: int, num_groups: int) -> list[tuple[int, int]]:
        """(first step, frozen groups) for each stretch of steps with the same groups frozen; the first starts at 0."""
        check_range("total_steps", total_steps, 1, whole=True)
        check_range("steps_per_epoch", steps_per_epoch, 1, whole=True)
        frozen = _count_frozen("Transfer.freeze", self.freeze, num_groups)
        every_steps = self.unfreeze_every_epochs * steps_per_epoch
        starts = {0: frozen}
        for thawed in range(1, frozen + 1 if every_steps else 1):
            starts[ceil((thawed - _SLACK) * every_steps)] = frozen - thawed
        return [(step, count) for step, count in starts.items() if step < total_steps]


def _head(model: torch.nn.Module) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d]:
    found = find_head(model)
    if found is None:
        remedy = "set swap_head=False and give the model the right number of outputs yourself"
        raise InputError(f"{type(model).__name__} does not end in a Linear or a 1x1 Conv2d that could be its head; {remedy}")
    return found


def _count_frozen(field: str, value: int, num_groups: int) -> int:
    """How many groups ``value`` means; -1 is all but the head."""
    check_range(field, value, -1, whole=True)
    count = max(num_groups - 1, 0) if value == -1 else value
    if value and count >= num_groups:
        raise InputError(f"{field}={value} leaves nothing of {num_groups} groups to train: expected -1 to {num_groups - 1}")
    return count


class _Group(NamedTuple):
    name: str
    parameters: list[torch.nn.Parameter]
    bare_norms: list[torch.nn.Module]  # normalisations without parameters, but with statistics


def _groups(model: torch.nn.Module) -> list[_Group]:
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has lazy layers without a shape yet; run one batch through it first")
    head_path, head = find_head(model) or ("", None)
    last = _Group(head_path, list(head.parameters()) if head else [], [])
    seen = {id(parameter) for parameter in last.parameters}
    groups: list[_Group] = []
    current = waiting = _Group("", [], [])  # what comes before the first layer waits for it
    for name, module, parameters, opened in _walk(model, "", head, spine=True):
        fresh = [parameter for parameter in dict.fromkeys(parameters) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in fresh)
        if module is head:
            current = last
        elif not opened and any(parameter.ndim > 1 for parameter in fresh):
            current = _Group(name, waiting.parameters + fresh, waiting.bare_norms)
            groups.append(current)
            waiting = _Group("", [], [])
        else:
            joined = waiting if opened else current
            joined.parameters.extend(fresh)
            if not parameters and isinstance(module, torch.nn.modules.batchnorm._NormBase):
                joined.bare_norms.append(module)
    groups += [last] if head else []
    if not groups:
        return [waiting] if waiting.parameters else []
    joined = groups[0] if current is waiting else current
    joined.parameters[:0] = waiting.parameters
    joined.bare_norms.extend(waiting.bare_norms)
    return groups


def _walk(
    module: torch.nn.Module, name: str, head: torch.nn.Module | None, *, spine: bool
) -> Iterator[tuple[str, torch.nn.Module, list[torch.nn.Parameter], bool]]:
    """(name, module, parameters, opened) of each layer or block, and before its children of what is opened.

    ``spine``: the module holds all of the model but its head, so it is opened whatever its class.
    """
    children = list(module.named_children())
    if module is head or not children or not (spine or _holds_blocks(module)):
        yield name, module, list(module.parameters()), False
        return
    yield name, module, list(module.parameters(recurse=False)), True
    weighty = sum(child is not head and _weighty(child) for _, child in children)
    for key, child in children:
        yield from _walk(child, f"{name}.{key}".lstrip("."), head, spine=spine and weighty == 1)


def _holds_blocks(module: torch.nn.Module) -> bool:
    """Is it a container, or a body: something with a stack of like blocks, as an encoder or a stage is?"""
    containers = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
    for stack in module.modules():
        if isinstance(stack, containers):
            plain = [child for child in stack.children() if not isinstance(child, containers)]
            blocks = [type(child) for child in plain if any(_weighty(part) for part in child.children())]
            if len(blocks) > len(set(blocks)):
                return True
    return isinstance(module, containers)


def _weighty(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None
