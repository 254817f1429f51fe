"""Errors about bad input name the thing, the value and the remedy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from heptane.base.errors import InputError, check_choice, check_range, did_you_mean


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 1, np.float32(0.5), np.int64(1), np.float64(0.0), Fraction(1, 3)])
def test_numbers_within_the_range_pass(value: float) -> None:
    check_range("Mixup.alpha", value, 0, 1)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-0.1, (0, 1), "Mixup.alpha=-0.1 is out of range: expected a number in [0, 1]"),
        (1.5, (0, 1), "Mixup.alpha=1.5 is out of range: expected a number in [0, 1]"),
        (-1, (0,), "Mixup.alpha=-1 is out of range: expected a number in [0, inf)"),
        (2.5, (-math.inf, 2.0), "Mixup.alpha=2.5 is out of range: expected a number in (-inf, 2]"),
        (math.nan, (0, 1), "Mixup.alpha=nan: expected a number in [0, 1]"),
        (math.inf, (0,), "Mixup.alpha=inf: expected a number in [0, inf)"),
        ("0.2", (0, 1), "Mixup.alpha='0.2': expected a number in [0, 1]"),
        (None, (0, 1), "Mixup.alpha=None: expected a number in [0, 1]"),
        (True, (0, 1), "Mixup.alpha=True: expected a number in [0, 1]"),
        (np.bool_(True), (0, 1), f"Mixup.alpha={np.bool_(True)!r}: expected a number in [0, 1]"),
        (1j, (0, 1), "Mixup.alpha=1j: expected a number in [0, 1]"),
        ([0.5], (0, 1), "Mixup.alpha=[0.5]: expected a number in [0, 1]"),
    ],
)
def test_what_is_no_number_within_the_range_is_refused(value: object, limits: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_range("Mixup.alpha", value, *limits)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_tensor_is_not_a_setting() -> None:
    with pytest.raises(InputError, match=r"Mixup.alpha=tensor\(0.5000\): expected a number"):
        check_range("Mixup.alpha", torch.tensor(0.5), 0, 1)  # type: ignore[arg-type]


def test_open_ends_are_refused_and_shown_as_open() -> None:
    with pytest.raises(InputError, match=r"epochs=0 is out of range: expected a number in \(0, inf\)"):
        check_range("epochs", 0, 0, low_open=True)
    with pytest.raises(InputError, match=r"eps=1.0 is out of range: expected a number in \[0, 1\)"):
        check_range("eps", 1.0, 0, 1, high_open=True)
    check_range("epochs", 1e-9, 0, low_open=True)
    check_range("eps", 1 - 1e-9, 0, 1, high_open=True)


@pytest.mark.parametrize("value", [3.0, 0.5, "3", None, np.float64(3.0), True, math.nan])
def test_whole_takes_integers_only(value: object) -> None:
    with pytest.raises(InputError, match=r"batch_size=.*: expected a whole number in \[1, inf\)"):
        check_range("batch_size", value, 1, whole=True)  # type: ignore[arg-type]


def test_whole_takes_integers_of_any_kind_and_size() -> None:
    for value in (1, np.int64(7), np.uint8(1), 10**400):
        check_range("batch_size", value, 1, whole=True)


def test_a_huge_integer_beyond_the_limit_is_refused_as_out_of_range() -> None:
    with pytest.raises(InputError, match=r"is out of range: expected a whole number in \[0, 2147483648\]"):
        check_range("seed", 10**400, 0, 2**31, whole=True)


def test_a_choice_outside_the_list_is_named_with_the_nearest_and_all() -> None:
    check_choice("dtype", "bf16", ["auto", "bf16"])
    with pytest.raises(InputError) as caught:
        check_choice("dtype", "bf1", (name for name in ("auto", "bf16", "fp32")))
    assert str(caught.value) == "dtype='bf1' is not known (did you mean bf16?): expected one of auto, bf16, fp32"


def test_a_choice_of_another_type_is_refused_too() -> None:
    for value in (None, 16, ["bf16"]):
        with pytest.raises(InputError, match="expected one of auto, bf16"):
            check_choice("dtype", value, ["auto", "bf16"])


def test_nearest_ignores_case_and_keeps_the_spelling_of_the_choice() -> None:
    assert did_you_mean("ADAMW", ["SGD", "AdamW"]) == " (did you mean AdamW?)"
    assert did_you_mean("zzz", ["SGD", "AdamW"]) == ""
    assert did_you_mean("x", []) == ""
