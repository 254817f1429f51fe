"""``heptane layers``: show a model's layer groups with their learning rates and freezing."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from heptane.base.lazy import torch
from heptane.cli.planning import plan_run
from heptane.cli.train import num_outputs, plan_of, read
from heptane.data import Data
from heptane.tricks import Tricks
from heptane.tricks.transfer import Transfer

BLANK = "blank images"  # stands in for data
IMAGES, CLASSES, SAMPLES = (3, 224, 224), 10, 1000


def layers(flags: argparse.Namespace) -> int:
    """Print the groups; returns the exit code."""
    settings, wanted, _ = read(flags, data=BLANK)
    blank = _blank(settings.image_size) if settings.data == BLANK else None
    planned = plan_run(settings, wanted, flags, data=blank)
    settings, data, tricks = planned.settings, planned.data, planned.tricks
    transfer = tricks.transfer or Transfer()
    rows, by = groups_of(settings, data, Tricks(transfer=transfer, lr_scaling=tricks.lr_scaling))
    if flags.json:
        print(json.dumps({"model": settings.model, "by": by, "groups": rows}, indent=2))
    else:
        _print(str(settings.model), rows, by, settings.data == BLANK)
    return 0


def groups_of(settings: Any, data: Data, tricks: Tricks) -> tuple[list[dict[str, Any]], str]:
    """A row per layer group before the first step of such a run, and the source of the grouping.

    ``frozen_until_epoch`` is 0 if a group trains from the start, None if it never trains.
    """
    from heptane.assemble import assemble
    from heptane.pretrained.models import build
    from heptane.tricks.transfer import Stages

    torch.manual_seed(settings.seed)
    model = build(str(settings.model), input_shape=data.input_shape, num_classes=num_outputs(data))
    run = assemble(model, data.train, plan_of(settings), tricks)
    assert isinstance(run.stages, Stages)
    groups = run.stages.groups
    assert groups is not None
    rows = []
    for depth, (group, rate) in enumerate(zip(groups.groups(run.model), run.base_rates, strict=True)):
        starts = [phase.start for phase in run.phases if depth >= (phase.frozen or 0)]
        rows.append(
            {
                "group": group.name or type(run.model).__name__,
                "parameters": sum(parameter.numel() for parameter in group.parameters),
                "rate": rate,
                "frozen_until_epoch": starts[0] / run.source.steps_per_epoch if starts else None,
            }
        )
    return rows, groups.by


def _blank(size: int | None) -> Data:
    """Blank images, enough to find the order of a model's layers."""
    shape = IMAGES if size is None else (IMAGES[0], size, size)
    train = torch.zeros(1).expand(SAMPLES, *shape), torch.arange(SAMPLES) % CLASSES
    return Data(BLANK, train, None, None, CLASSES, (), (), source="made here")


def _print(model: str, rows: list[dict[str, Any]], by: str, blank: bool) -> None:
    from heptane.report.console import make_console, make_table, printable

    console = make_console(sys.stdout)
    shown = f" (on blank images, {IMAGES[0]} channels, {CLASSES} classes: pass --data for your own)" if blank else ""
    console.print(printable(f"{model}: {len(rows)} layer groups from input to output, grouped by {by}{shown}\n", sys.stdout))
    table = make_table("group", "parameters", "learning rate", "frozen until", heading=True)
    for row in rows:
        until = row["frozen_until_epoch"]
        frozen = "never trains" if until is None else f"epoch {until:.3g}" if until else "-"
        table.add_row(printable(row["group"], sys.stdout), f"{row['parameters']:,}", f"{row['rate']:.3g}", frozen)
    console.print(table)
