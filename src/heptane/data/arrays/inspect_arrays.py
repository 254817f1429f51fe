"""Inspect arrays: their shape, their labels, and samples that occur more than once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np, torch
from heptane.base.progress import working
from heptane.data.duplicates import count_classes, describe_duplicates, describe_numbers, equal_groups
from heptane.data.images.contact_sheet import MAX_CLASSES, draw_sheet, tiles_per_class
from heptane.data.images.survey import evenly_spaced

if TYPE_CHECKING:
    from heptane.data.dataset import Data


def describe_arrays(data: Data) -> dict[str, Any]:
    """What loaded arrays hold, as a record; samples are numbered through their parts."""
    given = {part: pair for part in ("train", "valid", "test") if (pair := getattr(data, part)) is not None}
    together = torch.cat([pair[1] for pair in given.values()])
    targets = (together if data.preprocess is None else data.preprocess.outputs(together)).numpy()
    parts, names, start = {}, list[str](), 0
    for part, (_, labels) in given.items():
        parts[part] = np.arange(start, start + len(labels))
        names += [f"{part} {at}" for at in range(len(labels))]
        start += len(labels)
    classes = data.class_names or tuple(str(number) for number in range(data.num_classes or 0))
    one_class = bool(classes) and targets.ndim == 1
    labels = [classes[label] for label in targets.tolist()] if one_class else [str(row) for row in targets.tolist()]
    with working(f"comparing {start:,} samples", start) as advance:
        keys = []
        for inputs, _ in given.values():
            for sample in inputs:
                keys.append(hashlib.blake2b(sample.contiguous().numpy().tobytes(), digest_size=16).digest())
                advance()
    groups = equal_groups(np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2))
    return {
        "kind": "arrays",
        "samples": start,
        "shape": list(data.input_shape),
        "parts": {part: len(numbers) for part, numbers in parts.items()},
        "classes": count_classes(parts, targets, classes) if classes else None,
        "target": None if classes else describe_numbers(targets),
        "duplicates": describe_duplicates(groups, parts, labels, names.__getitem__),
    }


def array_sheet(data: Data) -> bytes | None:
    """A picture of some training samples of each class, if they are images of one class each: a PNG file's content."""
    inputs, targets = data.train
    if data.kind != "images" or data.class_counts is None:
        return None
    counts = data.class_counts
    shown = evenly_spaced(range(len(counts)), MAX_CLASSES)
    rows = list[tuple[str, Any]]()
    for label in shown:
        members = evenly_spaced((targets == label).nonzero()[:, 0].tolist(), tiles_per_class(len(shown)))
        name = data.class_names[label] if data.class_names else f"class {label}"
        rows.append((f"{name} ({counts[label]:,})", [_pixels(data, inputs[at]) for at in members]))
    return draw_sheet(f"{data.name}: {len(targets):,} training images, {len(counts):,} classes", rows)


def _pixels(data: Data, sample: torch.Tensor) -> Any:
    """A standardised image as uint8 again."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return ((sample * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
