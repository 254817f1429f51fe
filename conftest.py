"""The examples in docstrings are tests: these names are theirs without an import."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import heptane as hp


@pytest.fixture(autouse=True)
def _names_for_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, hp=hp)
    torch.manual_seed(0)
