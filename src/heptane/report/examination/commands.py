"""Build the command that repeats a run with changed settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heptane.base.clock import parse_duration
from heptane.pretrained.hubs import cached, efficientnet_hub

Result = Mapping[str, Any]
ENDS_EARLIER = ("--budget", "--target", "--patience")  # would end a longer run as early as this one
OF_THE_DATA = ("--label", "--task", "--valid-fraction", "--skip-bad", "--seed", "--device")


def is_command(result: Result) -> bool:
    """Whether ``heptane train`` made this run."""
    return str(result.get("command") or "").startswith("heptane train")


def command_with(result: Result, **changed: Any) -> str:
    """The command that repeats a run with changed settings; for a run from Python, the arguments to change.

    Args:
        result: the content of ``result.json``.
        changed: the settings; ``__`` stands for the dot of a trick's setting, as in ``transfer__mode``.
    """
    if not is_command(result):
        return f"hp.fit(..., {', '.join(f'{name}={value!r}' for name, value in changed.items())})"
    flags = {_flag(name): _text(value) for name, value in changed.items()}
    dropped = (*flags, "--out", "--force", *(ENDS_EARLIER if "epochs" in changed else ()))
    kept: list[str] = []
    for name, value in _flags(result):
        if name == "--resume":
            kept += ["--config", f"{value}/settings.toml"]
        elif name not in dropped:
            kept += [name] if value is None else [name, value]
    return shlex.join(["heptane", "train", *kept, *(part for flag in flags.items() for part in flag)])


def from_pretrained(result: Result) -> str:
    """The command that starts from pretrained weights; "" unless the data is a folder of images."""
    source = str((result.get("data") or {}).get("source") or "")
    if not is_command(result) or not source or not Path(source).is_dir():
        return ""
    found = cached.find_pretrained()
    if found is None:
        return efficientnet_hub.INSTALL
    given = _flags(result)
    data = next((value for name, value in given if name == "--data" and value), source)
    kept = [part for name, value in given if name in OF_THE_DATA and value for part in (name, value)]
    return shlex.join(["heptane", "train", "--data", data, *kept, "--model", found.model])


def with_more_time(result: Result) -> str:
    """The command with twice the budget; "" if it has no budget."""
    budget = dict(_flags(result)).get("--budget") if is_command(result) else None
    return command_with(result, budget=f"{2 * parse_duration('budget', budget):g}s") if budget else ""


def _flags(result: Result) -> list[tuple[str, str | None]]:
    """The flags of a run's command with their values."""
    found: list[tuple[str, str | None]] = []
    for word in shlex.split(str(result.get("command") or "").replace("\n", " "))[2:]:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append((name, value if equals else None))
        elif found:
            found[-1] = (found[-1][0], word)
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('__', '.').replace('_', '-')}"


def _text(value: Any) -> str:
    return f"{float(f'{value:.3g}'):g}" if isinstance(value, float) else str(value)
