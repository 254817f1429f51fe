"""Decisions that are measured once per machine and kept: several processes, a damaged file, a read-only folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from heptane.base.cache import default_cache
from heptane.core.precision.decisions import decision_key, load_decision, store_decision


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_question_has_a_name_by_what_it_holds() -> None:
    assert decision_key({"a": 1, "b": [2]}) == decision_key({"b": [2], "a": 1}) != decision_key({"a": 1, "b": [3]})


def test_the_first_answer_counts_unless_it_is_no_longer_right(cache: Path) -> None:
    assert load_decision("kind", "q") is None
    assert store_decision("kind", "q", {"x": 1}) == load_decision("kind", "q") == {"x": 1}
    assert store_decision("kind", "q", {"x": 2}) == {"x": 1}
    assert store_decision("kind", "q", {"x": 3}, anew=True) == load_decision("kind", "q") == {"x": 3}
    assert [path.name for path in (cache / "kind").iterdir()] == ["q.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 60_000, b" " * 70_000])
def test_a_damaged_file_is_as_one_that_is_not_there(content: bytes, cache: Path) -> None:
    (cache / "kind").mkdir(parents=True)
    (cache / "kind" / "q.json").write_bytes(content)
    assert load_decision("kind", "q") is None
    assert store_decision("kind", "q", {"x": 1}) == load_decision("kind", "q") == {"x": 1}


def test_a_cache_that_cannot_be_written_costs_only_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "file"))
    assert store_decision("kind", "q", {"x": 1}) == {"x": 1}
    assert load_decision("kind", "q") is None
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "kind" / "q.json").mkdir(parents=True)  # where the file should be
    assert store_decision("kind", "q", {"x": 1}) == {"x": 1}


def test_of_many_that_answer_at_once_one_counts() -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: found.append(store_decision("kind", "q", {"x": n}))) for n in range(16)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert all(one == load_decision("kind", "q") for one in found)


def test_tests_have_a_cache_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert "heptane-tests-" in str(default_cache())
