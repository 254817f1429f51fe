"""The findings of ``heptane data inspect`` as text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heptane.data.duplicates import ACROSS, RELABELLED, WITHIN

MAX_CLASSES, MAX_COLUMNS, MAX_NAMED, MAX_GROUPS = 40, 60, 10, 5
UNITS = ("bytes", "kB", "MB", "GB", "TB")
NAMES = {"train": "training", "valid": "validation", "test": "test"}
Say = Callable[[str], None]


def print_inspection(record: Mapping[str, Any]) -> None:
    """Print a record of :mod:`heptane.cli.inspect`, without the plan, on stdout."""
    from heptane.report.console import make_console, printable

    console = make_console(sys.stdout)

    def say(text: str = "") -> None:  # never wrapped: names are for copying
        console.print(printable(text, sys.stdout), soft_wrap=True)

    parts = ", ".join(f"{count:,} {NAMES[part]}" for part, count in record["parts"].items())
    what = {"images": "images", "table": "rows", "arrays": "samples"}[record["kind"]]
    say(f"{record['name']}: {record['samples']:,} {what}: {parts}")
    if record["kind"] == "images":
        _images(record, say)
    elif "shape" in record:
        say(f"shape     {' x '.join(map(str, record['shape']))}")
    _classes(record, say)
    _columns(record, say)
    _unreadable(record, say)
    _duplicates(record, what, say)
    if record["kind"] != "images":  # those of images are said when the plan is made
        for note in record["notes"]:
            say(f"note: {note}")


def _images(record: Mapping[str, Any], say: Say) -> None:
    if record["tried"] < record["samples"]:
        say(f"read      {record['tried']:,} of {record['samples']:,} images, evenly spaced; --all reads all of them")
    say(f"files     {_bytes(record['bytes'])}, {_counts(record['formats'])}")
    if (sizes := record["sizes"]) is None:
        return
    (left, width, right), (low, height, high) = sizes["width"], sizes["height"]
    span = f"{width}x{height} pixels" if sizes["distinct"] == 1 else f"{left}x{low} to {right}x{high} pixels"
    middle = "" if sizes["distinct"] == 1 else f", median {width}x{height}, {sizes['distinct']:,} different sizes"
    say(f"sizes     {span}{middle}")
    say(f"colours   {_counts(record['colours'])}")


def _classes(record: Mapping[str, Any], say: Say) -> None:
    from heptane.report.console import make_console, make_table, printable

    classes, parts = record["classes"], record["parts"]
    if classes is None:
        target = record.get("target")
        if target is not None:
            say(f"target    numbers from {target['min']:.6g} to {target['max']:.6g}, mean {target['mean']:.6g}")
        return
    totals = [sum(one[part] for part in parts) for one in classes]
    low, high = min(totals), max(totals)
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    say(f"\n{len(classes):,} classes, {each}")
    shown = sorted(range(len(classes)), key=lambda at: -totals[at])
    table = make_table("class", "samples", "share", *(NAMES[part] for part in parts), heading=True)
    for column in table.columns[1:]:
        column.justify = "right"
    if len(shown) > MAX_CLASSES:
        shown = [*shown[: MAX_CLASSES // 2], -1, *shown[-MAX_CLASSES // 2 :]]
    for at in shown:
        if at < 0:
            table.add_row(f"({len(classes) - MAX_CLASSES:,} more)")
            continue
        counts = (f"{classes[at][part]:,}" for part in parts)
        share = f"{totals[at] / max(sum(totals), 1):.1%}"
        table.add_row(printable(classes[at]["name"], sys.stdout), f"{totals[at]:,}", share, *counts)
    make_console(sys.stdout).print(table)


def _columns(record: Mapping[str, Any], say: Say) -> None:
    from heptane.report.console import make_console, make_table, printable

    if not record.get("columns"):
        return
    columns = record["columns"]
    say(f"\n{len(columns):,} columns beside the label {record['label']!r}")
    table = make_table("column", "kind", "missing", "distinct", "values", "not used because it is", heading=True)
    for one in columns[:MAX_COLUMNS]:
        missing = f"{one['missing'] / record['samples']:.1%}" if one["missing"] else "-"
        row = one["name"], one["kind"], missing, f"{one['distinct']:,}", one["values"], one["unused"] or ""
        table.add_row(*(printable(cell, sys.stdout) for cell in row))
    if len(columns) > MAX_COLUMNS:
        table.add_row(f"({len(columns) - MAX_COLUMNS:,} more)")
    make_console(sys.stdout).print(table)


def _unreadable(record: Mapping[str, Any], say: Say) -> None:
    if record["kind"] != "images":
        return
    bad = record["unreadable"]
    if not bad:
        say("\nall of them can be read" if record["tried"] == record["samples"] else "\nall that were tried can be read")
        return
    say(f"\n{len(bad):,} of {record['tried']:,} images cannot be read")
    for one in bad[:MAX_NAMED]:
        say(f"  {one['name']}: {one['reason']}")
    _more(len(bad) - MAX_NAMED, say)
    say(f"  Repair or remove them, or leave them out with --skip-bad {len(bad)}.")


def _duplicates(record: Mapping[str, Any], what: str, say: Say) -> None:
    found = record["duplicates"]
    if not found["groups"]:
        say(f"\nno two {what} are the same")
        return
    same = "the same picture" if record["kind"] == "images" else "the same sample"
    say(f"\n{found['samples']:,} {what} occur more than once ({len(found['groups']):,} times {same})")
    for part, count in found["in_training"].items():
        if count:
            share = f"{count:,} of {record['parts'][part]:,}"
            say(f"  {share} {NAMES[part]} {what} are in the training part too, so {NAMES[part]} results are too good")
    for kind, text in (
        (ACROSS, "in several parts"),
        (RELABELLED, "with different labels"),
        (WITHIN, "more than once in a part"),
    ):
        groups = [group for group in found["groups"] if kind in group["kinds"]]
        if groups:
            say(f"  {text}: {len(groups):,}")
        for group in groups[:MAX_GROUPS]:
            say(f"    {_group(group['samples'], kind)}")
        _more(len(groups) - MAX_GROUPS, say, indent=4)


def _group(samples: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Up to three samples of a group, with what differs: the part, or the label."""
    key = "label" if kind == RELABELLED else "part"
    if kind == WITHIN:  # those of the part with most
        parts = [sample["part"] for sample in samples]
        samples = [sample for sample in samples if sample["part"] == max(parts, key=parts.count)]
    else:  # one of each part or label first, and training before the other parts
        seen = {sample[key]: sample for sample in reversed(samples)}
        first = sorted(seen.values(), key=lambda sample: sample["part"] != "train")
        samples = [*first, *(sample for sample in samples if sample not in first)]
    shown = " = ".join(f"{sample['name']} ({sample[key]})" for sample in samples[:3])
    return shown + (f" = {len(samples) - 3:,} more" if len(samples) > 3 else "")


def _more(count: int, say: Say, indent: int = 2) -> None:
    if count > 0:
        say(f"{' ' * indent}and {count:,} more: see inspect.json")


def _counts(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return f"all {next(iter(counts))}"
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:,.0f} {UNITS[unit]}" if unit == 0 or count >= 10 else f"{count:.1f} {UNITS[unit]}"
