"""What is printed to a terminal, to a file and to a pipe."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from heptane.report import console
from heptane.report.console import Progress, summary, tricks_table


class Terminal(io.StringIO):
    def __init__(self, encoding: str = "utf-8", tty: bool = True) -> None:
        super().__init__()
        self._encoding, self._tty = encoding, tty

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._tty


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, redraw_seconds: float = 0.0) -> Terminal:
    """Called in the test's body: between a fixture and its test pytest puts a stderr of its own in place."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(console, "_REDRAW_SECONDS", redraw_seconds)
    return terminal


RECORD = {
    "epoch": 3,
    "step": 30,
    "train_loss": 0.51234,
    "train_accuracy": 0.87654,
    "valid_accuracy": None,
    "valid_loss": 0.25,
    "learning_rate": 0.05,
    "train_seconds": 41.2,
}
LINE = "epoch 3: training loss 0.5123, training accuracy 87.65%, validation loss 0.25, learning rate 0.05, 41 s"


def test_on_a_terminal_the_bar_shows_step_epoch_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Progress(200) as progress:
        assert progress.enabled
        progress.update(100, epoch=2, loss=0.51234, accuracy=0.9, images_per_second=12345.6)
    shown = terminal.getvalue()
    for part in ("epoch 2", "50%", "loss 0.512", "90.0%", "12,346 images/s", "left"):
        assert part in shown, part
    assert "[progress" not in shown


def test_figures_that_are_not_known_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Progress(200) as progress:
        progress.update(1, epoch=1)
        progress.update(2, epoch=1, images_per_second=float("inf"))
    assert "loss" not in terminal.getvalue()
    assert "images/s" not in terminal.getvalue()


def test_an_epochs_line_stays_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with Progress(200) as progress:
        progress.update(100, epoch=2, loss=0.5)
        progress.epoch_line(RECORD)
        progress.note("a note [bold]of mine[/bold]")
    shown = terminal.getvalue()
    assert LINE in shown
    assert "a note [bold]of mine[/bold]" in shown
    assert shown.endswith("\x1b[?25h") or "\x1b[?25h" in shown, "the cursor is shown again"


def test_the_bar_is_taken_down_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with pytest.raises(RuntimeError), Progress(10) as progress:
        raise RuntimeError
    assert "\x1b[?25h" in terminal.getvalue()
    progress.update(5, epoch=1)


def test_updates_are_few_but_the_last_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch, redraw_seconds=3600.0)
    with Progress(3) as progress:
        for step in (1, 2, 3):
            progress.update(step, epoch=step, loss=float(step))
    shown = terminal.getvalue()
    assert "loss 1.000" in shown
    assert "loss 2.000" not in shown
    assert "loss 3.000" in shown


@pytest.mark.parametrize("kind", ["pipe", "dumb", "asked"])
def test_without_a_terminal_there_are_plain_lines_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(tty=kind != "pipe")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    with Progress(200, enabled=False if kind == "asked" else None) as progress:
        progress.update(100, epoch=2, loss=0.5)
        progress.epoch_line(RECORD)
        progress.note("a note")
    assert stream.getvalue() == f"{LINE}\na note\n"


def test_an_epochs_line_does_without_what_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(1, enabled=False).epoch_line({})
    assert capsys.readouterr().err == "epoch ?: \n"


def test_a_stream_that_cannot_say_a_letter_gets_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(encoding="ascii", tty=False)
    monkeypatch.setattr(sys, "stderr", stream)
    Progress(1, enabled=False).note("grün \x1b[31m\x07 – ok")
    assert stream.getvalue() == "gr?n ?[31m? ? ok\n"


RESULT: dict[str, Any] = {
    "model": {"name": "[bold]net[/bold]"},
    "data": {"name": "digits"},
    "metrics": {"valid_accuracy": 0.95, "valid_loss": 0.2, "test_accuracy": 0.926},
    "seconds": {"wall": 65.0, "train": 41.2, "cpu": 80.0},
    "target": {"metric": "valid_accuracy", "value": 0.9, "reached_seconds": 18.0},
    "history": [RECORD],
    "tricks": [
        {"name": "lr_scaling", "title": "lr scaling", "on": False, "settings": {}, "why": "fits"},
        {"name": "mixup", "title": "[red]mixup[/red]", "on": True, "settings": {"alpha": 0.3}, "why": "long"},
    ],
    "notes": ["one :smile: note"],
    "files": {"report": "runs/" + "long/" * 40 + "report.html", "model": "a b/model.safetensors"},
    "command": "heptane train --data digits",
}


def test_the_summary_says_measures_clocks_target_tricks_notes_the_report_and_how_to_predict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    summary(RESULT)
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for wanted in (
        "[bold]net[/bold] reached 92.6% test accuracy on digits in 41 s of training (3 epochs)",
        *("test accuracy 92.60%", "validation accuracy 95.00%", "validation loss 0.2", "wall clock 1 min 05 s"),
        *("training time 41 s", "CPU time, all cores 1 min 20 s", "target reached in 18 s (validation accuracy 90.0%)"),
        *("tricks [red]mixup[/red]", "Note: one :smile: note"),
        "report runs/" + "long/" * 40 + "report.html",
        "predict heptane predict --run 'a b' FILE",
    ):
        assert wanted in lines, wanted
    assert not any("lr scaling" in line.lower() for line in lines), "why a trick is off is said before training"
    assert (
        lines.index("test accuracy 92.60%") < lines.index("validation accuracy 95.00%") < lines.index("validation loss 0.2")
    )
    assert "\x1b" not in out


def test_the_summary_has_the_first_suggestion_and_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    summary({**RESULT, "metrics": {"valid_loss": None}, "settings": {"learning_rate": 0.4}})
    lines = capsys.readouterr().out.splitlines()
    assert "Next: Lower the learning rate. The loss became NaN or infinite." in lines
    assert "  heptane train --data digits --lr 0.1" in lines


def test_an_empty_result_has_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    summary({})
    assert "the model trained on the data (0 epochs)" in capsys.readouterr().out


def test_a_trick_that_changes_nothing_here_is_not_shown_as_one_that_did(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "mixup", "on": True}, {"name": "mixed_precision", "title": "mixed precision", "on": True, "idle": True}]
    summary({"tricks": rows})
    assert "mixup, mixed precision (no effect on this machine)" in " ".join(capsys.readouterr().out.split())


def test_the_tricks_are_a_table_with_what_is_to_be_known_of_it_below(capsys: pytest.CaptureFixture[str]) -> None:
    tricks_table(("trick", "what it does"), [("label_smoothing", "some doubt")], ["Measured: never"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line] == ["trick what it does", "label smoothing some doubt", "Measured: never"]


def test_long_words_are_folded_and_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    tricks_table(("name", "text"), [("n", "x" * 100)], ())
    assert capsys.readouterr().out.count("x") == 101, "one of them in the heading"
