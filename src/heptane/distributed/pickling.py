"""Pickle calls to workers on this host, and their results, with cloudpickle.

Only one user's processes write and read these files, in a folder that only this user can read.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cloudpickle
import torch
from torch.nn.utils import parametrize


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, extended to modules with a parametrization, such as weight_norm."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.utils.data.DataLoader) and getattr(value, "_iterator", None) is not None:
            reduced: Any = value.__reduce_ex__(2)  # persistent DataLoader workers stay behind
            return (*reduced[:2], {**reduced[2], "_iterator": None}, *reduced[3:])
        if isinstance(value, torch.nn.Module) and parametrize.is_parametrized(value):
            return _parametrized, (type(value).__bases__[0], dict(vars(value)))
        return super().reducer_override(value)


def _parametrized(own: type[torch.nn.Module], attributes: dict[str, Any]) -> torch.nn.Module:
    """Rebuild a module of class ``own`` with these attributes and the properties of its parametrizations."""
    module = own.__new__(own)
    module.__dict__.update(attributes)
    parametrize._inject_new_class(module)
    names: Any = module.parametrizations
    for name in names:
        parametrize._inject_property(module, name)
    return module


_MODULE = ModuleType("heptane_pickle")
_MODULE.__dict__.update(vars(cloudpickle), Pickler=_Pickler)


def write(value: Any, path: Any) -> None:
    """Write ``value``, including tensors and functions of the calling script."""
    torch.save(value, path, pickle_module=_MODULE)
