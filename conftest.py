"""The examples in docstrings are tests: these names are theirs without an import."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import heptane as hp
from heptane.base.randomness import manual_seed

LONG = ("test_torture", "test_fuzz", "test_data_parallel", "test_elastic", "test_race", "test_interruption", "test_package")

# torchvision's usual build does not import beside a CPU build of PyTorch: schemas of its missing operators are enough.
KEPT = torch.library.Library("torchvision", "DEF") if find_spec("torchvision") and not torch.version.cuda else None
for name in ("nms", "qnms", "qroi_align", "deform_conv2d", "_deform_conv2d_backward") if KEPT else ():
    KEPT.define(f"{name}() -> ()")


def pytest_configure(config: pytest.Config) -> None:
    """Tests compare with references on the CPU and start several workers, so they see no GPU; those marked gpu do."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["HEPTANE_CACHE"] = tempfile.mkdtemp(prefix="heptane-tests-")  # nothing of the user's is read or written


def pytest_unconfigure() -> None:
    """What the tests measured is nobody else's."""
    shutil.rmtree(os.environ.pop("HEPTANE_CACHE"), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process ends with one of them while the others are idle."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(autouse=True)
def _names_for_examples_and_one_seed(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, hp=hp)
    manual_seed(0)
