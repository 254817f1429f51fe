"""Mutated files and generated flags: success or one clear error. Some of the 10,000 of ``make fuzz``, and past failures."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from tests.workers import BENCHMARKS, alone

REGRESSIONS = sorted(path for path in (Path(__file__).parent / "regressions").glob("*") if not path.name.startswith("."))
CODE = """
from fuzz import READERS, fuzz_files, fuzz_flags
print(json.dumps([fuzz_files(12 * len(READERS), 1, list(READERS), batch=12), fuzz_flags(60, 1)]))
"""


def test_some_mutations_and_command_lines_end_in_success_or_one_clear_error() -> None:
    for found in alone(CODE):
        assert found["failures"] == []


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_what_once_failed_does_not_fail_again(path: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from fuzz_files import READERS, attempt, prepare
    finally:
        sys.path.pop(0)
    kind = path.name.split("-")[0]
    place = prepare(kind, tmp_path / "made")  # an image is read with the folder that it is in
    if path.is_dir():
        shutil.rmtree(place)
    (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
    assert attempt(READERS[kind][1], place) == ""
