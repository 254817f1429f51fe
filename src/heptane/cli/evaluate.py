"""``heptane evaluate``: evaluate a run's model on data, preprocessed as in training."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.base.tree import first_tensor, select_rows
from heptane.data import Data, load_data
from heptane.data.images.image_files import ListedImage
from heptane.data.images.sources import images_kind
from heptane.data.load import BUILT_IN
from heptane.session.finished.load_run import LoadedRun, load_run
from heptane.session.finished.predictions import batches_of, run_model
from heptane.session.model_record import CLASSES, VALUES

SHOWN = 40  # classes; of more, the worst are shown


def evaluate(flags: argparse.Namespace) -> int:
    """Evaluate and print the metrics; returns the exit code."""
    from heptane.report import format_metric, readable_name

    check_range("batch_size", flags.batch_size, 1, whole=True)
    run = load_run(flags.run)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    settings = _settings(run)
    outputs, targets, name, part = _outputs(run, settings, flags)
    found = metrics_of(run, outputs, targets, settings.get("loss"))
    spec = run.record["model"].get("spec") or run.record["model"].get("name")
    print(f"{spec} of {run.folder} on {name}, {len(targets):,} samples ({part})")
    for metric, value in found.items():
        print(f"{readable_name(metric)}  {format_metric(metric, value, 2)}")
    if run.outputs == CLASSES and outputs.ndim == 2 and not targets.is_floating_point():
        for line in by_class(run.classes, outputs, targets):
            print(line)
    return 0


def _settings(run: LoadedRun) -> dict[str, Any]:
    """The run's settings, from its settings file or its record."""
    from heptane.session.settings import read_file

    file = run.folder / "settings.toml"
    return read_file(file) if file.exists() else dict(run.record.get("settings") or {})


def _outputs(
    run: LoadedRun, settings: dict[str, Any], flags: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor, str, str]:
    """The model's outputs, the targets, the name of the data, and its part."""
    from heptane.data.load_labelled import load_labelled

    source = flags.data or settings.get("data")
    if not source:
        raise InputError(f"{run.folder} does not record its training data: pass --data")
    path = Path(source).expanduser()
    own = flags.data in (None, settings.get("data")) or (
        settings.get("data") and _same(path, Path(settings["data"]).expanduser())
    )
    if own or source in BUILT_IN or (not path.exists() and images_kind(source) is None):
        data = _load(run, settings, source, flags, bool(own))
        part = flags.part or ("valid" if data.test is None and data.valid is not None else "test")
        if part != (flags.part or "test"):
            what = f"{data.name} has no test data: evaluated on validation data, which selected the weights"
            print(f"note: {what}", file=sys.stderr)
        chosen, size = _parts(data, part), flags.batch_size
        targets = torch.cat([labels for _, labels in chosen])
        with working(f"evaluating {len(targets):,} samples", len(targets)) as advance:
            found = list[torch.Tensor]()
            for inputs, _ in chosen:  # images are read a batch at a time
                for start in range(0, len(first_tensor(inputs)), size):
                    batch = select_rows(inputs, slice(start, start + size))
                    found.append(run_model(run, _rescaled(batch, data, run)))
                    advance(len(found[-1]))
        return torch.cat(found), targets, data.name, part
    if run.preprocess is None:
        raise InputError(f"{run.folder} does not record its preprocessing: use hp.evaluate(hp.load_run(...).model, data)")
    raw, targets, part = load_labelled(
        path if path.exists() else source, flags.part or "test", run.classes, run.preprocess, settings.get("label")
    )
    bad: list[str] = []
    outputs: list[torch.Tensor] = []
    readable: set[str] = set()
    with working(f"evaluating {len(targets):,} samples"):
        for names, inputs in batches_of(run, raw, flags.batch_size, bad.append if flags.skip_bad else None):
            starts = range(0, len(names), flags.batch_size)
            outputs += [run_model(run, select_rows(inputs, slice(at, at + flags.batch_size))) for at in starts]
            readable |= set(names)
    if len(bad) > flags.skip_bad:
        raise InputError(f"{len(bad)} images are unreadable, more than --skip-bad {flags.skip_bad} allows: {bad[0]}")
    if bad:
        print(f"note: skipped {len(bad)} unreadable file(s)", file=sys.stderr)
        named = [file.name if isinstance(file, ListedImage) else str(file) for file in raw]
        targets = targets[torch.tensor([name in readable for name in named])]
    return torch.cat(outputs), targets, path.name, part


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _load(run: LoadedRun, settings: dict[str, Any], source: str, flags: argparse.Namespace, own: bool) -> Data:
    """The run's own data with the same split, or a built-in data set."""
    from heptane.cli.flags import typed_table
    from heptane.cli.loading import load
    from heptane.session.settings import Settings

    shape = (run.record.get("data") or {}).get("input_shape") or []
    if not own:
        data = load_data(source)
    else:
        typed = typed_table(Settings, settings)
        asked = replace(Settings(**{**typed, "data": source}), skip_bad=max(flags.skip_bad, typed.get("skip_bad", 0)))
        if len(shape) == 3 and images_kind(source) is not None:
            asked = replace(asked, image_size=(shape[1], shape[2]))  # type: ignore[arg-type]
        data = load(asked, argparse.Namespace(fallback=None), _scale(run.record))
    if shape and list(data.input_shape) != list(shape):
        raise InputError(
            f"data {data.name!r} has samples of shape {data.input_shape}, but the run's model takes {tuple(shape)}"
        )
    if run.classes and data.class_names and data.class_names != run.classes:
        raise InputError(f"data {data.name!r} has other classes than the run: {', '.join(data.class_names[:5])}")
    return data


