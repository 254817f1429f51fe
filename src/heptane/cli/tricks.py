"""``heptane tricks``: the seven, from the docstrings of their modules."""

from __future__ import annotations

import inspect
import re
import sys

from heptane.tricks import KINDS

COSTS = "Costs, and when it does not help"


def tricks() -> int:
    """Print the seven."""
    from heptane.report.console import tricks_table

    tricks_table([_row(name) for name in KINDS])
    return 0


def _row(name: str) -> dict[str, str]:
    said = sections(name)
    return {"name": name, "title": title(name), "fills": said["Meets the loop at"], COSTS.lower(): said[COSTS]}


def title(name: str) -> str:
    """The first line of a trick's module docstring."""
    return _docstring(name).split("\n", 1)[0]


def sections(name: str, *, joined: bool = True) -> dict[str, str]:
    """The sections of a trick's module docstring by their headings, each on one line if ``joined``."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _docstring(name).splitlines()[1:]:
        if line and not line.startswith(" "):
            heading = line
        elif heading:
            found.setdefault(heading, []).append(line.strip())
    texts = {heading: "\n".join(lines).strip() for heading, lines in found.items()}
    return {heading: _joined(text) if joined else text for heading, text in texts.items()}


def _joined(text: str) -> str:
    """On one line, without markup."""
    return " ".join(re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").split())


def _docstring(name: str) -> str:
    return inspect.cleandoc(sys.modules[KINDS[name].__module__].__doc__ or "")
