"""``heptane race``: settings to data, model and optimizer, then :func:`heptane.race`."""

from __future__ import annotations

import argparse
import shlex
import sys
from math import ceil
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.base.progress import clear_progress
from heptane.cli.flags import typed_flags, typed_table
from heptane.cli.loading import is_rank_zero
from heptane.cli.plan_text import plan_lines
from heptane.cli.planning import plan_run
from heptane.cli.train import extras_of, facts, num_outputs, out_folder, plan_of, read
from heptane.data import Data
from heptane.race.arms import find_arm, make_arms
from heptane.session.settings import RaceSettings, Settings, to_toml
from heptane.tricks import Tricks

EVALUATE_EVERY_EPOCHS = 0.5  # a time to a target is known to within so much


def race(flags: argparse.Namespace) -> int:
    """Race as the flags say; returns the exit code."""
    settings, wanted, from_file = read(flags, evaluate_every_epochs=EVALUATE_EVERY_EPOCHS)
    own = RaceSettings(**typed_table(RaceSettings, from_file, "race.") | typed_flags(RaceSettings, vars(flags)))
    if settings.target is None and own.accuracy is None:
        raise InputError("--target is missing: pass one, such as --target 0.9, or a time, such as --accuracy 60s")
    if settings.target is not None and own.accuracy is not None:
        raise InputError(f"--target {settings.target:g} and --accuracy {own.accuracy} are two races: leave one out")
    if settings.on_nan == "rewind":
        raise InputError("--on-nan rewind goes back to checkpoints, and the runs of a race keep none: use skip or stop")
    if settings.patience is not None:
        raise InputError("--patience stops a run early, and a race stops at its target: leave it out")
    out = out_folder(settings, flags)
    planned = plan_run(settings, wanted, flags, race=True)
    settings, data, tricks, reasons = planned.settings, planned.data, planned.tricks, planned.reasons
    make_arms(tricks, own.arm_names)  # refuses names that are not known before anything is printed
    if is_rank_zero():
        print("\n".join(plan_lines(planned)), file=sys.stdout if flags.dry_run else sys.stderr)
        warn_of_too_few(settings.target, data)
    about = facts(settings, data)
    chosen = ("lr", "momentum", "batch_size", "epochs", "accumulate", "clip_norm", "evaluate_every_epochs")
    about["settings"] |= {name: getattr(settings, name) for name in chosen}
    about |= {
        "command": flags.command_line,
        "reasons": reasons,
        "settings_toml": to_toml(settings, tricks, own),
    }
    return _race(settings, own, data, tricks, out, flags, about)


def warn_of_too_few(target: float | None, data: Data) -> None:
    """Say before the race that it cannot end in a verdict, where the validation samples are too few for the target."""
    from heptane.race.target import ENOUGH_ERRORS, too_few_samples

    count = 0 if data.valid is None else len(data.valid[1])
    why = too_few_samples({"target": {"metric": "valid_accuracy", "value": target}, "num_valid": count})
    if why and target is not None:
        clear_progress()
        needed = f"{ceil(ENOUGH_ERRORS / (1 - target) - 1e-9):,} of them are enough" if target < 1 else "none are enough"
        print(f"note: no verdict will be possible: {why}; {needed}, and --valid-fraction sets more aside", file=sys.stderr)


def _race(
    settings: Settings,
    own: RaceSettings,
    data: Data,
    tricks: Tricks,
    out: Path,
    flags: argparse.Namespace,
    about: dict[str, Any],
) -> int:
    from heptane.pretrained.models import build
    from heptane.race.race import RaceExtras, RaceRequest
    from heptane.race.tables import race_summary

    extras: RaceExtras = extras_of(
        settings,
        RaceExtras,
        weights="last",
        accuracy_in=own.accuracy_seconds,
        fixed_seeds=own.fixed_seeds,
        tune=own.tune,
        peak=own.peak,
        planned_epochs=own.planned_epochs,
        force=flags.force,
        dry_run=flags.dry_run,
    )
    try:
        request = RaceRequest(
            lambda: build(str(settings.model), input_shape=data.input_shape, num_classes=num_outputs(data)),
            data.train,
            data.valid,
            plan_of(settings),
            extras,
            target=settings.target,
            tricks=tricks,
            arms=own.arm_names,
            seeds=own.seeds,
            budget=own.budget_seconds,
            test=data.test,
            about=about,
        )
        result = request.race(out, resume=bool(flags.resume), progress=True)
    except KeyboardInterrupt:
        print(f"heptane: interrupted; go on with: heptane race --resume {shlex.quote(str(out))}", file=sys.stderr)
        return 130
    if flags.dry_run:
        _print_plan(result.record)
        return 0
    race_summary(result.record, {"race": out / "race.json", "report": out / "report.html"})
    runs = find_arm(result.record, "all")["runs"]
    if settings.target is not None and runs and all(run["seconds"] is None for run in runs):
        print(f"heptane: the target, a validation accuracy of {settings.target:g}, was not reached by all", file=sys.stderr)
        return 3
    return 0


def _print_plan(record: dict[str, Any]) -> None:
    from heptane.report import format_duration

    plan, expected = record["plan"], record["expected_seconds"]
    seeds = len(plan["seeds"])
    for arm in record["arms"]:
        on = ", ".join(arm["tricks"]) or "no tricks"
        length = f"at most {arm['epochs']:.3g} epochs"
        print(f"{arm['title']:36} {length}, {format_duration(expected[arm['name']])}  ({on})")
    racing = seeds * sum(expected.values())
    tuning = plan["tune"] * sum(expected.get(name, 0.0) for name in ("plain", "all"))
    count = f"{len(record['arms'])} arms, {seeds} seeds"
    print(f"\n{count}: at most {format_duration(racing)} of training, and {format_duration(tuning)} of tuning.")
    budget = plan["budget_seconds"]
    if budget is not None and racing + tuning > budget:
        print(f"The budget of {format_duration(budget)} is less: seeds that do not fit are left out, the last ones first.")
    print("A run stops at the target or once it can only be slower, an arm once its trick is settled: most take less.")
    if record["estimated"]:
        print(f"Not measured, but taken for as long as plain or all: {', '.join(record['estimated'])}.")
