"""A race's page: one headline, only what was measured, and figures that agree with the text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from heptane.race.page import race_page
from heptane.race.pictures import accuracy_against_time, median_curve, time_to_target, worth_of_tricks
from heptane.race.rows import not_raced_text


def run(seed: int, seconds: float | None, status: str = "", slope: float = 0.1) -> dict[str, Any]:
    status = status or ("missed" if seconds is None else "reached")
    end = 12.0 if seconds is None else seconds
    curve = [{"seconds": end * part / 4, "value": 0.5 + slope * part * (1 if seconds else 0.9)} for part in range(1, 5)]
    clocks = {} if status == "not run" else {"train": end}
    return {
        "seed": seed,
        "seconds": seconds,
        "status": status,
        "clocks": clocks,
        "best": 0.9,
        "note": "why",
        "schedule": {},
        "curve": [] if status == "not run" else curve,
        "metrics": {} if status == "not run" else {"test_accuracy": 0.88},
    }


def arm(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "title": name, "tricks": {}, "rate": 1.0, "epochs": 8.0, "runs": runs}


def judgement(verdict: str, estimate: float | None, low: float | None, high: float | None, words: str) -> dict[str, Any]:
    return {"verdict": verdict, "words": words, "why": "", "estimate": estimate, "interval": [low, high]}


def race(plain: list[float | None], every: list[float | None], speedup: dict[str, Any], **more: Any) -> dict[str, Any]:
    effect = {"trick": "mixup", **judgement("helps", 1.3, 1.1, 1.5, "saves 23% (9 to 33%)")}
    side = {"estimate": 1.3, "interval": [None, None], "values": [1.3], "pairs": 1}
    arms = [arm(name, [run(n, s) for n, s in enumerate(times)]) for name, times in (("plain", plain), ("all", every))]
    return {
        "status": "done",
        "headline": "a headline",
        "summary": "a summary",
        "command": "heptane race <b>",
        "notes": [],
        "target": {"metric": "valid_accuracy", "value": 0.9, "seconds": None},
        "elapsed_seconds": 100.0,
        "trials": [],
        "plan": {"seeds": list(range(len(plain)))},
        "not_raced": [{"trick": "transfer", "why": "no weights <i>"}],
        "speedup": {"num_seeds": len(plain), "confidence": 0.95, **speedup},
        "effects": [{**effect, "alone": side, "without": None}],
        "arms": [*arms, arm("plain+mixup", [run(0, None, "not run")])],
        **more,
    }


def words(svg: str) -> list[str]:
    return [" ".join(text.split()) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def top(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index('<div class="main-result">') : page.index("<h2>")]).split())


@pytest.mark.parametrize(
    ("found", "begins"),
    [
        (
            judgement("helps", 2.0, 1.5, 2.5, ""),
            "2× faster to 90.0% with the tricks than without on this machine; 95% interval",
        ),
        (
            judgement("hurts", 0.5, 0.4, 0.8, ""),
            "2× slower to 90.0% with the tricks than without on this machine; 95% interval 1.25× to",
        ),
        (judgement("not settled", 2.0, 0.5, 8.0, ""), "not proven a headline"),
        (judgement("no verdict", None, None, None, ""), "not proven a headline"),
        (judgement("no difference", 1.0, 0.95, 1.05, ""), "no difference a headline"),
    ],
)
def test_the_large_number_needs_a_verdict(found: dict[str, Any], begins: str) -> None:
    text = top(race_page(race([4.0, 4.0], [2.0, 2.0], found)))
    assert text.startswith(begins)
    assert "without tricks 4.0 s median of 2" in text
    assert "with tricks 2.0 s median of 2" in text


def test_only_what_ran_is_there_and_all_text_is_escaped() -> None:
    page = race_page(race([4.0, None], [2.0, 2.0], judgement("no verdict", None, None, None, "")))
    assert "1 of 2 runs reached 90.0%" in top(page)
    assert "plain+mixup</th>" not in page, "an arm that never ran has no row"
    assert "1.3x (no interval)" in page
    assert "transfer (no weights &lt;i&gt;)" in page
    assert "heptane race &lt;b&gt;" in page
    assert "no verdict</span>" not in page
    assert page.count("<svg") == 3


def test_a_race_in_which_nothing_ran_is_a_page_too() -> None:
    page = race_page(race([], [], judgement("no verdict", None, None, None, ""), effects=[], status="running"))
    assert "<svg" not in page
    assert "This race is running" in page


def test_the_middle_line_ends_where_the_median_run_reaches_the_target() -> None:
    found = race([2.0, 4.0, 8.0], [1.0], judgement("no verdict", None, None, None, ""))
    seconds, values = median_curve(found, found["arms"][0])
    assert (seconds[-1], values[-1]) == pytest.approx((4.0, 0.9))
    assert values == sorted(values)
    found["target"]["value"] = 0.91  # where (high - low) added to low is not quite high
    assert median_curve(found, found["arms"][0])[0][-1] == pytest.approx(4.0)
    found = race([2.0, None, None], [1.0], judgement("no verdict", None, None, None, ""))
    seconds, values = median_curve(found, found["arms"][0])
    assert max(values) < 0.9, "the middle run never arrived"
    assert accuracy_against_time(found).startswith("<svg")


def test_an_arm_whose_middle_run_missed_has_no_bar() -> None:
    nothing = judgement("no verdict", None, None, None, "")
    half = time_to_target(race([2.0, None, None], [1.0, 1.0, 1.0], nothing))
    assert {"reached in 1 of 3", "1.0 s"} <= set(words(half))
    assert "plain reached in 1 of 3; all 1.0 s" in half
    whole = time_to_target(race([2.0, 2.0, None], [1.0, 1.0, 1.0], nothing))
    bar = r"opacity: 0\.3"
    assert (len(re.findall(bar, half)), len(re.findall(bar, whole))) == (1, 2)
    assert "2.0 s (2 of 3)" in words(whole)


def test_a_verdict_has_its_colour_and_no_other() -> None:
    rows = [
        {"trick": "mixup", **judgement("helps", 1.3, 1.1, 1.5, "saves")},
        {"trick": "cyclical", **judgement("hurts", 0.7, 0.6, 0.8, "costs")},
        {"trick": "transfer", **judgement("no verdict", None, None, None, "no verdict")},
    ]
    found = race([1.0], [1.0], judgement("no verdict", None, None, None, ""), effects=rows[:1])
    assert "var(--good" in worth_of_tricks(found)
    assert "var(--bad" not in worth_of_tricks(found)
    found["effects"] = rows
    assert {"mixup", "cyclical"} <= set(words(worth_of_tricks(found)))
    assert "transfer" not in words(worth_of_tricks(found)), "what was not measured is not drawn"
    assert "var(--bad" in worth_of_tricks(found)


def test_a_race_for_accuracy_counts_points() -> None:
    found = race([None], [None], judgement("helps", 0.012, 0.004, 0.02, "gains"))
    found["target"] = {"metric": "valid_accuracy", "value": None, "seconds": 60.0}
    for each_arm in found["arms"][:2]:
        each_arm["runs"][0]["status"] = "done"
    assert top(race_page(found)).startswith("+1.2 points of accuracy after 1 min 00 s of training with the tricks")


def test_tricks_that_were_not_raced_for_one_reason_are_named_together() -> None:
    rows = [("data_parallel", "one process"), ("transfer", "no weights"), ("mixup", "one process")]
    said = not_raced_text({"not_raced": [{"trick": trick, "why": why} for trick, why in rows]})
    assert said == "Not raced: data parallel, mixup (one process); transfer (no weights)."
    assert not_raced_text({"not_raced": []}) == ""
