"""``heptane train``: settings to data, model and optimizer, then :func:`heptane.fit`.

The flags are the fields of :class:`heptane.session.settings.Settings`; ``parser.py`` lists the everyday ones.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from heptane.base.clock import process_start
from heptane.base.errors import InputError
from heptane.cli.flags import settings_from_flags, typed_table
from heptane.cli.loading import describe_data, is_rank_zero
from heptane.cli.plan_text import plan_lines
from heptane.cli.planning import Planned, plan_run
from heptane.cli.resume import settings_file
from heptane.core.fit_options import Extras, Plan
from heptane.data import Data
from heptane.session.settings import Choice, Settings, choice, convert, read_file, to_toml
from heptane.tricks import KINDS, Tricks


def train(flags: argparse.Namespace) -> int:
    """Train as the flags say; returns the exit code."""
    settings, wanted, _ = read(flags)
    out = out_folder(settings, flags)
    planned = plan_run(settings, wanted, flags, planning=flags.dry_run)
    settings, data, tricks, reasons = planned.settings, planned.data, planned.tricks, planned.reasons
    if is_rank_zero():
        print("\n".join(plan_lines(planned)), file=sys.stdout if flags.dry_run else sys.stderr)
    if flags.dry_run:
        _print_plan(settings, tricks, reasons)
        return 0
    if flags.plan_workers:
        return _predict(settings, data, tricks, flags)
    return _fit(planned, out, flags, {"command": flags.command_line, "reasons": reasons})


def read(flags: argparse.Namespace, **defaults: Any) -> tuple[Settings, Choice, dict[str, Any]]:
    """The settings, the tricks asked for and the settings of a race: the defaults, then the file, then the flags."""
    own, tricks = settings_from_flags(flags)
    if flags.resume:
        flags.config = settings_file(flags, own, tricks)
    content = read_file(flags.config) if flags.config else {}
    from_file = {name: typed_table(kind, content[name], f"{name}.") for name, kind in KINDS.items() if name in content}
    off = tuple(flags.off or ())
    merged = {
        n: {**from_file.get(n, {}), **tricks.get(n, {})} for n in KINDS if n in tricks or (n in from_file and n not in off)
    }
    base = flags.tricks or content.get("tricks", "recommended")
    settings = Settings(**{**defaults, **typed_table(Settings, content), **own})
    return settings, choice(base, merged, off), content.get("race", {})


def _predict(settings: Settings, data: Data, tricks: Tricks, flags: argparse.Namespace) -> int:
    """``--plan-workers``: a table of what more workers would bring."""
    from heptane.pretrained.models import build
    from heptane.recommend.workers import plan_workers

    counts = [convert("--plan-workers", "int", part) for part in flags.plan_workers.split(",")]
    found, cost, rule = plan_workers(
        build(str(settings.model), input_shape=data.input_shape, num_classes=num_outputs(data)),
        data.train,
        counts,
        gigabits_per_second=flags.plan_bandwidth,
        latency_microseconds=flags.plan_latency,
        per_host=flags.plan_per_host,
        tricks=tricks.without("data_parallel"),
        how=plan_of(settings),
    )
    megabytes = sum(cost.buckets) / 1e6
    print(
        f"measured: a step of one worker with {settings.batch_size} samples computes {1e3 * cost.compute_seconds:.3g} ms, "
        f"{1e3 * cost.backward_seconds:.3g} of them backward; its gradients are {megabytes:.3g} MB\n"
        f"assumed: {flags.plan_bandwidth:g} Gbit/s and {flags.plan_latency:g} us between hosts of {flags.plan_per_host} "
        f"worker(s), a ring, sums hidden behind the backward pass\npredicted, the rate by the {rule}:\n"
    )
    print(f"{'workers':>8} {'hosts':>6} {'batch':>9} {'rate':>9} {'samples/s':>12} {'efficiency':>11}")
    for row in found:
        numbers = f"{row.batch_size:9,} {row.learning_rate:9.4g} {row.samples_per_second:12,.0f} {row.efficiency:11.0%}"
        print(f"{row.workers:8} {row.hosts:6} {numbers}")
    return 0


def _fit(planned: Planned, out: Path, flags: argparse.Namespace, about: dict[str, Any]) -> int:
    from heptane.base.lazy import torch
    from heptane.pretrained.models import build
    from heptane.report.console import summary
    from heptane.session.request import Request
    from heptane.training import train_as_asked

    settings, data, tricks = planned.settings, planned.data, planned.tricks
    torch.manual_seed(settings.seed)
    model = build(str(settings.model), input_shape=data.input_shape, num_classes=num_outputs(data))
    about |= facts(settings, data) | {"settings_toml": to_toml(settings, tricks), "files": data.files}
    try:
        warnings.filterwarnings("ignore", message="cannot write ")  # it is said below
        request = Request(
            model,
            data.train,
            plan_of(settings, force=flags.force),
            data.valid,
            data.test,
            tricks=tricks,
            target=settings.target,
            run_dir=out,
            resume=bool(flags.resume),
            progress=True,
            about=about,
            started=process_start(),
            deadline=planned.deadline,
        )
        result = train_as_asked(request)
    except KeyboardInterrupt as error:
        if is_rank_zero():
            what = str(error) or "interrupted"
            print(f"heptane: {what}; go on with: heptane train --resume {shlex.quote(str(out))}", file=sys.stderr)
        return 130
    if not (out / "result.json").exists() and is_rank_zero():
        print(f"heptane: {result.notes[-1]}", file=sys.stderr)
        return 1
    if is_rank_zero():
        summary(json.loads((out / "result.json").read_text()))
    if settings.target is not None and result.reached is None:
        print(f"heptane: the target, a validation accuracy of {settings.target:g}, was not reached", file=sys.stderr)
        return 3
    return 0


def plan_of(settings: Settings, **more: Any) -> Plan:
    """The settings as a plan; ``more`` are extras that are no settings."""
    from heptane.core import optimizers

    assert settings.lr is not None
    assert settings.optimizer is not None
    factory = optimizers.optimizer_factory(
        settings.optimizer, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return Plan(
        optimizer=factory,
        epochs=settings.epochs or 1.0,
        extras=extras_of(settings, **more),
        **{name: getattr(settings, name) for name in ("batch_size", "loss", "seed", "accumulate", "clip_norm", "device")},
    )


def extras_of(settings: Settings, kind: type[Extras] = Extras, **more: Any) -> Any:
    """The settings that are extras, each by its own name."""
    from heptane.data.augment import named_augment
    from heptane.data.resize import ProgressiveResize

    small = settings.progressive_size
    own = {option.name: getattr(settings, option.name) for option in fields(Extras) if hasattr(settings, option.name)}
    own |= {
        "augment": named_augment(settings.augment or "none"),
        "resize": ProgressiveResize(size=small, until=settings.progressive_until) if small is not None else None,
    }
    if settings.evaluate_every_epochs is None:
        del own["evaluate_every_epochs"]
    return kind(**own | more)


def facts(settings: Settings, data: Data) -> dict[str, Any]:
    """What a record says of the data, the model and the settings."""
    return {
        "data": describe_data(data),
        "model": {
            "name": settings.model,
            "spec": settings.model,
            "input_shape": list(data.input_shape),
            "num_outputs": num_outputs(data),
        },
        "settings": {
            "optimizer": settings.optimizer,
            "weight_decay": settings.weight_decay,
            "augment": settings.augment,
            "loss": settings.loss,
        },
        "notes": list(data.notes),
    }


def out_folder(settings: Settings, flags: argparse.Namespace) -> Path:
    """Where the files go; one that cannot be used is refused before data is loaded."""
    from heptane.session.run_folder import check_folder

    out = Path(flags.resume or flags.out or _folder(settings))
    check_outside(out, Path(settings.data))
    if not flags.dry_run and not getattr(flags, "plan_workers", None):
        check_folder(out, force=flags.force, resume=bool(flags.resume))
    return out


def check_outside(out: Path, data: Path) -> None:
    """Raise :class:`InputError` if ``out`` is in the data folder."""
    if data.is_dir() and data.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out} is in the data folder {data}, whose folders are classes: choose another one")


def _folder(settings: Settings) -> str:
    from heptane.session.run_folder import this_job

    data = Path(settings.data).stem or "data"
    model = (settings.model or "model").replace(":", "-").replace("/", "-")
    return f"runs/{data}-{model}-{this_job() or time.strftime('%Y%m%d-%H%M%S')}"


def num_outputs(data: Data) -> int:
    if data.num_classes is not None:
        return data.num_classes
    targets = data.train[1]
    return int(targets.shape[1]) if targets.ndim > 1 else 1


def _print_plan(settings: Settings, tricks: Tricks, reasons: dict[str, str]) -> None:
    print()
    for name in KINDS:
        print(f"{name.replace('_', ' '):16} {'on ' if name in tricks.on else 'off'}  {reasons[name]}")
    print(f"\n{to_toml(settings, tricks)}", end="")
