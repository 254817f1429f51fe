"""How a model is called: a dict of inputs by keyword, of a transformers answer what the loss looks at; and compiled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from heptane.base.errors import check_choice
from heptane.base.lazy import torch
from heptane.base.tree import tree_map

GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of these: on a GPU they replay CUDA graphs
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # torch.compile's own
_BY_KEYWORD: WeakKeyDictionary[torch.nn.Module, dict[frozenset[str], bool]] = WeakKeyDictionary()


def call(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """The model's output for a batch.

    Args:
        model: a module, also one that is wrapped for several workers or compiled.
        inputs: a dict whose keys are names of ``forward``'s parameters goes in by keyword; anything else is one argument.
        labels: given as ``labels=`` to a model that computes its loss itself; None: it is not asked to.

    Returns:
        What the model gives. Of a transformers ``ModelOutput`` the logits, or all of it as a dict where it holds a loss.
    """
    named = inputs if isinstance(inputs, MutableMapping) and by_keyword(model, inputs) else None
    if labels is not None:
        output = model(**named, labels=labels) if named is not None else model(inputs, labels=labels)
    else:
        output = model(inputs) if named is None else model(**named)
    if not isinstance(output, MutableMapping) or not hasattr(output, "to_tuple"):
        return output
    return output["logits"] if output.get("loss") is None and "logits" in output else dict(output)


def main_output(output: Any) -> tuple[Any, str]:
    """What of a model's answer is its output, and how it was found; the one place where that is decided.

    A tensor is. Of an answer with ``logits`` (an entry, a field or an attribute) these are, or ``out``, as torchvision calls
    them; else of several the first, the others being auxiliary; of a dict with one tensor that. Anything else stays.

    Example:
        >>> main_output((torch.zeros(2), torch.ones(2)))
        (tensor([0., 0.]), 'the first of the 2 that the model gives')
    """
    if isinstance(output, torch.Tensor):
        return output, ""
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found, f"{name!r} of what the model gives"
    if isinstance(output, (tuple, list)) and output:
        found, _ = main_output(output[0])
        return (
            (found, f"the first of the {len(output)} that the model gives")
            if isinstance(found, torch.Tensor)
            else (output, "")
        )
    tensors = (
        [(name, value) for name, value in output.items() if isinstance(value, torch.Tensor)]
        if isinstance(output, Mapping)
        else []
    )
    if len(tensors) == 1:
        return tensors[0][1], f"{tensors[0][0]!r} of what the model gives"
    return output, ""


def by_keyword(model: torch.nn.Module, inputs: MutableMapping[str, Any]) -> bool:
    """Whether ``inputs`` are what ``forward`` names, and not its one argument, a dict."""
    known, keys = _BY_KEYWORD.setdefault(model, {}), frozenset(inputs)
    if keys not in known:
        known[keys] = _fits(unwrapped(model).forward, keys)
    return known[keys]


def _fits(forward: Any, keys: frozenset[str]) -> bool:
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return False
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD} - {
        p.name for p in parameters if p.default is not p.empty
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return needed <= keys | {"labels"} and (keys <= names or (takes_any and bool(keys & names)))


def check_compile(mode: bool | str) -> None:
    """Refuse a mode that ``torch.compile`` does not have."""
    if not isinstance(mode, bool):
        check_choice("compile", mode, COMPILE_MODES)


def compiled(model: torch.nn.Module, mode: bool | str) -> torch.nn.Module:
    """``model`` as it is (False), compiled (True), or compiled in a mode of ``torch.compile``."""
    if not mode:
        return model
    made: Any = torch.compile(model, mode=None if mode is True else mode)
    if mode in GRAPH_MODES:  # the next replay writes over what this one gave, which is looked at until the epoch ends
        made.register_forward_hook(lambda module, args, output: tree_map(torch.clone, output))
    return made  # type: ignore[no-any-return]


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The user's own module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)) else None
        )
        if inner is None:
            return model
        model = inner
