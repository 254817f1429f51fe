"""What all tests share: no progress lines, and the fixtures."""

from __future__ import annotations

import gc
import os

import pytest

os.environ["HEPTANE_PROGRESS"] = "off"  # what is printed must not depend on how busy the machine is


@pytest.fixture(scope="module", autouse=True)
def _imports_are_not_collected() -> None:
    """Collecting what PyTorch and pytest have imported takes half a second, and a race does it after each run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``hp.fit`` forks its workers, which is quicker than starting them."""
    from tests.workers import fork_workers

    fork_workers(monkeypatch)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a run is one word: drawing it takes longer than these runs, and has tests of its own."""
    monkeypatch.setattr("heptane.report.html.write_report", lambda record, path, pictures: path.write_text("page"))
