"""The error for invalid input, and checks that raise it; each message names the argument, the value and the remedy."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable


class InputError(ValueError):
    """Invalid user input. The command line prints the message as one line and exits with code 2."""


class DataError(InputError):
    """Invalid data, found during training; what was trained until then is kept."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; the message says what was saved and how to resume."""


def check_range(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    whole: bool = False,
) -> None:
    """Raise :class:`InputError` unless ``value`` is a finite number between ``low`` and ``high``.

    Args:
        name: of the argument, for the message, such as ``Mixup.alpha``.
        value: a Python or NumPy number; booleans are rejected.
        low, high: limits, inclusive unless ``low_open`` or ``high_open``.
        whole: require an integer.
    """
    kind = "a whole number" if whole else "a number"
    left, right = "(" if low_open or low == -math.inf else "[", ")" if high_open or high == math.inf else "]"
    wanted = f"{kind} in {left}{_edge(low)}, {_edge(high)}{right}"
    accepted = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, accepted) or not _is_finite(value):
        raise InputError(f"{name}={value!r}: expected {wanted}")
    if value < low or value > high or (low_open and value == low) or (high_open and value == high):
        share = f" (did you mean {value / 100:g}?)" if (low, high) == (0, 1) and 2 <= value <= 100 else ""
        raise InputError(f"{name}={value!r} is out of range{share}: expected {wanted}")


def check_bool(name: str, value: object) -> None:
    """Raise :class:`InputError` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: expected True or False")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``choices``; the message suggests the closest one."""
    known = list(choices)
    if value not in known:
        raise InputError(
            f"{name}={value!r} is not known{did_you_mean(str(value), known)}: expected one of {', '.join(known)}"
        )


def check_names(name: str, value: object) -> None:
    """Raise :class:`InputError` unless ``value`` is a tuple or list of distinct, non-empty strings."""
    names = value if isinstance(value, (tuple, list)) else [None]
    if not all(isinstance(text, str) and text for text in names):
        raise InputError(f"{name}={value!r}: expected names, such as ('stem', 'block1')")
    twice = [text for text in names if names.count(text) > 1]
    if twice:
        raise InputError(f"{name} lists {twice[0]!r} twice: list each name once")


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Return ``' (did you mean X?)'`` for the closest of ``choices``, or an empty string."""
    known = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(value.lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {known[found[0]]}?)" if found else ""


def _is_finite(value: numbers.Real) -> bool:
    return isinstance(value, numbers.Integral) or math.isfinite(value)  # an int may be too large for a float


def _edge(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def one_line(error: BaseException) -> str:
    """The message of an error on one line, at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
