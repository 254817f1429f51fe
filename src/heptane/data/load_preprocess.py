"""Rebuild learned preprocessing from its JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heptane.base.errors import InputError
from heptane.data.arrays.array_preprocess import ArrayPreprocess
from heptane.data.images.image_preprocess import ImagePreprocess
from heptane.data.preprocess import Preprocess
from heptane.data.tables.load_table import TablePreprocess
from heptane.data.texts.load_text import TextPreprocess

KINDS: dict[str, type[Any]] = {
    "images": ImagePreprocess,
    "arrays": ArrayPreprocess,
    "table": TablePreprocess,
    "text": TextPreprocess,
}


def load_preprocess(record: Mapping[str, Any]) -> Preprocess:
    """Rebuild the preprocessing that :meth:`Preprocess.record` described.

    Raises:
        InputError: the record is damaged, or of an unknown kind.

    Example:
        >>> from heptane.data import load_data
        >>> again = load_preprocess(load_data("digits").preprocess.record())
        >>> names, inputs = again.inputs(torch.zeros(2, 8, 8, dtype=torch.uint8))
        >>> names, inputs.shape
        (['0', '1'], torch.Size([2, 1, 8, 8]))
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if kind not in KINDS:
        raise InputError(
            f"preprocess has kind {kind!r}: expected one of {', '.join(KINDS)}; was the run made by a newer version?"
        )
    try:
        made: Preprocess = KINDS[kind].parse(record)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"preprocess of kind {kind!r} is damaged ({type(error).__name__}: {error})") from error
    return made
