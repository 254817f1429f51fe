"""Hugging Face data sets: ``hf-data:NAME`` or ``hf-data:NAME:CONFIG``, or a folder that ``save_to_disk`` wrote.

The package ``datasets`` (extra ``hf-data``) is imported only here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np
from heptane.base.progress import working
from heptane.data.images.image_files import ImageList, Names
from heptane.data.images.image_labels import ImageLabels, from_lists
from heptane.data.images.listing import PARTS, Listing, part_named
from heptane.data.images.manifest import labels_of
from heptane.data.tables.load_table import find_label
from heptane.data.tables.read_table import pandas

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

PREFIX = "hf-data:"
FILES = ("dataset_dict.json", "state.json")  # of a folder written by save_to_disk


class HubImages(ImageList):
    """The encoded images in a column of a data set's splits."""

    def __init__(self, where: str, splits: Mapping[str, Any], column: str) -> None:
        from datasets import Image

        self.where = where
        self._splits = [split.select_columns([column]).cast_column(column, Image(decode=False)) for split in splits.values()]
        self._column, self._ends = column, np.cumsum([len(split) for split in self._splits])
        self.names = Names(f"{name}/{row}" for name, split in splits.items() for row in range(len(split)))

    def read(self, index: int) -> Path | bytes:
        split = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[split - 1]) if split else 0
        found = self._splits[split][index - start][self._column]
        if found is None or (not found["bytes"] and not found["path"]):
            raise OSError("the row has no image")
        return bytes(found["bytes"]) if found["bytes"] else Path(found["path"])

    def fingerprint(self) -> str:
        """By the splits' own checksums, and the sizes and times of their files."""
        files = [Path(file["filename"]) for split in self._splits for file in split.cache_files]
        facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        known = [self.where, self._column, facts, [(split._fingerprint, len(split)) for split in self._splits]]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def sizes(self) -> npt.NDArray[np.int64]:
        """Of images in the data set; those of files beside it are unknown."""
        from pyarrow import compute

        found = list[Any]()
        for split in self._splits:
            column = compute.struct_field(split.data.column(self._column), "bytes")
            found.append(compute.fill_null(compute.binary_length(column), 0).to_numpy().astype(np.int64))
        return np.concatenate(found)


def is_hub_data(name: str) -> bool:
    """Whether a source is a data set of the hub, or a folder of one."""
    return name.startswith(PREFIX) or is_saved(name)


def is_saved(name: str) -> bool:
    """Whether a name, without the prefix, is a folder that ``save_to_disk`` wrote."""
    return any((Path(name) / file).is_file() for file in FILES)


