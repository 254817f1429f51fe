"""Call a model: dict inputs by keyword, transformers outputs reduced to what the loss needs, ``torch.compile``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from heptane.base.errors import check_choice
from heptane.base.lazy import torch
from heptane.base.tree import tree_map

GRAPH_MODES = ("reduce-overhead", "max-autotune")  # these replay CUDA graphs on a GPU
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # torch.compile's own
_BY_KEYWORD: WeakKeyDictionary[torch.nn.Module, dict[frozenset[str], bool]] = WeakKeyDictionary()


def call(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Any:
    """Run the model on a batch.

    Args:
        model: a module; it may be compiled or wrapped for several workers.
        inputs: a dict whose keys match ``forward``'s parameters is passed by keyword; anything else as one argument.
        labels: passed as ``labels=`` to a model that computes its own loss; None: not passed.

    Returns:
        The model's output. Of a transformers ``ModelOutput``: the logits, or, if it has a loss, all of it as a dict.
    """
    named = inputs if isinstance(inputs, MutableMapping) and takes_keywords(model, inputs) else None
    if labels is not None:
        output = model(**named, labels=labels) if named is not None else model(inputs, labels=labels)
    else:
        output = model(inputs) if named is None else model(**named)
    if not isinstance(output, MutableMapping) or not hasattr(output, "to_tuple"):
        return output
    return output["logits"] if output.get("loss") is None and "logits" in output else dict(output)


def main_output(output: Any) -> tuple[Any, str]:
    """Find the main tensor in a model's output, and describe where it was.

    This is, in order: the output itself, if it is a tensor; its ``logits`` (key or attribute); its ``out`` (as in
    torchvision); the first item of a tuple or list (the others are auxiliary outputs); the only tensor of a dict. If there
    is none of these, the output is returned unchanged.

    Example:
        >>> main_output((torch.zeros(2), torch.ones(2)))
        (tensor([0., 0.]), "the first of the model's 2 outputs")
    """
    if isinstance(output, torch.Tensor):
        return output, ""
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found, f"{name!r} of the model's output"
    if isinstance(output, (tuple, list)) and output:
        found, _ = main_output(output[0])
        if isinstance(found, torch.Tensor):
            return found, f"the first of the model's {len(output)} outputs"
    elif isinstance(output, Mapping):
        tensors = [(name, value) for name, value in output.items() if isinstance(value, torch.Tensor)]
        if len(tensors) == 1:
            return tensors[0][1], f"{tensors[0][0]!r} of the model's output"
    return output, ""


def takes_keywords(model: torch.nn.Module, inputs: MutableMapping[str, Any]) -> bool:
    """Whether ``forward`` takes ``inputs`` as keyword arguments, and not as one dict."""
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
    """Raise :class:`InputError` unless ``mode`` is a bool or a mode of ``torch.compile``."""
    if not isinstance(mode, bool):
        check_choice("compile", mode, COMPILE_MODES)


def compiled(model: torch.nn.Module, mode: bool | str) -> torch.nn.Module:
    """Compile ``model``, in a mode of ``torch.compile`` or the default one (True); False returns it unchanged."""
    if not mode:
        return model
    made: Any = torch.compile(model, mode=None if mode is True else mode)
    if mode in GRAPH_MODES:  # the next replay overwrites this output, which is in use until the epoch ends
        made.register_forward_hook(lambda module, args, output: tree_map(torch.clone, output))
    return made  # type: ignore[no-any-return]


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the user's module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile`` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)) else None
        )
        if inner is None:
            return model
        model = inner
