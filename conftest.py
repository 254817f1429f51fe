"""The examples in docstrings are tests: these names are theirs without an import."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

import heptane as hp

# torchvision's usual build does not import beside a CPU build of PyTorch: schemas of its missing operators are enough.
KEPT = torch.library.Library("torchvision", "DEF") if find_spec("torchvision") else None
for name in ("nms", "qnms", "qroi_align", "deform_conv2d", "_deform_conv2d_backward") if KEPT else ():
    KEPT.define(f"{name}() -> ()")


@pytest.fixture(autouse=True)
def _names_for_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, hp=hp)
    torch.manual_seed(0)
