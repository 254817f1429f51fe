"""``heptane demo``: show what heptane does, on this machine, within a few minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from heptane.base.clock import parse_duration
from heptane.base.errors import check_range


def demo(flags: argparse.Namespace) -> int:
    """Run the demonstration; the exit code is 0 even if a part could not be shown."""
    from heptane.cli.demonstration import demo as run

    seconds = parse_duration("--budget", flags.budget)
    check_range("--budget", seconds, 1, 86400)
    run(Path(flags.out), data_name=flags.data, seconds=seconds)
    return 0