def open_splits(name: str) -> dict[str, Any]:
    """The splits of a data set, by name.

    Raises:
        InputError: ``datasets`` is missing, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'data={name!r} needs datasets, which is missing: pip install "heptane[hf-data]"') from error
    try:
        with working(f"loading {name}"):
            inner = name.removeprefix(PREFIX)
            if is_saved(os.path.expanduser(inner)):
                found = datasets.load_from_disk(os.path.expanduser(inner))
            else:
                found = datasets.load_dataset(*inner.split(":", 1))
    except Exception as error:  # datasets raises many types
        raise InputError(f"data={name!r} cannot be loaded ({one_line(error)}): check the name and the connection") from error
    return dict(found) if isinstance(found, Mapping) else {"all": found}


def list_hub_data(name: str, *, label: str | None, task: str | None) -> Listing | None:
    """List the images of a data set; None if it has no column of images.

    Args:
        name: ``hf-data:NAME``, or a folder.
        label: the label's column; None: the only column of class labels, else by its name.
        task: as for :func:`heptane.load_data`.

    Raises:
        InputError: it cannot be loaded, or its label is missing.
    """
    splits = open_splits(name)
    column = _image_column(next(iter(splits.values())).features)
    if column is None:
        return None
    notes = list[str]()
    parts = {key: part_named(key) for key in splits}
    if "train" in parts.values():
        if unused := [key for key, part in parts.items() if part is None]:
            notes.append(f"splits that are not train, validation or test were ignored: {', '.join(unused)}")
        splits = {key: split for key, split in splits.items() if parts[key]}
    frames = {key: split.remove_columns(column).to_pandas() for key, split in splits.items()}
    label = label_column(splits, frames, label, notes)
    feature = next(iter(splits.values())).features[label]
    unlabelled = [key for key, frame in frames.items() if class_names_of(feature) and (frame[label] == -1).all()]
    if unlabelled:
        notes.append(f"splits without labels were ignored: {', '.join(unlabelled)}")
    splits = {key: split for key, split in splits.items() if key not in unlabelled}
    labels = labels_of_feature(
        pandas().concat([frames[key] for key in splits], ignore_index=True)[label], feature, label, task
    )
    images = HubImages(name, splits, column)
    which = np.repeat([parts[key] or "all" for key in splits], [len(split) for split in splits.values()])
    rows = {part: np.flatnonzero(which == part) for part in PARTS if (which == part).any()}
    return Listing(
        name=Path(name).name if is_saved(os.path.expanduser(name.removeprefix(PREFIX))) else name.removeprefix(PREFIX),
        where=name,
        images=images,
        labels=labels.values,
        parts=rows if "train" in rows else {"all": np.arange(len(images))},
        classes=labels.classes,
        notes=(*notes, *labels.notes),
        encoded_bytes=0,
        named=labels.named,
    )


def hub_images(name: str) -> HubImages | None:
    """The images of all splits of a data set, whatever its other columns hold; None if it has no column of images."""
    splits = open_splits(name)
    column = _image_column(next(iter(splits.values())).features)
    return None if column is None else HubImages(name, splits, column)


def read_hub_table(name: str) -> pd.DataFrame:
    """A data set of numbers as a frame; class labels become their names.

    Raises:
        InputError: it holds text or other objects.
    """
    frames = []
    for split in open_splits(name).values():
        frame = split.to_pandas()
        for column, feature in split.features.items():
            if names := class_names_of(feature):
                frame[column] = [names[number] if 0 <= number < len(names) else None for number in frame[column]]
            elif not pandas().api.types.is_numeric_dtype(frame[column].dtype):
                is_text = str(getattr(feature, "dtype", "")).endswith("string")
                remedy = f"to predict from it pass --text {column}" if is_text else "remove it"
                raise InputError(f"data={name!r}: column {column!r} holds {'text' if is_text else 'no numbers'}: {remedy}")
        frames.append(frame)
    return pandas().concat(frames, ignore_index=True)


def _image_column(features: Mapping[str, Any]) -> str | None:
    from datasets import Image

    return next((name for name, feature in features.items() if isinstance(feature, Image)), None)


def class_names_of(feature: Any) -> list[str]:
    """The names of a column of class labels; empty for other columns."""
    return list(getattr(feature, "names", None) or ())


def _several_names(feature: Any) -> list[str]:
    """The names of the classes of a column of lists."""
    return class_names_of(getattr(feature, "feature", None))


def label_column(splits: dict[str, Any], frames: dict[str, Any], label: str | None, notes: list[str]) -> str:
    """The name of the label's column: the named one, the only one of class labels, or by its name."""
    features = next(iter(splits.values())).features
    if not (others := [name for name in features if name in next(iter(frames.values())).columns]):
        raise InputError("the data set has images, but no other column: add one with their labels")
    classes = [name for name in others if class_names_of(features[name]) or _several_names(features[name])]
    if label is None and len(classes) == 1:
        notes.append(f"column {classes[0]!r} is the label, by its type")
        return str(classes[0])
    return find_label(next(iter(frames.values())), label, notes)


def labels_of_feature(series: pd.Series, feature: Any, label: str, task: str | None) -> ImageLabels:
    """The labels in a column of all splits together."""
    if names := class_names_of(feature):
        numbers = series.fillna(-1).to_numpy(dtype=np.int64)
        bad = np.flatnonzero((numbers < 0) | (numbers >= len(names)))
        if len(bad):
            raise InputError(f"the label {label!r} is not a class in row {int(bad[0])} (the first is 0): remove it")
        there = np.unique(numbers)
        if len(there) < 2:
            raise InputError(f"the label {label!r} is {names[int(there[0])]!r} in every row: expected two or more classes")
        absent = [name for number, name in enumerate(names) if number not in set(there.tolist())]
        notes = (f"classes without an image were left out: {', '.join(absent[:8])}",) if absent else ()
        return ImageLabels(np.searchsorted(there, numbers), tuple(names[number] for number in there.tolist()), notes)
    if several := _several_names(feature):
        lists = [[several[number] for number in (() if row is None else row)] for row in series]
        return from_lists(repr(label), lists, several)
    return labels_of(series, label, task)
