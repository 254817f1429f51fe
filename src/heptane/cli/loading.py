"""Load a command's data, and describe it for the records."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import Any

from heptane.base.progress import clear_progress
from heptane.data import Data, Text, load_data
from heptane.data.images.listing import Listing
from heptane.data.load import holds_text
from heptane.pretrained.hubs import tokenizer_of
from heptane.session.settings import Settings

PLANNED = 256  # images: for a plan of more, not all are decoded


def load(
    settings: Settings,
    flags: argparse.Namespace,
    scale: str = "data",
    listing: Listing | None = None,
    *,
    planning: bool = False,
) -> Data:
    """Load the data, listed already if they are images; for a plan only a few are decoded. Notes on it go to stderr."""
    many = listing is not None and len(listing.images) > PLANNED
    data = load_data(
        settings.data if listing is None else listing,
        label=settings.label,
        task=settings.task,
        image_size=settings.image_size,
        valid_fraction=settings.valid_fraction,
        skip_bad=settings.skip_bad,
        fallback=flags.fallback,
        scale=scale,
        reading=replace(settings.reading, first=0) if planning and many else settings.reading,
        text=_text(settings),
    )
    clear_progress()
    for note in data.notes if is_rank_zero() else ():
        print(f"note: {note}", file=sys.stderr)
    return data


def _text(settings: Settings) -> Text | None:
    """The text to read; None for other data."""
    if not holds_text(settings.data, settings.text):
        return None
    return Text(settings.text, settings.max_tokens, tokenizer_of(settings.model))


def is_rank_zero() -> bool:
    """Whether this is rank 0, the only worker under torchrun that prints."""
    return os.environ.get("RANK", "0") == "0"


def describe_data(data: Data) -> dict[str, Any]:
    """The facts about ``data`` in a record."""
    sizes = {f"num_{part}": len(getattr(data, part)[1]) for part in ("train", "valid", "test") if getattr(data, part)}
    return {
        "name": data.name,
        "source": data.source,
        **sizes,
        "input_shape": list(data.input_shape),
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
        "kind": data.kind,
        "class_counts": None if data.class_counts is None else list(data.class_counts),
        "preprocess": None if data.preprocess is None else data.preprocess.record(),
    }