def _scale(record: dict[str, Any]) -> str:
    """How a run's images were normalised: "imagenet" or "data"."""
    from heptane.data.normalise import IMAGENET_MEAN

    return "imagenet" if tuple((record.get("data") or {}).get("mean") or ()) == IMAGENET_MEAN else "data"


def _parts(data: Data, name: str) -> list[tuple[Any, torch.Tensor]]:
    """The requested parts."""
    parts = [getattr(data, part) for part in (("train", "valid", "test") if name == "all" else (name,))]
    there = [part for part in parts if part is not None]
    if not there:
        raise InputError(f"data {data.name!r} has no {name} part: choose another with --part")
    return there


def _rescaled(inputs: Any, data: Data, run: LoadedRun) -> Any:
    """Inputs of the data, normalised as in training."""
    known = run.record.get("data") or {}
    mean, std = known.get("mean") or [], known.get("std") or []
    if not (data.mean and mean and list(data.mean) != mean):
        return inputs
    own_mean, own_std, run_mean, run_std = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std, mean, std)
    )
    return (inputs * own_std + own_mean - run_mean) / run_std


def metrics_of(run: LoadedRun, outputs: torch.Tensor, targets: torch.Tensor, loss: str | None) -> dict[str, float]:
    """Loss and accuracy; with classes, the balanced accuracy too."""
    from heptane.fit import evaluate as evaluate_model

    if loss == "model":  # the model's own loss takes more than logits
        loss = None
    found = evaluate_model(torch.nn.Identity(), (outputs, targets), loss=loss)
    if run.outputs == CLASSES and outputs.ndim == 2 and not targets.is_floating_point():
        right, held = _counts(outputs, targets)
        occurs = held > 0
        found["balanced_accuracy"] = float((right[occurs] / held[occurs]).mean())
    return {**found, **_errors(run, outputs, targets)}


def _errors(run: LoadedRun, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Mean absolute error and R2 of numbers, in the units of the data; empty for other tasks."""
    if run.outputs != VALUES or outputs.numel() != targets.numel() or not targets.is_floating_point():
        return {}
    outputs, targets = outputs.flatten(1), targets.reshape(len(targets), -1)
    in_units = run.preprocess.outputs if run.preprocess is not None else lambda values: values
    predicted, truth = in_units(outputs).double(), in_units(targets).double()
    spread = float((truth - truth.mean(0)).square().mean())
    found = {"mean_absolute_error": float((predicted - truth).abs().mean())}
    return found if spread == 0 else {**found, "r2": 1 - float((predicted - truth).square().mean()) / spread}


def by_class(classes: tuple[str, ...], outputs: torch.Tensor, targets: torch.Tensor) -> list[str]:
    """A line per class that occurs: name, accuracy, counts; of many classes, the worst ones."""
    right, held = _counts(outputs, targets)
    names = classes if len(classes) == outputs.shape[1] else tuple(map(str, range(outputs.shape[1])))
    rows = [(float(r / h), name, int(r), int(h)) for name, r, h in zip(names, right, held, strict=True) if h]
    width = max(len(name) for _, name, _, _ in rows)
    shown = sorted(rows)[:SHOWN] if len(rows) > SHOWN else rows
    lines = [f"  {name:{width}}  {share:6.1%}  {r:,} of {h:,}" for share, name, r, h in shown]
    return [*lines, f"  ... and {len(rows) - SHOWN} classes with higher accuracy"] if len(rows) > SHOWN else lines


def _counts(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correct and total samples per class."""
    right = (outputs.argmax(1) == targets) & outputs.isfinite().all(1)
    correct, total = (torch.bincount(part, minlength=outputs.shape[1]).double() for part in (targets[right], targets))
    return correct, total
