"""``--resume DIR``: read the settings of the run in DIR, and check which flags may change them."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.cli.flags import typed_flags, typed_table
from heptane.session.checkpoints.settings import MAY_CHANGE
from heptane.session.settings import RaceSettings, Settings, read_file
from heptane.tricks import KINDS
from heptane.tricks.data_parallel import DataParallel

OF_RUN = tuple(f.name for f in fields(Settings) if f.name in (*MAY_CHANGE, "budget"))
OF_WORKERS = tuple(f.name for f in fields(DataParallel) if f.name != "sync_batchnorm")
WITH_RACE = ("seeds", "budget")


def settings_file(flags: argparse.Namespace, own: dict[str, Any], tricks: dict[str, dict[str, Any]]) -> str:
    """The settings file of the run or race to resume.

    Args:
        flags: the parsed flags.
        own, tricks: the settings given as flags.

    Raises:
        InputError: the folder holds no run, or a flag differs that must not.
    """
    file = Path(flags.resume) / "settings.toml"
    race = flags.command == "race"
    if flags.config or flags.tricks or flags.out or flags.off or flags.force or (race and _of_race(flags, own, tricks)):
        raise InputError("--resume uses the settings of the resumed run: leave out other flags")
    if not file.exists():
        raise InputError(f"--resume {flags.resume}: the folder holds no run (settings.toml is missing)")
    if own or tricks:
        _check(flags.resume, read_file(file), own, tricks)
    return str(file)


def _of_race(flags: argparse.Namespace, own: dict[str, Any], tricks: dict[str, Any]) -> bool:
    return bool(own or tricks or set(typed_flags(RaceSettings, vars(flags))) - set(WITH_RACE))


def _check(folder: str, content: dict[str, Any], own: dict[str, Any], tricks: dict[str, dict[str, Any]]) -> None:
    """Refuse a flag whose value differs from the run's, unless it may."""
    for name, given in {"": own, **tricks}.items():
        kind, table = (KINDS[name], content.get(name)) if name else (Settings, content)
        allowed = OF_RUN if not name else OF_WORKERS if name == "data_parallel" else ()
        defaults = {field.name: field.default for field in fields(kind)}
        before = None if table is None else defaults | typed_table(kind, table)
        for key, value in given.items():
            if key in allowed or (before is not None and before[key] == value):
                continue
            flag = f"--{f'{name}.' if name else ''}{key}".replace("_", "-")
            was = f"{name} off" if before is None else "none" if before[key] is None else str(before[key])
            shown = shlex.quote(str(value))
            also = ", ".join(f"--{other.replace('_', '-')}" for other in OF_RUN)
            file = shlex.quote(str(Path(folder) / "settings.toml"))
            raise InputError(
                f"{flag} {shown} with --resume, but the run has {was}: leave it out (these may change: {also}, --workers), "
                f"or start a new run: heptane train --config {file} {flag} {shown}"
            )
