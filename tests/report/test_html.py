"""``report.html``: one page that needs no other file, whatever the result holds."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from heptane.report.html import render_report, write_report

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The page's text by element, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] not in ("style",):
            self.texts.append(" ".join(data.split()))


def record(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 0.5 + epoch / 40,
        "valid_loss": 2.5 / epoch,
        "valid_accuracy": 0.4 + epoch / 30,
        "learning_rate": 0.1,
        "train_seconds": 3.0 * epoch,
    }


def full() -> dict[str, Any]:
    return {
        "schema": 1,
        "heptane": "0.1.0",
        "command": "heptane train --data digits --out 'a b'",
        "started": "2025-03-04T05:06:07+0000",
        "environment": {"python": "3.11", "gpus": [], "cpu_flags": {"avx2": True}, "governor": None},
        "data": {"name": "digits", "num_train": 1200, "num_valid": 300, "num_test": 12345},
        "model": {"name": "small_net", "num_parameters": 123456},
        "settings": {"epochs": 8.0, "batch_size": 64},
        "tricks": [
            {"name": "lr_scaling", "title": "lr scaling", "on": False, "settings": {}, "why": "the rate fits the batch"},
            {"name": "mixup", "title": "mixup", "on": True, "settings": {"alpha": 0.2, "per_sample": False}, "why": "long"},
        ],
        "steps": {"planned": 80, "applied": 80, "skipped": 2, "nonfinite": 0},
        "seconds": {"wall": 65.0, "train": 41.2, "cpu": 80.0},
        "metrics": {"valid_accuracy": 0.6667, "valid_loss": 0.3125, "test_accuracy": 0.926, "test_loss": 0.3},
        "target": {"metric": "valid_accuracy", "value": 0.6, "reached_seconds": 18.0},
        "history": [record(epoch) for epoch in range(1, 9)],
        "schedule": {"step": [0, 1, 2], "learning_rate": [0.0, 0.1, 0.0], "momentum": [0.95, 0.85, 0.95]},
        "notes": ["loss cross_entropy: the targets are integer classes"],
        "files": {"model": "runs/a/model.safetensors"},
    }


@pytest.fixture
def sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty picture with its description in place of each chart, which takes a while to draw and has its own tests."""

    def draw(lines: Any, *, description: str, **_: Any) -> str:
        names = ", ".join(line.name for line in lines)
        return f'<svg role="img" aria-label="{description}"><text>{names}</text></svg>'

    monkeypatch.setattr("heptane.report.html.line_chart", draw)


def test_the_page_says_what_the_result_holds() -> None:
    page = Page(render_report(full()))
    text = " | ".join(page.texts)
    for wanted in (
        "small_net reached 92.6% test accuracy on digits in 41 s of training (8 epochs)",
        *(
            "2025-03-04 05:06 UTC · heptane 0.1.0",
            "on 12,345 test samples; 95% interval",
            "1 min 05 s",
            "1 min 20 s",
            "reached in 18 s",
        ),
        *("validation accuracy 60.0%", "LR scaling", "the rate fits the batch", "8 evaluations", "66.67%", "123,456"),
        *("heptane train --data digits --out 'a b'", "loss cross_entropy: the targets are integer classes"),
        *("runs/a/model.safetensors", "avx2 yes", "skipped", "learning rate", "momentum", "accuracy", "loss"),
    ):
        assert wanted in text, wanted
    assert page.tags.count("svg") == 4


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = render_report(full())
    page = Page(html)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert "default-src 'none'" in html
    assert "script" not in page.tags
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert re.findall(r"https?://[^\s\"<]+", html.replace("http://www.w3.org/", "")) == []


@pytest.mark.parametrize("lost", full())
def test_any_part_may_be_absent_or_none(lost: str) -> None:
    drawn = lost in ("history", "schedule", "target")
    result = full() if drawn else {**full(), "history": [], "schedule": {}}
    for part in (None, "absent"):
        result[lost] = None
        if part:
            del result[lost]
        Page(render_report(result))


def test_an_empty_result_is_a_page_too() -> None:
    assert "the model trained on the data (0 epochs)" in Page(render_report({})).texts


def test_a_page_without_a_history_says_so(sketch: None) -> None:
    text = Page(render_report({**full(), "history": []})).texts
    assert "No epoch finished." in text


