"""Benchmarks, recipes and examples import names that the package has."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in ("benchmarks", "recipes", "examples", "docs") for path in (ROOT / folder).rglob("*.py"))


def imported(source: str) -> list[tuple[str, str]]:
    """Module and name of each import from heptane."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in found if (node.module or "").startswith("heptane") for alias in node.names]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_imports_names_that_there_are(path: Path) -> None:
    for module, name in imported(path.read_text()):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_a_name_that_is_gone_is_found() -> None:
    assert imported("from heptane.race.statistics import gain, json_number") == [
        ("heptane.race.statistics", "gain"),
        ("heptane.race.statistics", "json_number"),
    ]
    assert not hasattr(importlib.import_module("heptane.race.statistics"), "gain")
