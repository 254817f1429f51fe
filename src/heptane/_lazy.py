"""PyTorch and NumPy, imported at their first use: ``heptane --help`` answers before either is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    import lazy_loader

    torch = lazy_loader.load("torch")
    np = lazy_loader.load("numpy")

__all__ = ["np", "torch"]
