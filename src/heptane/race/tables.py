"""A race as tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from heptane.race.rows import Record, arm_row, effect_row, not_raced_text, notes
from heptane.report.console import make_console, make_table, printable


def race_summary(race: Record, files: Mapping[str, str | Path]) -> None:
    """Print the result of a race: times per arm and seed, effects, summary, files, and the headline last."""
    console = make_console(sys.stdout)
    seeds = race["plan"]["seeds"]
    arms = make_table("arm", *(f"seed {seed}" for seed in seeds), "median", "test", heading=True)
    for arm in race["arms"]:
        row = arm_row(race, arm, seeds)
        arms.add_row(*(printable(cell, sys.stdout) for cell in (row["title"], *row["cells"], row["median"], row["test"])))
    tricks = make_table("trick", "effect", "added to plain", "removed from all", heading=True)
    for effect in race["effects"]:
        row = effect_row(race, effect)
        verdict = "; ".join(filter(None, [effect["words"], effect["why"]]))
        tricks.add_row(*(printable(text, sys.stdout) for text in (row["title"], verdict, row["alone"], row["without"])))
    for table in (arms, tricks) if race["effects"] else (arms,):
        console.print()
        console.print(table)
    for text in (not_raced_text(race), *notes(race), race["summary"]):
        if text:
            console.print()
            console.print(printable(text, sys.stdout))
    console.print()
    width = max(map(len, files), default=0)
    for name, path in files.items():
        console.print(f"{name:<{width}}  {printable(str(path), sys.stdout)}", soft_wrap=True)
    console.print()
    console.print(printable(race["headline"], sys.stdout), style="bold", soft_wrap=True)
