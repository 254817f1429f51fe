"""Progress lines for slow work, at a terminal and in a pipe, and no output otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from tests.helpers import mlp
from tests.report.test_console import Terminal

import heptane as hp
from heptane.base import progress
from heptane.base.progress import clear_progress, progress_shown, redirect_progress, show_progress, working

Wait = Callable[[float], None]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HEPTANE_PROGRESS", raising=False)
    yield
    progress._DISPLAY.reset()


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Lets seconds pass on a clock of the test's own, in place of the thread, which does nothing."""
    clock = [0.0]
    monkeypatch.setattr(progress, "now", lambda: clock[0])
    monkeypatch.setattr(progress.Display, "_watch", lambda board: None)
    progress._DISPLAY.reset()

    def passes(seconds: float) -> None:
        end = clock[0] + seconds
        while clock[0] < end:
            clock[0] = min(clock[0] + progress.REDRAW_SECONDS, end)
            if progress._DISPLAY.on:
                progress._DISPLAY.tick()

    return passes


def stderr(monkeypatch: pytest.MonkeyPatch, *, tty: bool = False, encoding: str = "utf-8") -> Terminal:
    """Called in the test's body: between a fixture and its test pytest puts a stderr of its own in place."""
    made = Terminal(encoding=encoding, tty=tty)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_a_pipe_gets_a_line_after_2_seconds_and_then_one_each_5(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("reading 1,200 images", total=1200) as advance:
        wait(1.5)
        assert pipe.getvalue() == ""
        advance(400)
        wait(11)
    assert pipe.getvalue().splitlines() == [
        "reading 1,200 images: 400 (33%), 2 s",
        "reading 1,200 images: 400 (33%), 7 s",
        "reading 1,200 images: 400 (33%), 12 s",
    ]


def test_a_task_of_known_length_shows_its_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("training, 100,000 steps", total=100_000) as advance:
        advance(90_000)  # the steps before a resume do not count
        wait(1)
        advance(50)
        wait(1)
        advance(1150)
        wait(10)
    assert pipe.getvalue().splitlines() == [
        "training, 100,000 steps: 90,050 (90%), 2 s, 25/s, 6 min 38 s left",
        "training, 100,000 steps: 91,200 (91%), 7 s, 171/s, 51 s left",
        "training, 100,000 steps: 91,200 (91%), 12 s, 100/s, 88 s left",
    ]


def test_nothing_is_shown_of_what_is_quick_or_while_signs_are_off(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("quick"):
        wait(1.9)
    with show_progress(False), working("slow"):
        wait(60)
    assert pipe.getvalue() == ""


def test_many_quick_pieces_one_after_the_other_are_not_silent(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress():
        for number in range(30):
            with working(f"piece {number}"):
                wait(1)
    assert len(pipe.getvalue().splitlines()) in (5, 6)


def test_the_innermost_that_takes_long_is_named_else_the_outer_one(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("outer"):
        with working("inner"):
            wait(3)
        for _ in range(10):
            with working("quick"):
                wait(1)
    assert [line.split(":")[0] for line in pipe.getvalue().splitlines()] == ["inner", "outer", "outer"]


def test_what_was_just_printed_counts_as_a_sign(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("training"):
        for _ in range(30):
            wait(1.5)
            clear_progress()
    assert pipe.getvalue() == ""


def test_a_terminal_gets_one_line_that_is_taken_away_at_the_end(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    terminal = stderr(monkeypatch, tty=True)
    with pytest.raises(KeyboardInterrupt):
        blocked(wait)
    shown = terminal.getvalue()
    assert "fetching: 2 s" in shown
    assert "fetching: 4 s" in shown
    assert "\n" not in shown
    assert all(part.strip() == "" for part in shown.rsplit("\r", 2)[1:]), "it ends with an empty line"
    assert progress._DISPLAY.tasks == []
    assert not progress._DISPLAY.on


def blocked(wait: Wait) -> None:
    with show_progress(), working("fetching"):
        wait(4)
        raise KeyboardInterrupt


def test_a_terminal_without_these_letters_gets_others(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    terminal = stderr(monkeypatch, tty=True, encoding="ascii")
    with show_progress(), working("reading"):
        wait(3)
    assert "reading: 2 s" in terminal.getvalue()
    assert "?" not in terminal.getvalue()


def test_several_threads_may_count(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("reading", total=4000) as advance:
        threads = [threading.Thread(target=lambda: [advance() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait(2)
    assert "reading: 4,000 (100%)" in pipe.getvalue()


@pytest.mark.parametrize(("name", "value"), [("RANK", "1"), ("HEPTANE_PROGRESS", "off")])
def test_other_workers_and_who_does_not_want_it_get_nothing(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, wait: Wait
) -> None:
    pipe = stderr(monkeypatch)
    monkeypatch.setenv(name, value)
    with progress_shown(), working("training"):
        wait(60)
    assert pipe.getvalue() == ""


def test_another_display_draws_what_begins_inside_it(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe, drawn = stderr(monkeypatch), []
    with show_progress(), working("outside"), redirect_progress(drawn.append):
        wait(60)
        assert drawn == []
        with working("inside"):
            wait(2.5)
    assert drawn == ["inside: 2 s"] * 2
    assert pipe.getvalue() == ""


def test_work_without_a_name_is_a_sign_too_and_a_name_goes_before_it(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with progress_shown():
        wait(6)
        with progress_shown(), working("evaluating"):
            wait(5)
    assert pipe.getvalue().splitlines() == ["still working: 5 s", "evaluating: 2 s"]


def test_a_thread_shows_it_while_the_work_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stderr(monkeypatch)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.04)
    with show_progress(), working("reading"):
        time.sleep(0.5)
    assert pipe.getvalue() == "reading: 0 s\n"


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    pipe = stderr(monkeypatch)
    with show_progress(), working("reading"):
        pipe.close()
        wait(6)
        assert not progress._DISPLAY.on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_silent_and_does_not_hang(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    with show_progress(), working("reading"), progress._DISPLAY.lock:
        if not (child := os.fork()):
            with working("in the child"):
                os._exit(progress._DISPLAY.on)
        assert os.waitpid(child, 0)[1] == 0


def test_training_without_a_terminal_says_how_far_a_long_epoch_is(monkeypatch: pytest.MonkeyPatch, wait: Wait) -> None:
    class Slow(torch.nn.Sequential):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training and torch.is_grad_enabled():
                wait(1)
            return super().forward(inputs)

    pipe, data = stderr(monkeypatch), (torch.randn(64, 64), torch.randint(0, 4, (64,)))
    hp.fit(Slow(mlp()), data, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=1, batch_size=4, progress=True)
    signs = [line for line in pipe.getvalue().splitlines() if line.startswith("training, 16 steps: ")]
    assert len(signs) == 3
    assert not progress._DISPLAY.on
    assert not progress._DISPLAY.tasks


SLOW = """
import sys, time, types
sys.argv = ["heptane"]
from heptane.base import lazy, progress
progress.EVERY_SECONDS, progress.FIRST_SECONDS, progress.REDRAW_SECONDS = 0.2, 0.1, 0.05
lazy.EVERY_SECONDS = 0.2
lazy.import_module = lambda name: (time.sleep(1), types.SimpleNamespace(anything=1))[1]
with progress.progress_shown():
    lazy.torch.anything
"""


def test_a_slow_import_says_what_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, timeout=60, check=True)
    assert "loading PyTorch: 0 s" in done.stderr
