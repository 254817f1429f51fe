"""The anatomy of a model: which layer is its head, and which parameters lie at which depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from heptane._lazy import torch
from heptane.errors import InputError


class Group(NamedTuple):
    """What trains, and is frozen, together: a layer or a block, and the normalisation after it."""

    name: str
    parameters: list[torch.nn.Parameter]
    bare_norms: list[torch.nn.Module]
    """normalisations without parameters, but with statistics"""


def find_head(model: torch.nn.Module) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d] | None:
    """The name and module of the classifier: the last ``Linear`` as registered, else the last ``Conv2d`` if 1x1, else None.

    Example:
        >>> find_head(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
        ('2', Linear(in_features=3, out_features=2, bias=True))
    """
    linears: list[tuple[str, torch.nn.Linear | torch.nn.Conv2d]] = []
    convolutions: list[tuple[str, torch.nn.Linear | torch.nn.Conv2d]] = []
    for name, module in model.named_modules():
        # Attention keeps its output projection in a subclass of Linear that is never a classifier.
        if isinstance(module, torch.nn.Linear) and type(module).__name__ != "NonDynamicallyQuantizableLinear":
            linears.append((name, module))
        elif isinstance(module, torch.nn.Conv2d):
            convolutions.append((name, module))
    if linears or not convolutions:
        return linears[-1] if linears else None
    last = convolutions[-1][1]
    return convolutions[-1] if last.kernel_size == (1, 1) and last.groups == 1 else None


def depth_groups(model: torch.nn.Module) -> list[Group]:
    """The model's groups from the input to the output, as registered, the head last; each parameter is in one of them.

    Containers (``Sequential``, ``ModuleList``, ``ModuleDict``), wrappers and bodies that hold a stack of like blocks
    are opened; other modules with weights are one group each.

    Raises:
        InputError: a lazy layer, whose parameters do not exist yet.
    """
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError(f"{type(model).__name__} has lazy layers without a shape yet; run one batch through it first")
    head_name, head = find_head(model) or ("", None)
    last = Group(head_name, list(head.parameters()) if head else [], [])
    seen = {id(parameter) for parameter in last.parameters}
    groups: list[Group] = []
    current = waiting = Group("", [], [])  # what comes before the first layer waits for it
    for name, module, parameters, opened in _walk(model, "", head, spine=True):
        fresh = [parameter for parameter in dict.fromkeys(parameters) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in fresh)
        if module is head:
            current = last
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


def _is_layer(module: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> bool:
    """Does it begin a group? Not a normalisation or an activation, which belong to the layer before them."""
    return any(p.ndim > 1 for p in parameters) and not isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm))


def _weighty(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None
