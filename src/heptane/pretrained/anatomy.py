"""A model's layer groups: from the user's list, its library's grouping, the order of use, or the order of registration."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any, NamedTuple

from heptane.base.errors import InputError, did_you_mean
from heptane.base.lazy import torch
from heptane.model.names import without_compiled
from heptane.pretrained.layers import Group, check_not_lazy, depth_groups, find_head
from heptane.pretrained.weights.names import abbreviate

LISTED, TIMM, TRANSFORMERS = "your list", "timm's own grouping", "the grouping of transformers"
USED, REGISTERED = "order of use", "order of registration"


class Layer(NamedTuple):
    """A layer group, by names: trained or frozen as a whole."""

    name: str
    parameters: tuple[str, ...]
    bare_norms: tuple[str, ...] = ()
    """modules: normalizations without parameters, but with running statistics"""


@dataclass(frozen=True)
class Anatomy:
    """The layer groups of a model from the input to the output, by name, so that they also apply to its converted or sharded
    copies."""

    layers: tuple[Layer, ...]
    head: str | None
    """the classifier's name, or None if there is none"""
    by: str
    """where the grouping comes from"""

    def groups(self, model: torch.nn.Module) -> list[Group]:
        """The groups with the parameters of ``model``; parameters added to a layer since, such as adapters, join its
        group."""
        modules = dict(model.named_modules())
        groups = [Group(layer.name, [], [modules[name] for name in layer.bare_norms]) for layer in self.layers]
        owner = {path: at for at, layer in enumerate(self.layers) for name in layer.parameters for path in _paths(name)}
        for name, parameter in model.named_parameters():
            groups[next(owner[path] for path in _paths(name) if path in owner)].parameters.append(parameter)
        return groups


def _paths(name: str) -> list[str]:
    """The parameter ``a.b.c`` and what contains it: ``a.b.c``, ``a.b``, ``a`` and "" for the model."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def anatomy(model: torch.nn.Module, inputs: Any = None, labels: Any = None, *, groups: Sequence[str] = ()) -> Anatomy:
    """The layer groups of a model, each trained or frozen as a whole, from the input to the output, the head last.

    They are those of ``groups`` if given; else the library's own, for a timm or transformers model; else layers and blocks
    in the order in which an evaluation of ``inputs`` uses them, or without inputs as registered. What that evaluation does
    not use, such as an auxiliary head, joins the head's group.

    Args:
        model: any module; it is left unchanged.
        inputs: a few samples, on the model's device.
        labels: for a model that computes its loss.
        groups: names of modules or parameters, or patterns with ``*``, from the input to the output; a parameter joins the
            group with the longest matching name. The head's group is the last and need not be listed.

    Raises:
        InputError: a lazy layer; a name that matches nothing; parameters that no name matches; a head that is not last.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
        >>> [layer.name for layer in hp.anatomy(net, groups=("0", "1")).layers]
        ['0', '1', '2']
    """
    check_not_lazy(model)
    usage = None
    if inputs is not None:
        from heptane.pretrained.usage import trace_usage

        usage = trace_usage(model, inputs, labels)
    head = find_head(model, usage)
    found, by = _listed(model, groups, head), LISTED
    if found is None:
        found, by = _of_timm(model), TIMM
    if found is None:
        found, by = _of_transformers(model), TRANSFORMERS
    if found is None:
        names = {id(module): name for name, module in (*model.named_parameters(), *model.named_modules())}
        layers = tuple(
            Layer(group.name, tuple(names[id(p)] for p in group.parameters), tuple(names[id(n)] for n in group.bare_norms))
            for group in depth_groups(model, usage)
        )
        return Anatomy(layers, head and head[0], USED if usage else REGISTERED)
    layers = _with_norms(model, found if by == LISTED else _head_last(model, found, head))
    return Anatomy(layers, head and head[0], by)


def _listed(model: torch.nn.Module, patterns: Sequence[str], head: tuple[str, Any] | None) -> list[Layer] | None:
    """Groups from the user's list; a parameter that the head shares with another layer joins the head."""
    if not patterns:
        return None
    aliases = _aliases(model, head)
    members: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    unlisted: list[str] = []
    for name, known in aliases.items():
        matching = [pattern for pattern in patterns if any(_matches(pattern, alias) for alias in known)]
        (members[max(matching, key=len)] if matching else unlisted).append(name)
    for pattern in (pattern for pattern, inside in members.items() if not inside):
        if any(_matches(pattern, name) for name, _ in model.named_parameters(remove_duplicate=False)):
            raise InputError(f"groups: {pattern!r} is covered by longer names or by the head: leave it out")
        everything = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
        raise InputError(f"groups: {pattern!r} matches none of the model's names{did_you_mean(pattern, everything)}")
    own = _own_names(model, head)
    missing = [name for name in unlisted if name not in own]
    if missing:
        raise InputError(f"groups: no group contains {abbreviate(missing)}: list the modules that hold them")
    layers = [Layer(pattern, tuple(inside)) for pattern, inside in members.items()]
    layers += [Layer(head[0], tuple(unlisted))] if head and unlisted else []
    for layer in layers[:-1]:
        if own & set(layer.parameters):
            raise InputError(f"groups: {layer.name!r} contains the head {head and head[0]!r}: list the head last")
    return layers


