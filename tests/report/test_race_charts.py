"""The pictures of a race say what its tables say, and can be read on white and on black."""

from __future__ import annotations

import re
from typing import Any

import pytest

from heptane.report.race_charts import accuracy_against_time, time_to_target, worth_of_tricks


def run(seconds: float | None) -> dict[str, Any]:
    status = "missed" if seconds is None else "reached"
    curve = [{"seconds": at, "value": at / 10} for at in (1.0, 2.0)]
    return {"seconds": seconds, "status": status, "clocks": {"train": seconds or 5.0}, "curve": curve, "best": 0.91}


def race(plain: list[float | None], every: list[float | None]) -> dict[str, Any]:
    arms = [
        {"name": name, "title": name, "runs": [run(s) for s in found]} for name, found in (("plain", plain), ("all", every))
    ]
    return {"target": {"metric": "valid_accuracy", "value": 0.9}, "arms": arms}


def texts(svg: str) -> list[str]:
    return [" ".join(text.split()) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [([1.0, 3.0], "2.0 s"), ([1.0, 2.0, 9.0], "2.0 s"), ([1.0, None], "missed"), ([1.0, 2.0, None], "2.0 s")],
)
def test_a_bar_ends_at_the_median(seconds: list[float | None], words: str) -> None:
    svg = time_to_target(race(seconds, [4.0]))
    assert {words, "4.0 s"} <= set(texts(svg))
    assert f"plain {words.replace('missed', 'missed it')}; all 4.0 s" in svg


def test_the_lines_of_plain_and_all_have_their_full_colour() -> None:
    svg = accuracy_against_time(race([2.0], [2.0]))
    lines = re.findall(r"<path[^>]*style=\"fill: none; stroke: var\((--series-[12]), #\w+\);[^\"]*\"", svg)
    faint = re.findall(r"stroke: var\(--series-[12][^\"]*opacity", svg)
    assert set(lines) == {"--series-1", "--series-2"}
    assert faint == []


def side(median: float | None, low: float, high: float) -> dict[str, Any]:
    return {"estimate": median, "interval": [low, high]}


def test_the_legend_shows_the_marks_of_both_sides_also_where_the_first_lies_outside() -> None:
    beyond = {"trick": "lr_scaling", "verdict": "hurts", "words": "costs 12%", "alone": side(0.0, 0.0, 1.5), "without": None}
    svg = worth_of_tricks({"target": {"value": 0.9}, "effects": [beyond]})
    assert {"added to plain", "left out of all", "LR scaling"} <= set(texts(svg))
    legend = svg[svg.index("legend") :]
    assert legend.count("<use ") == 2
    assert len(set(re.findall(r"<use [^>]*href=\"([^\"]*)\"", legend))) == 2
