"""A result in words and figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from heptane.report import (
    format_duration,
    format_metric,
    format_percent,
    format_value,
    headline,
    is_finite,
    readable_name,
    settings_text,
    target_text,
)

HISTORY = [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({}, "the model trained on the data (0 epochs)"),
        (
            {
                "model": {"name": "resnet"},
                "data": {"name": "digits"},
                "metrics": {"valid_accuracy": 0.95, "test_accuracy": 0.926},
                "seconds": {"train": 41.2},
                "history": HISTORY,
            },
            "resnet reached 92.6% test accuracy on digits in 41 s of training (2 epochs)",
        ),
        ({"metrics": {"valid_accuracy": 0.5}}, "the model has 50.0% validation accuracy on the data (0 epochs)"),
        (
            {"metrics": {"test_loss": 0.25}, "history": HISTORY},
            "the model reached a test loss of 0.25 on the data (2 epochs)",
        ),
        ({"metrics": {"valid_loss": math.nan}}, "the model failed on the data: the loss is not finite (0 epochs)"),
        ({"metrics": {"valid_loss": None}, "model": None}, "the model trained on the data (0 epochs)"),
        (
            {"metrics": {"valid_loss": 1.5}, "history": [{"epoch": 0.5}], "seconds": {"train": 0.02}},
            "the model reached a validation loss of 1.5 on the data in 20 ms of training (0.5 epochs)",
        ),
        (
            {"metrics": {"test_loss": 1.0}, "history": [{}, {}, {}]},
            "the model reached a test loss of 1 on the data (3 epochs)",
        ),
        (
            {"metrics": {"test_loss": 0.2}, "history": [{}], "examination": {"columns": [{"mean_absolute_error": 13763.2}]}},
            "the model reached a mean absolute error of 13,763 on the data (1 epoch)",
        ),
        (
            {"metrics": {"test_loss": 0.2}, "history": [{}], "examination": {"columns": [{}, {}]}},
            "the model reached a test loss of 0.2 on the data (1 epoch)",
        ),
    ],
)
def test_the_headline_says_what_reached_what_on_what_in_how_long(result: dict[str, Any], words: str) -> None:
    assert headline(result) == words


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("valid_accuracy", "validation accuracy"),
        ("num_parameters", "number of parameters"),
        ("cpu_flags", "CPU flags"),
        ("memory_gib", "memory GiB"),
        ("lr_scaling", "LR scaling"),
        ("lr scaling", "LR scaling"),
        ("", ""),
        ("_", "_"),
    ],
)
def test_a_key_in_words(key: str, words: str) -> None:
    assert readable_name(key) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.926, "92.6%"),
        (1.0, "100.0%"),
        (0.99996, "99.996%"),
        (0.9999999999, "100.000000%"),
        (0.0, "0.0%"),
        (0.12345, "12.3%"),
    ],
)
def test_only_one_is_a_hundred_percent(value: float, text: str) -> None:
    assert format_percent(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.0014, "1.4 ms"),
        (0.042, "42 ms"),
        (0.0994, "99 ms"),
        (0.0995, "0.10 s"),
        (0.42, "0.42 s"),
        (0.994, "0.99 s"),
        (0.996, "1.0 s"),
        (4.2, "4.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3840, "1 h 04 min"),
        (90000, "25 h 00 min"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        ("1", "–"),
        (True, "–"),
    ],
)
def test_seconds_for_a_reader(seconds: Any, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        (7, "7"),
        (9999, "9999"),
        (10_000, "10,000"),
        (-10_000, "-10,000"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (65536.0, "65,536"),
        (1e9, "1e+09"),
        (math.nan, "nan"),
        ([1, None, "a"], "1, –, a"),
        ([], "–"),
        ((0.5, True), "0.5, yes"),
        ({}, "–"),
        ({"num_layers": 2, "on": True}, "number of layers 2, on yes"),
        ("text", "text"),
        (np.float64(0.25), "0.25"),
    ],
)
def test_any_value_as_short_text(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_metric_is_a_percentage_where_its_name_says_accuracy() -> None:
    assert format_metric("valid_accuracy", 0.5) == "50.0%"
    assert format_metric("train_accuracy_mixed", 0.12345, 2) == "12.35%"
    assert format_metric("accuracy", None) == "–"
    assert format_metric("accuracy", math.nan) == "nan"
    assert format_metric("valid_loss", 0.5) == "0.5"


def test_settings_on_one_line() -> None:
    assert settings_text({"alpha": 0.2, "per_sample": False, "layer": None}) == "alpha 0.2, per sample no, layer –"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, ("none set", "")),
        (
            {"metric": "valid_accuracy", "value": 0.92, "reached_seconds": 37},
            ("reached in 37 s", "validation accuracy 92.0%"),
        ),
        ({"metric": "valid_loss", "value": 0.3, "reached_seconds": None}, ("not reached", "validation loss 0.3")),
        ({"metric": "valid_loss", "value": 0.3, "reached_seconds": 0.0}, ("reached in 0.00 s", "validation loss 0.3")),
        ({"value": None}, ("not reached", "metric –")),
    ],
)
def test_the_target_and_whether_it_was_reached(target: Any, words: tuple[str, str]) -> None:
    assert target_text({"target": target}) == words


def test_what_can_be_drawn() -> None:
    assert is_finite(1)
    assert is_finite(-0.5)
    for value in (math.nan, math.inf, True, None, "1", 1j):
        assert not is_finite(value)
