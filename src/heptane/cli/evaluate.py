"""``heptane evaluate``: a run's weights on data, scaled as in training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.cli.train import read_result
from heptane.data import Data, load_data
from heptane.errors import InputError, check_range


def evaluate(flags: argparse.Namespace) -> int:
    """Evaluate as the flags say, print the metrics; returns the exit code."""
    from heptane.fit import evaluate as evaluate_model
    from heptane.models import build
    from heptane.report import label, measure
    from heptane.settings import read_file

    check_range("batch_size", flags.batch_size, 1, whole=True)
    folder = Path(flags.run)
    record, settings = read_result(folder), read_file(folder / "settings.toml")
    known = record.get("data") or {}
    shape, num_classes = known.get("input_shape") or [], known.get("num_classes")
    folder_of_images = len(shape) == 3 and Path(flags.data or settings["data"]).is_dir()
    data = load_data(
        flags.data or settings["data"],
        label=settings.get("label"),
        task=settings.get("task"),
        image_size=(shape[1], shape[2]) if folder_of_images else None,
        valid_fraction=settings.get("valid_fraction"),
        skip_bad=max(flags.skip_bad, settings.get("skip_bad", 0)),
    )
    if list(data.input_shape) != list(shape):
        raise InputError(f"data {data.name!r} has samples of shape {data.input_shape}; the run's model takes {tuple(shape)}")
    if list(data.class_names) != list(known.get("class_names") or []):
        raise InputError(f"data {data.name!r} has other classes than the run: {_few(data.class_names)}")
    inputs, targets = _part(data, flags.part, known)
    outputs = num_classes if num_classes is not None else targets.shape[1] if targets.ndim > 1 else 1
    model = build(settings["model"], input_shape=shape, num_classes=outputs)
    _load(model, folder / "model.safetensors")
    found = evaluate_model(model, (inputs, targets), loss=settings.get("loss"), batch_size=flags.batch_size)
    print(f"{settings['model']} of {folder} on {data.name}, {len(targets):,} samples ({flags.part})")
    for name, value in found.items():
        print(f"{label(name)}  {measure(name, value, 2)}")
    return 0


def _part(data: Data, name: str, known: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The part asked for, in the scale that the run was trained in."""
    parts = [getattr(data, part) for part in (("train", "valid", "test") if name == "all" else (name,))]
    there = [part for part in parts if part is not None]
    if not there:
        raise InputError(f"data {data.name!r} has no {name} part; choose another with --part")
    inputs, targets = torch.cat([part[0] for part in there]), torch.cat([part[1] for part in there])
    mean, std = known.get("mean") or [], known.get("std") or []
    if data.mean and mean and list(data.mean) != mean:
        own_mean, own_std, run_mean, run_std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std, mean, std)
        )
        inputs = (inputs * own_std + own_mean - run_mean) / run_std
    return inputs, targets


def _load(model: torch.nn.Module, path: Path) -> None:
    """A run's own weights, whole: the head may have been swapped, so it is made to fit first."""
    from heptane.weights import load_weights

    load_weights(model, path, min_match=1.0)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
