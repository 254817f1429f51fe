"""What a call carries to workers on this host and back: by cloudpickle, and modules that refuse to be pickled too.

These files are written and read by one user's processes, in a folder that only this user can read.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cloudpickle
import torch
from torch.nn.utils import parametrize


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, which also takes modules with a parametrization, such as weight_norm."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.utils.data.DataLoader) and getattr(value, "_iterator", None) is not None:
            reduced: Any = value.__reduce_ex__(2)  # persistent readers stay where they are
            return (*reduced[:2], {**reduced[2], "_iterator": None}, *reduced[3:])
        if isinstance(value, torch.nn.Module) and parametrize.is_parametrized(value):
            return _parametrized, (type(value).__bases__[0], dict(vars(value)))
        return super().reducer_override(value)


def _parametrized(own: type[torch.nn.Module], attributes: dict[str, Any]) -> torch.nn.Module:
    """A module of class ``own`` with these attributes, and the properties that its parametrizations stand for."""
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
    """Write ``value``, tensors and functions of the calling script included."""
    torch.save(value, path, pickle_module=_MODULE)
