"""``heptane data inspect``: what a data set holds, what is wrong with it, and what ``heptane train`` would do with it."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.base.progress import clear_progress
from heptane.base.storage import replace_file, write_text
from heptane.cli.flags import typed_flags
from heptane.cli.inspection_text import print_inspection
from heptane.cli.plan_text import plan_lines
from heptane.cli.planning import plan_run
from heptane.cli.train import check_outside
from heptane.data.images.split_images import split_listing
from heptane.session.run_folder import check_folder, clean, this_job
from heptane.session.settings import Settings, choice

RECORD, SHEET = "inspect.json", "contact.png"
SCHEMA = 1
SPLIT_SEED = 0  # of load_data


def inspect(flags: argparse.Namespace) -> int:
    """Inspect the data; returns the exit code."""
    settings = Settings(**typed_flags(Settings, vars(flags)))
    out = _out_folder(settings, flags)
    record, sheet, known = _inspected(settings, everything=flags.all)
    clear_progress()
    if not flags.json:
        print_inspection(record)
    out.mkdir(parents=True, exist_ok=True)
    if sheet is not None:
        replace_file(out / SHEET, sheet)
    record |= _plan(settings, record, flags, known)
    write_text(out / RECORD, json.dumps(clean(record), indent=1) + "\n")
    if flags.json:
        print(json.dumps(clean(record), indent=1))
        return 0
    clear_progress()
    print(f"\n{record['command']}" + (f" would stop: {record['stops']}" if record["stops"] else ":"))
    print("".join(f"  {line}\n" for line in record["plan"]))
    if sheet is not None:
        print(f"contact sheet  {out / SHEET}")
    print(f"all findings   {out / RECORD}")
    return 0


def _out_folder(settings: Settings, flags: argparse.Namespace) -> Path:
    """Where the files go; one that cannot be used is refused before data is read."""
    name = Path(settings.data).expanduser().resolve().stem or "data"
    out = Path(flags.out or f"runs/inspect-{name}-{this_job() or time.strftime('%Y%m%d-%H%M%S')}")
    check_outside(out, Path(settings.data).expanduser())
    check_folder(out, force=True)
    held = [file for file in (RECORD, SHEET) if (out / file).exists()]
    if held and not flags.force:
        raise InputError(f"{out} already holds {' and '.join(held)}: choose another folder, or overwrite with --force")
    return out


def _inspected(settings: Settings, *, everything: bool) -> tuple[dict[str, Any], bytes | None, dict[str, Any]]:
    """The findings, a contact sheet if there are images, and what planning can use of what was read."""
    from heptane.data.images.sources import list_images
    from heptane.data.load import identify, load_data

    label, task, fraction = settings.label, settings.task, settings.valid_fraction
    if (listing := list_images(settings.data, label=label, task=task)) is not None:
        from heptane.data.images.inspect_images import contact_sheet, describe_images, inspect_images

        parts, _ = split_listing(listing, SPLIT_SEED, fraction)
        findings = inspect_images(listing.images, everything=everything)
        record = _about(settings, listing.name, listing.where, listing.notes) | describe_images(listing, parts, findings)
        return record, contact_sheet(listing, findings), {"listing": listing}
    kind, found = identify(settings.data)
    if kind == "table":
        from heptane.data.tables.inspect_table import describe_table
        from heptane.data.tables.load_table import load_opened, open_table

        table = open_table(found, label=label, task=task, seed=SPLIT_SEED, valid_fraction=fraction)
        data = load_opened(table)
        return _about(settings, data.name, data.source, data.notes) | describe_table(table), None, {"data": data}
    from heptane.data.arrays.inspect_arrays import array_sheet, describe_arrays

    data = load_data(settings.data, label=label, task=task, valid_fraction=fraction)
    record = _about(settings, data.name, data.source, data.notes) | describe_arrays(data)
    return record, array_sheet(data), {"data": data}


def _about(settings: Settings, name: str, where: str, notes: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "data": settings.data, "name": name, "source": where, "notes": list(notes)}


def _plan(settings: Settings, record: dict[str, Any], flags: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """The command that trains on the data, its plan, and why it would stop."""
    words = ["heptane", "train", "--data", settings.data]
    for name in ("label", "task", "valid_fraction"):
        value = getattr(settings, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    bad = len(record.get("unreadable", ()))
    words += ["--skip-bad", str(bad)] if bad else []
    try:
        planned = plan_run(replace(settings, skip_bad=bad), choice("recommended", {}), flags, **known, planning=True)
    except InputError as error:
        return {"command": shlex.join(words), "plan": [], "stops": " ".join(str(error).split())}
    return {"command": shlex.join(words), "plan": plan_lines(planned), "stops": None, "notes": list(planned.data.notes)}
