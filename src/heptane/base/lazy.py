"""PyTorch and NumPy, imported at their first use: ``heptane --help`` answers before either is loaded.

Not by ``importlib.util.LazyLoader``: in Python 3.12 a module that deletes a name of its own while it is executed, as PyTorch
does, ends there in a RecursionError.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from heptane.base.alive import EVERY_SECONDS, working

if TYPE_CHECKING:
    import numpy as np
    import torch
else:

    class _Later(ModuleType):
        """Stands for a module until something of it is asked for; from then on this package's modules hold the module."""

        def __getattr__(self, name: str) -> Any:
            with working(f"loading {_TITLES[self.__name__]}", after=EVERY_SECONDS):
                module = import_module(self.__name__)
            for place in [vars(m) for n, m in list(sys.modules.items()) if n.partition(".")[0] == "heptane"]:
                place.update({alias: module for alias, value in place.items() if value is self})
            return getattr(module, name)

    _TITLES = {"torch": "PyTorch", "numpy": "NumPy"}
    _LATER = {"torch": _Later("torch"), "np": _Later("numpy")}

    def __getattr__(name: str) -> ModuleType:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return sys.modules.get(_LATER[name].__name__, _LATER[name])


__all__ = ["np", "torch"]