def _aliases(model: torch.nn.Module, head: tuple[str, Any] | None) -> dict[str, list[str]]:
    """All names of each parameter; for one that the head shares, only its name in the head."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[names[id(parameter)]].append(name)
    for key, parameter in head[1].named_parameters() if head else ():
        found[names[id(parameter)]] = [f"{head[0]}.{key}".lstrip(".")] if head else []
    return found


def _own_names(model: torch.nn.Module, head: tuple[str, Any] | None) -> set[str]:
    """The names of the head's parameters, as ``named_parameters`` lists them."""
    own = {id(parameter) for parameter in head[1].parameters()} if head else set()
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def _matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` matches a parameter or a module that contains it."""
    return any(fnmatchcase(path, pattern) for path in (*_paths(name)[:-1], *_paths(without_compiled(name))[:-1]))


def _of_timm(model: torch.nn.Module) -> list[Layer] | None:
    """timm's own groups, which it uses for layer-wise learning rates."""
    matcher: Any = getattr(model, "group_matcher", None)
    if "timm" not in sys.modules or not callable(matcher):
        return None
    from timm.models import group_parameters

    found = group_parameters(model, matcher(coarse=False))
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    named = [(_name_of([n for n in names if n not in vectors] or names), names) for _, names in sorted(found.items())]
    return [Layer(name, tuple(names)) for name, names in named]


def _of_transformers(model: torch.nn.Module) -> list[Layer] | None:
    """The groups of a transformers model: embeddings, each layer of the base model's stacks, what follows them (a pooler),
    and the head.

    A normalization after a layer belongs to it.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    base = model.base_model
    path = next(name for name, module in model.named_modules() if module is base)
    stacks = list(_stacks(base, path))
    owner = {id(parameter): name for name, layer in stacks for parameter in layer.parameters()}
    inner = {id(parameter) for parameter in base.parameters()}
    members: dict[str, list[str]] = {key: [] for key in ("before", *(name for name, _ in stacks), "after", "head")}
    current = "before"
    for name, parameter in model.named_parameters():
        if id(parameter) not in inner:
            current = "head"
        elif id(parameter) in owner:
            current = owner[id(parameter)]
        elif stacks and current == stacks[-1][0] and parameter.ndim > 1:
            current = "after"
        members[current].append(name)
    titles = {key: _name_of(members[key], limit=len(path.split(".")) + 1) for key in ("before", "after") if members[key]}
    titles |= {"head": _name_of(members["head"][::-1])} if members["head"] else {}
    return [Layer(titles.get(key, key), tuple(names)) for key, names in members.items() if names]


def _stacks(module: torch.nn.Module, name: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """(name, layer) of each layer in the outermost stacks of the module."""
    for key, child in module.named_children():
        path = f"{name}.{key}".lstrip(".")
        if isinstance(child, torch.nn.ModuleList) and all(any(True for _ in block.parameters()) for block in child):
            yield from ((f"{path}.{index}", block) for index, block in enumerate(child))
        else:
            yield from _stacks(child, path)


def _head_last(model: torch.nn.Module, layers: list[Layer], head: tuple[str, Any] | None) -> list[Layer]:
    """The library's groups, with the head's parameters moved to the last."""
    own = _own_names(model, head)
    if not head or own <= set(layers[-1].parameters):
        return layers
    rest = [Layer(layer.name, tuple(name for name in layer.parameters if name not in own)) for layer in layers]
    return [*(layer for layer in rest if layer.parameters), Layer(head[0], tuple(sorted(own)))]


def _with_norms(model: torch.nn.Module, layers: list[Layer]) -> tuple[Layer, ...]:
    """The groups, with each normalization without parameters in the group of the layer registered before it."""
    owner = {name: index for index, layer in enumerate(layers) for name in layer.parameters}
    norms: list[list[str]] = [[] for _ in layers]
    current = 0
    for path, module in model.named_modules():
        own = [f"{path}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
        current = next((owner[name] for name in own if name in owner), current)
        if not own and isinstance(module, torch.nn.modules.batchnorm._NormBase):
            norms[current].append(path)
    return tuple(layer._replace(bare_norms=tuple(own)) for layer, own in zip(layers, norms, strict=True))


def _name_of(names: Iterable[str], limit: int | None = None) -> str:
    """The innermost module, up to depth ``limit``, that contains all of these parameters; else that of the first."""
    paths = [name.split(".")[:-1] or [name] for name in names]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    return ".".join((common or paths[0])[:limit])
