"""Find a model's head and group its parameters by depth, from its structure."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from heptane.base.errors import InputError
from heptane.base.lazy import torch

if TYPE_CHECKING:
    from heptane.pretrained.usage import Usage


class Group(NamedTuple):
    """A layer group, which is trained or frozen as a whole: a layer or block and the normalization after it."""

    name: str
    parameters: list[torch.nn.Parameter]
    bare_norms: list[torch.nn.Module]
    """normalizations without parameters, but with running statistics"""


def find_head(model: torch.nn.Module, usage: Usage | None = None) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d] | None:
    """The name and module of the classifier, or None.

    Args:
        model: any module.
        usage: from :func:`~heptane.pretrained.usage.trace_usage`. With it the head is the ``Linear`` or 1x1 ``Conv2d`` used
            last on the way to the output; without it the last registered ``Linear``, else the last ``Conv2d`` if it is 1x1.

    Example:
        >>> find_head(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
        ('2', Linear(in_features=3, out_features=2, bias=True))
    """
    found = [(name, module) for name, module in model.named_modules() if _maps(module)]
    if usage is None:
        found.sort(key=lambda item: isinstance(item[1], torch.nn.Linear))
    else:
        found = sorted((f for f in found if usage.last_of(f[1]) >= 0), key=lambda item: usage.last_of(item[1]))
    linears = [(name, module) for name, module in found if isinstance(module, torch.nn.Linear)]
    ends = found[-1:] if found and _per_position(found[-1][1]) else linears[-1:]
    return ends[0] if ends else None


def _maps(module: torch.nn.Module) -> bool:
    """Whether it is a Linear or a Conv2d, but not the output projection of attention, a subclass of Linear."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return isinstance(module, kinds) and type(module).__name__ != "NonDynamicallyQuantizableLinear"


def _per_position(module: torch.nn.Module) -> bool:
    """Whether it maps each position separately, as a classifier does."""
    return not isinstance(module, torch.nn.Conv2d) or (module.kernel_size == (1, 1) and module.groups == 1)


def depth_groups(model: torch.nn.Module, usage: Usage | None = None) -> list[Group]:
    """The layer groups from the input to the output, the head last; each parameter is in one of them.

    Containers (``Sequential``, ``ModuleList``, ``ModuleDict``), wrappers and modules with a stack of similar blocks are
    opened; any other module with weights is one group. Groups are in the order of ``usage``, or as registered. What an
    evaluation does not use, such as an auxiliary head, joins the head's group.

    Raises:
        InputError: a lazy layer, whose parameters do not exist yet.
    """
    check_not_lazy(model)
    head_name, head = find_head(model, usage) or ("", None)
    last = Group(head_name, list(head.parameters()) if head else [], [])
    seen = {id(parameter) for parameter in last.parameters}
    groups: list[Group] = []
    current = waiting = Group("", [], [])  # parameters before the first layer wait for it
    walk = list(_walk(model, "", head, spine=True))
    if usage:
        walk.sort(key=lambda item: usage.first_of(item[1]))
    for name, module, parameters, opened in walk:
        fresh = [parameter for parameter in dict.fromkeys(parameters) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in fresh)
        if module is head or (head and usage and fresh and usage.first_of(module) == inf):
            current = last
            current.parameters.extend(fresh)
        elif not opened and _is_layer(module, fresh):
            current = Group(name, waiting.parameters + fresh, waiting.bare_norms)
            groups.append(current)
            waiting = Group("", [], [])
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


def check_not_lazy(model: torch.nn.Module) -> None:
    """Refuse a model with lazy layers, whose parameters do not exist yet."""
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has lazy layers that are not initialized; run one batch through it first")


def _walk(
    module: torch.nn.Module, name: str, head: torch.nn.Module | None, *, spine: bool
) -> Iterator[tuple[str, torch.nn.Module, list[torch.nn.Parameter], bool]]:
    """(name, module, parameters, opened) of each layer or block; modules that are opened come before their children.

    ``spine``: the module contains everything but the head, so it is opened whatever its class.
    """
    children = list(module.named_children())
    if module is head or not children or not (spine or _holds_blocks(module)):
        yield name, module, list(module.parameters()), False
        return
    yield name, module, list(module.parameters(recurse=False)), True
    weighty = sum(child is not head and _has_weights(child) for _, child in children)
    for key, child in children:
        yield from _walk(child, f"{name}.{key}".lstrip("."), head, spine=spine and weighty == 1)


def _holds_blocks(module: torch.nn.Module) -> bool:
    """Whether it is a container, or contains a stack of similar blocks, as an encoder or a stage does."""
    containers = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
    for stack in module.modules():
        if isinstance(stack, containers):
            plain = [child for child in stack.children() if not isinstance(child, containers)]
            blocks = [type(child) for child in plain if any(_has_weights(part) for part in child.children())]
            if len(blocks) > len(set(blocks)):
                return True
    return isinstance(module, containers)


def _is_layer(module: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> bool:
    """Whether it starts a group; normalizations and activations belong to the layer before them."""
    return any(p.ndim > 1 for p in parameters) and not isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm))


def _has_weights(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None
