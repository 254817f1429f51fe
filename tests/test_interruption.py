"""A signal saves the current step for a resume; a second Ctrl-C stops at once; handlers are restored."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import VALID, assert_equal_weights, checkpoint_steps, fit_mlp
from tests.workers import COMMAND_LINE, start

import heptane as hp
from heptane.base.errors import Interrupted
from heptane.cli import main
from heptane.session import recorder
from heptane.session.checkpoints import checkpoint
from heptane.session.interruption import NAMES, SAME_SECONDS, Interruption

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def _as_in_the_foreground() -> Iterator[None]:
    """A process that a script starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something in the loop's body after a step."""
    real = recorder.steps

    def steps(run: Any, start: int = 0) -> Any:
        for event in real(run, start):
            if event.step == number:
                act()
            yield event

    monkeypatch.setattr(recorder, "steps", steps)


def me(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def same(first: hp.Result, second: hp.Result) -> None:
    assert_equal_weights(first.model, second.model)
    assert first.metrics == second.metrics
    assert first.steps == second.steps
    timeless = [[{k: v for k, v in r.items() if "seconds" not in k} for r in each.history] for each in (first, second)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_signal_saves_the_step_and_the_run_goes_on_bitwise(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: signal.getsignal(getattr(signal, name)) for name in NAMES}
    with monkeypatch.context() as patch:
        at_step(patch, step, me(name))
        with pytest.raises(Interrupted, match=rf"^{name}: saved at step {step}$"):
            fit_mlp(tmp_path / "run")
    assert {name: signal.getsignal(getattr(signal, name)) for name in NAMES} == before
    assert checkpoint_steps(tmp_path / "run" / "checkpoints")[0] == step
    assert not (tmp_path / "run" / "result.json").exists()
    same(fit_mlp(tmp_path / "run", resume=True), fit_mlp(None))


class Slow:
    """Validation data that sends a signal while it is read for the n-th time."""

    def __init__(self, at: int) -> None:
        self.at, self.times = at, 0

    def __len__(self) -> int:
        return len(VALID[0])

    def __getitem__(self, index: int) -> Any:
        self.times += index == 0
        if index == 3 and self.times == self.at:
            me("SIGTERM")()
        return VALID[0][index], VALID[1][index]


def test_an_evaluation_is_not_waited_for_and_is_made_up_for(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"^SIGTERM: saved at step 6$"):
        fit_mlp(tmp_path / "run", Slow(3))  # the first time is before training, when a batch is tried
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert events.count('"event": "epoch"') == 1
    assert events.count('"event": "interrupted"') == 1
    same(fit_mlp(tmp_path / "run", resume=True), fit_mlp(None))


def test_an_evaluation_made_up_for_computes_the_frozen_part_as_the_one_cut_short_would_have(tmp_path: Path) -> None:
    evaluations: list[int] = []

    def stops(model: torch.nn.Module, data: Any) -> float:
        evaluations.append(1)
        if len(evaluations) == 3:  # the first is the trial before training
            me("SIGTERM")()
        return 0.0

    settings: dict[str, Any] = {"tricks": hp.Tricks(transfer=hp.Transfer(freeze=-1, cache_dtype="bf16"))}
    with pytest.raises(Interrupted, match=r"^SIGTERM: saved at step 6$"):
        fit_mlp(tmp_path / "run", metrics={"m": stops}, **settings)
    same(
        fit_mlp(tmp_path / "run", resume=True, metrics={"m": stops}, **settings),
        fit_mlp(None, metrics={"m": stops}, **settings),
    )


def test_without_a_folder_handlers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 2, me("SIGINT"))
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_mlp(None)
    assert not isinstance(caught.value, Interrupted)


def test_a_second_ctrl_c_stops_at_once_and_what_was_saved_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        me("SIGINT")()
        time.sleep(SAME_SECONDS + 0.1)
        me("SIGINT")()

    with monkeypatch.context() as patch:
        at_step(patch, 5, twice)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit_mlp(tmp_path / "run", checkpoint_every=2)
    assert not isinstance(caught.value, Interrupted)
    saved, notes = checkpoint.find_newest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert notes == []
    assert saved.facts["step"] < 5
    same(fit_mlp(tmp_path / "run", resume=True), fit_mlp(None))


def test_the_same_ctrl_c_from_the_terminal_and_from_a_launcher_is_one() -> None:
    with Interruption(active=True) as interruption, interruption.waiting():
        me("SIGINT")()
        me("SIGINT")()
        me("SIGTERM")()
        assert interruption.asked == "SIGINT"


def test_outside_of_a_step_it_is_raised_at_once_and_only_once() -> None:
    with pytest.raises(Interrupted, match=r"^SIGTERM$"), Interruption(active=True):
        me("SIGTERM")()
    with Interruption(active=True) as interruption, interruption.waiting():
        me("SIGTERM")()
        with pytest.raises(Interrupted), interruption.at_once():
            pytest.fail("it was asked for already")


def test_in_another_thread_there_are_no_handlers(tmp_path: Path) -> None:
    done: list[hp.Result] = []
    thread = threading.Thread(target=lambda: done.append(fit_mlp(tmp_path / "run")))
    thread.start()
    thread.join()
    assert done[0].steps["applied"] == 12


def long_training(out: Path, *flags: str) -> list[str]:
    draw = np.random.default_rng(0)
    np.savez(out.parent / "d.npz", x=draw.integers(0, 255, (2000, 8, 8), dtype=np.uint8), y=np.arange(2000) % 10)
    command = ["train", "--data", str(out.parent / "d.npz"), "--model", "mlp", "--epochs", "4000", "--tricks", "none"]
    return [*command, "--out", str(out), "--checkpoint-every", "50", *flags]


def terminate_when_saved(pid: int, out: Path) -> None:
    until = time.monotonic() + 90
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)


def assert_goes_on(errors: str, out: Path) -> None:
    step = checkpoint_steps(out / "checkpoints")[0]
    assert errors.splitlines()[-1] == (f"heptane: SIGTERM: saved at step {step}; go on with: heptane train --resume '{out}'")


def test_the_command_line_ends_with_130_and_the_line_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    threading.Thread(target=terminate_when_saved, args=(os.getpid(), out)).start()
    assert main(long_training(out)) == 130
    assert_goes_on(capsys.readouterr().err, out)


def test_so_does_the_command_line_of_two_workers(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    running = start(COMMAND_LINE.format(long_training(out, "--workers", "2")), tmp_path, OMP_NUM_THREADS="1")
    terminate_when_saved(running.pid, out)
    running.join(60)
    errors = (tmp_path / "stderr").read_text()
    assert running.exitcode == 130, errors
    assert_goes_on(errors, out)
