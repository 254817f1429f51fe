"""The texts and labels of a table, a folder of .txt files, or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, did_you_mean, one_line
from heptane.base.lazy import np
from heptane.base.progress import working
from heptane.data.images.folder import find_classes, find_parts
from heptane.data.images.listing import PARTS, part_named
from heptane.data.preprocess import is_path
from heptane.data.tables.cells import comma_of, read_cells
from heptane.data.tables.chunks import can_read, read_frames, source_files
from heptane.data.tables.labels import Labels, read_labels
from heptane.data.tables.load_table import find_label, names
from heptane.data.tables.read_table import pandas, read_table

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".txt"
PIECE_FILES = 1024


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """The texts of a data set, not yet read, and their labels.

    Attributes:
        name, where: of the data set, for messages.
        label: name of the label's column; "" for a folder.
        labels: of all texts.
        parts: the rows of ``train``, ``valid`` and ``test``, if the data set brings them.
        names: of the texts; None: their numbers.
        characters: in all texts, about.
        facts: what tells whether the texts are the same as in an earlier run; None: nothing does.
        notes: for the user.
        texts: yields all texts in order, some at a time; each time anew.
    """

    name: str
    where: str
    label: str
    labels: Labels
    parts: dict[str, Any]
    names: list[str] | None
    characters: int
    facts: Any
    notes: tuple[str, ...]
    texts: Any


def folder_texts(root: Path) -> TextSource:
    """The .txt files of class folders."""
    parts = find_parts(root)
    classes = find_classes(parts)
    files, labels, rows = list[Path](), list[int](), dict[str, Any]()
    for part, folder in parts.items():
        start = len(files)
        for number, name in enumerate(classes):
            found = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() == SUFFIX and file.is_file())
            if not found:
                raise InputError(f"class folder {str(folder / name)!r} has no {SUFFIX} file: add some, or remove it")
            files += found
            labels += [number] * len(found)
        rows[part] = np.arange(start, len(files))

    def texts() -> Iterator[list[str]]:
        for start in range(0, len(files), PIECE_FILES):
            yield [read_file(file) for file in files[start : start + PIECE_FILES]]

    shown = [str(file.relative_to(root)) for file in files]
    stats = [file.stat() for file in files]
    targets = np.array(labels, dtype=np.int64)
    return TextSource(
        name=root.name,
        where=str(root),
        label="",
        labels=Labels(_tensor(targets), tuple(classes)),
        parts={} if "all" in rows else rows,
        names=shown,
        characters=sum(stat.st_size for stat in stats),
        facts=[(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(shown, stats, strict=True)],
        notes=(),
        texts=texts,
    )


def read_file(path: Path) -> str:
    """A text file: UTF-8, else Windows-1252."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"text {str(path)!r} cannot be read ({one_line(error)}): repair or remove it") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def table_texts(source: Any, column: str, label: str | None, task: str | None) -> TextSource:
    """A column of a table."""
    streamed = is_path(source) and can_read(source)
    held = None if streamed else read_table(source)[0]

    def frames() -> Iterator[pd.DataFrame]:
        yield from read_frames(source) if held is None else (held,)

    notes, kept, characters = list[str](), list[Any](), 0
    with working("reading the labels") as advance:
        for frame in frames():
            if not kept:
                check_column(frame, column)
                label = find_label([name for name in map(str, frame.columns) if name != column], label, notes)
                unused = [name for name in map(str, frame.columns) if name not in (column, label)]
            kept.append(frame[label])
            characters += sum(map(len, as_texts(frame[column])))
            advance(len(frame))
    if not kept:
        raise InputError(f"{source} has no rows: expected at least one")
    notes += [f"ignored, since the text is the input: {names(unused)}"] if unused else []
    series = pandas().concat(kept)
    cells = read_cells(series, comma_of(series.to_frame()), label=True)
    labels = read_labels(repr(label), cells, task)
    files = source_files(Path(source).expanduser()) if streamed else []
    return TextSource(
        name=Path(source).name.split(".")[0] if is_path(source) else "text",
        where=str(source) if is_path(source) else f"a {type(source).__name__}",
        label=str(label),
        labels=labels,
        parts={},
        names=None,
        characters=characters,
        facts=[column, *((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)]
        if streamed
        else None,
        notes=(*notes, *labels.notes),
        texts=lambda: (as_texts(frame[column]) for frame in frames()),
    )


def hub_texts(name: str, column: str | None, label: str | None, task: str | None) -> TextSource:
    """A column of a Hugging Face data set: its only one of text, or the named one."""
    from heptane.data.images.hub_data import PREFIX, class_names_of, label_column, labels_of_feature, open_splits

    splits, notes = open_splits(name), list[str]()
    features = next(iter(splits.values())).features
    texts = [key for key, feature in features.items() if str(getattr(feature, "dtype", "")).endswith("string")]
    if column is None and label in texts:
        texts.remove(str(label))
    if column is None and len(texts) != 1:
        raise InputError(f"data={name!r} has {len(texts)} columns of text ({names(texts)}): choose one with --text COLUMN")
    column = texts[0] if column is None else column
    if column not in features:
        raise InputError(
            f"text={column!r} is not a column{did_you_mean(column, features)}: {name} has {names(list(features))}"
        )
    parts = {key: part_named(key) for key in splits}
    if "train" in parts.values():
        splits = {key: split for key, split in splits.items() if parts[key]}
    frames = {key: split.remove_columns(column).to_pandas() for key, split in splits.items()}
    label = label_column(splits, frames, label, notes)
    feature = features[label]
    if class_names_of(feature):
        splits = {key: split for key, split in splits.items() if not (frames[key][label] == -1).all()}
    labels = labels_of_feature(
        pandas().concat([frames[key] for key in splits], ignore_index=True)[label], feature, label, task
    )
    which = np.repeat([parts[key] or "all" for key in splits], [len(split) for split in splits.values()])
    rows = {part: np.flatnonzero(which == part) for part in PARTS if (which == part).any()}

    def texts_of() -> Iterator[list[str]]:
        for split in splits.values():
            for start in range(0, len(split), PIECE_FILES):
                yield [text or "" for text in split[start : start + PIECE_FILES][column]]

    return TextSource(
        name=name.removeprefix(PREFIX) if name.startswith(PREFIX) else Path(name).name,
        where=name,
        label=label,
        labels=Labels(_tensor(labels.values), labels.classes),
        parts=rows if "train" in rows else {},
        names=None,
        characters=sum(len(text) for texts in texts_of() for text in texts),
        facts=[name, column, [(split._fingerprint, len(split)) for split in splits.values()]],
        notes=(*notes, *labels.notes),
        texts=texts_of,
    )


def check_column(frame: pd.DataFrame, column: str) -> None:
    """Raise :class:`InputError` unless a frame has this column."""
    if column not in frame.columns:
        columns = list(map(str, frame.columns))
        raise InputError(f"text={column!r} is not a column{did_you_mean(column, columns)}: the table has {names(columns)}")


def as_texts(series: pd.Series) -> list[str]:
    """The cells of a column as text; missing ones are empty."""
    return ["" if value is None or value != value else str(value) for value in series.astype(object)]


def _tensor(values: Any) -> Any:
    from heptane.base.lazy import torch

    return torch.from_numpy(values)