def test_what_the_user_names_is_text_and_never_markup() -> None:
    evil = "<script>alert(1)</script>{{ 7 * 7 }}\"'&"
    result = full()
    result["model"]["name"] = result["data"]["name"] = result["command"] = evil
    result["notes"], result["files"] = [evil], {evil: evil}
    result["tricks"][1] |= {"title": evil, "why": evil, "settings": {evil: evil}}
    result["history"][0][f"train_{evil}"] = evil
    result["metrics"][evil] = 1.0
    html = render_report(result)
    assert "<script" not in html
    page = Page(html)
    assert "script" not in page.tags
    assert sum("{{ 7 * 7 }}" in text for text in page.texts) >= 6


def test_values_that_are_not_finite_leave_gaps_and_dashes() -> None:
    result = full()
    result["history"][2] |= {"train_loss": None, "valid_loss": math.nan, "valid_accuracy": math.inf}
    result["seconds"] = {"wall": None, "train": math.nan, "cpu": None}
    result["metrics"] = {"valid_loss": math.nan}
    result["schedule"] = {"step": [0, 1], "learning_rate": [None, None], "momentum": None}
    page = Page(render_report(result))
    assert "small_net failed on digits: the loss is not finite (8 epochs)" in page.texts
    assert page.tags.count("svg") == 2


def test_a_target_that_was_not_reached_is_marked(sketch: None) -> None:
    result = full()
    assert 'class="good">reached in 18 s' in render_report(result)
    result["target"]["reached_seconds"] = None
    assert 'class="bad">not reached' in render_report(result)
    result["target"] = None
    assert "target</dt>" not in render_report(result), "what nobody asked for takes no room"


def test_a_regression_shows_its_loss_where_others_show_accuracy() -> None:
    result = full()
    result["metrics"] = {"valid_loss": 0.3125, "test_loss": 0.25}
    for entry in result["history"]:
        del entry["train_accuracy"], entry["valid_accuracy"]
    page = Page(render_report(result))
    assert "test loss" in page.texts
    assert "0.25" in page.texts
    assert page.tags.count("svg") == 3


def test_the_large_number_is_the_test_accuracy_or_what_there_is_instead(sketch: None) -> None:
    def top(metrics: dict[str, float]) -> str:
        page = render_report({**full(), "metrics": metrics})
        return " ".join(re.sub(r"<[^>]+>", " ", page[page.index('<div class="main-result">') : page.index("<h2>")]).split())

    assert top({"test_accuracy": 0.5, "valid_accuracy": 0.75}).startswith("50.0% test accuracy on 12,345 test samples; 95%")
    assert "validation accuracy 75.0% on 300 samples" in top({"test_accuracy": 0.5, "valid_accuracy": 0.75})
    assert top({"valid_accuracy": 0.75}).startswith("75.0% validation accuracy on 300 validation samples")
    assert top({"valid_loss": 0.25}).startswith("0.25 validation loss")
    assert top({"valid_loss": math.nan}).startswith("failed the loss is not finite")
    assert top({}).startswith("70.0% training accuracy on the training samples: there is no validation or test data")


def test_training_curves_under_mixup_are_said_to_be(sketch: None) -> None:
    result = full()
    for entry in result["history"]:
        entry["train_accuracy_mixed"] = entry.pop("train_accuracy")
    html = render_report(result)
    assert "training (mixed)" in html
    assert html.count("measured on mixed samples") == 2
    assert "measured on mixed samples" not in render_report(full())


def test_under_smoothing_the_loss_without_it_is_drawn(sketch: None) -> None:
    result = full()
    for entry in result["history"]:
        entry["train_loss_unsmoothed"] = entry["train_loss"] - 0.1
    html = render_report(result)
    assert html.count("without label smoothing") == 1
    assert "training from 1.9 to 0.15" in html
    assert "training from 2 to 0.25" in render_report(full())


def test_a_trick_that_is_not_in_the_record_of_every_epoch_still_has_its_column(sketch: None) -> None:
    result = full()
    result["history"][3]["valid_f1"] = 0.125
    page = Page(render_report(result))
    assert "validation f1" in page.texts
    assert page.texts.count("–") >= 7


def test_many_epochs_are_folded_away(sketch: None) -> None:
    few, many = full(), full()
    many["history"] = [record(epoch) for epoch in range(1, 17)]
    assert "<details open>" in render_report(few)
    assert "<details>" in render_report(many)


def test_a_start_that_is_no_date_is_shown_as_it_is(sketch: None) -> None:
    assert "yesterday · heptane 0.1.0" in Page(render_report({**full(), "started": "yesterday"})).texts


def test_the_file_is_written_whole_in_utf_8_and_its_folder_made(sketch: None, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    result = {**full(), "files": {"model": "caf\udce9/ü"}}
    write_report(result, path)
    write_report(result, str(path))
    assert "/ü" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
