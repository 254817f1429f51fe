"""PyTorch and NumPy, imported on first use, so that ``heptane --help`` does not load them.

``importlib.util.LazyLoader`` does not work here: in Python 3.12 it raises a RecursionError for a module that deletes one of
its own names while it is executed, as PyTorch does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from heptane.base.progress import EVERY_SECONDS, working

if TYPE_CHECKING:
    import numpy as np
    import torch
else:

    class _LazyModule(ModuleType):
        """A module that is imported on first attribute access, and then replaced by the real one in all heptane modules."""

        def __getattr__(self, name: str) -> Any:
            with working(f"loading {_TITLES[self.__name__]}", after=EVERY_SECONDS):
                module = import_module(self.__name__)
            for names in [vars(m) for n, m in list(sys.modules.items()) if n.partition(".")[0] == "heptane"]:
                names.update({alias: module for alias, value in names.items() if value is self})
            return getattr(module, name)

    _TITLES = {"torch": "PyTorch", "numpy": "NumPy"}
    _LAZY = {"torch": _LazyModule("torch"), "np": _LazyModule("numpy")}

    def __getattr__(name: str) -> ModuleType:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return sys.modules.get(_LAZY[name].__name__, _LAZY[name])


__all__ = ["np", "torch"]
