"""The labels of images: one class each, several classes each, or a number to predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np
from heptane.data.tables.cells import Cells
from heptane.data.tables.labels import read_labels

if TYPE_CHECKING:
    import numpy.typing as npt

SEPARATORS = re.compile(r"[|;]")


@dataclass(frozen=True)
class ImageLabels:
    """Labels, classes, notes and ``named`` of a :class:`Listing`."""

    values: npt.NDArray[Any]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    named: bool = True


def from_cells(name: str, cells: Cells, task: str | None) -> ImageLabels:
    """Labels of one class or one number each, read as those of a table.

    Args:
        name: of the column, for messages.
        cells: the labels.
        task: as for :func:`heptane.load_data`.
    """
    read = read_labels(name, cells, task)
    return ImageLabels(read.targets.numpy(), read.names, read.notes, named=cells.kind == "category")


def split_texts(texts: Sequence[str | None]) -> list[list[str]] | None:
    """The classes of each text such as ``cat|dog``; None if no text has several.

    Example:
        >>> split_texts(["cat | dog", "", "cat"]), split_texts(["cat", "dog, brown"])
        ([['cat', 'dog'], [], ['cat']], None)
    """
    if not any(text and SEPARATORS.search(text) for text in texts):
        return None
    return [[part.strip() for part in SEPARATORS.split(text or "") if part.strip()] for text in texts]


def from_lists(name: str, lists: Sequence[Sequence[str]], names: Sequence[str] = ()) -> ImageLabels:
    """Labels of several classes each, or of none.

    Args:
        name: of the column, for messages.
        lists: the classes of each image.
        names: all classes, if they are known; else those that occur, sorted.

    Example:
        >>> made = from_lists("'tags'", [["cat", "dog"], [], ["cat"]])
        >>> made.classes, made.values.tolist()
        (('cat', 'dog'), [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    """
    classes = tuple(names) or tuple(sorted({one for several in lists for one in several}))
    if len(classes) < 2:
        raise InputError(f"the label {name} has only the class {classes[0] if classes else ''!r}: expected two or more")
    column = {one: index for index, one in enumerate(classes)}
    values = np.zeros((len(lists), len(classes)), dtype=np.float32)
    for row, several in enumerate(lists):
        values[row, [column[one] for one in several]] = 1
    notes = [f"the label {name} holds several classes: {len(classes)} classes, {values.sum() / len(lists):.2g} per image"]
    if empty := sum(not several for several in lists):
        notes.append(f"{empty} image(s) have no class in {name}: none applies to them")
    return ImageLabels(values, classes, tuple(notes))
