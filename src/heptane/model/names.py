"""Parameter names without the prefixes that wrappers add.

``torch.compile`` adds ``_orig_mod.``, ``DistributedDataParallel`` and ``DataParallel`` add ``module.``, to the whole model
or a part. Files hold clean names, so that wrapped and plain models can exchange them.
"""

from __future__ import annotations

import re
from typing import Any

from heptane.base.lazy import torch

COMPILED = "_orig_mod"
AROUND = re.compile(r"(?:(?:module|_orig_mod)\.)*")  # prefixes of wrappers around the whole model


def clean_names(model: torch.nn.Module, *, outer: bool = True) -> dict[str, str]:
    """Map each name of the model's state dict to its clean name; if two would become equal, all names stay unchanged.

    Args:
        model: any module.
        outer: also remove the prefixes of wrappers around the whole model.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.compile(torch.nn.Linear(2, 1)))
        >>> clean_names(net)["1._orig_mod.weight"]
        '1.weight'
    """
    wrapped = [prefix for prefix in sorted(_wrappers(model), key=len) if outer or not AROUND.fullmatch(prefix)]
    names = {name: _clean(name, wrapped) for name in model.state_dict(keep_vars=True)}
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def clean_state(model: torch.nn.Module) -> dict[str, Any]:
    """Return the model's state dict with clean names."""
    names = clean_names(model)
    return {names[name]: value for name, value in model.state_dict().items()}


def load_clean(model: torch.nn.Module, state: dict[str, Any], *, strict: bool = True) -> None:
    """Load a state dict with clean names or with the model's own names."""
    own = {clean: name for name, clean in clean_names(model).items()}
    model.load_state_dict({own.get(name, name): value for name, value in state.items()}, strict=strict)


def clean_name(model: torch.nn.Module, name: str) -> str:
    """Return the clean name of a parameter, buffer or module."""
    return _clean(name, sorted(_wrappers(model), key=len))


def without_compiled(name: str) -> str:
    """Remove ``_orig_mod.`` from a name in a file that was saved from a compiled model.

    Example:
        >>> without_compiled("_orig_mod.layers.0._orig_mod.weight")
        'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _wrappers(model: torch.nn.Module) -> list[str]:
    """The full prefixes that end in a wrapper, such as ``encoder._orig_mod.``"""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        inner = "module" if isinstance(module, parallel) else COMPILED if COMPILED in module._modules else None
        if inner:
            found.append(".".join(filter(None, [name, inner])) + ".")
    return found


def _clean(name: str, wrapped: list[str]) -> str:
    for prefix in reversed(wrapped):  # innermost first, so that outer prefixes still match
        if f"{name}.".startswith(prefix):
            kept = prefix[:-1].rpartition(".")[0]
            name = f"{kept}.{name[len(prefix) :]}".strip(".") if kept else name[len(prefix) :]
    return name
