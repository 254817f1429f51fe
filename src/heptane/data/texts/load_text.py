"""Load text as a data set: tokenized once, cached, and padded batch by batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.base.progress import working
from heptane.data.dataset import Data
from heptane.data.disk_cache import FACTS, OFF, make_room, mark_used
from heptane.data.preprocess import Preprocess, TargetScale, is_path
from heptane.data.reading import AUTO, Reading
from heptane.data.splits import out_of_balance, split_by_class
from heptane.data.tables.read_table import is_table, read_table
from heptane.data.texts.text import Text
from heptane.data.texts.text_sources import (
    SUFFIX,
    TextSource,
    as_texts,
    check_column,
    folder_texts,
    hub_texts,
    read_file,
    table_texts,
)
from heptane.data.texts.token_store import FILE, TokenStore, padded, pieces_of, write_tokens
from heptane.data.texts.tokenizer import Tokenizer, learn_tokenizer, read_tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 1  # raise it when the tokens of a text change
LEARNED_TEXTS = 100_000  # training texts at most from which a tokenizer is learned, evenly spaced
SMALL = 8 * 2**20  # characters; fewer are tokenized in a moment, and not cached


@dataclass(frozen=True)
class TextPreprocess(Preprocess):
    """Texts as token numbers and a mask, int64 (N, L) each.

    Args:
        label: name of the label's column; "" for a folder.
        column: of the text; None for a folder.
        max_tokens: longer texts are cut.
        tokenizer: the content of its ``tokenizer.json``.
        target: scale of the label, for regression; None for classes.
    """

    kind: ClassVar[str] = "text"
    comma: ClassVar[str | None] = None
    label: str
    column: str | None
    max_tokens: int
    tokenizer: str
    target: TargetScale | None = None

    def record(self) -> dict[str, Any]:
        about = {"kind": self.kind, "label": self.label, "column": self.column, "max_tokens": self.max_tokens}
        target = None if self.target is None else self.target.record()
        return {**about, "target": target, "tokenizer": json.loads(self.tokenizer)}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> TextPreprocess:
        """Rebuild from :meth:`record`."""
        target, tokenizer = TargetScale.parse(record["target"]), json.dumps(record["tokenizer"])
        return cls(record["label"], record["column"], int(record["max_tokens"]), tokenizer, target)

    def inputs(self, source: Any) -> tuple[list[str], Any]:
        """Return names and inputs, a dict of tensors padded to the longest text.

        Args:
            source: a list of texts or one text; a .txt file, or a folder of them; a table with the column of training, as
                :func:`heptane.load_data` takes it.
        """
        found, texts = self._read(source)
        if not texts:
            raise InputError("nothing to predict: there is no text")
        tokenizer = Tokenizer(self.tokenizer, self.max_tokens)
        flat, lengths, _ = tokenizer.numbers(texts)
        store = TokenStore(list(pieces_of(iter([(flat, lengths)]))))
        rows = padded(store, np.arange(len(texts)), tokenizer.pad)
        return found, {name: value[:] for name, value in rows.items()}

    def _read(self, source: Any) -> tuple[list[str], list[str]]:
        path = Path(source).expanduser() if is_path(source) else None
        if path is not None and not is_table(path):
            if path.is_dir():
                files = sorted(file for file in path.rglob(f"*{SUFFIX}"))
                return [str(file.relative_to(path)) for file in files], list(map(read_file, files))
            if path.suffix.lower() == SUFFIX:
                return [str(source)], [read_file(path)]
            source = [str(source)]
        if isinstance(source, (list, tuple)) and all(isinstance(text, str) for text in source):
            return [str(number) for number in range(len(source))], list(source)
        if self.column is None:
            raise InputError(f"the run was trained on a folder of {SUFFIX} files: give such files, or a list of texts")
        frame = read_table(source)[0]
        check_column(frame, self.column)
        return [str(index) for index in frame.index], as_texts(frame[self.column])


def load_text(
    source: Any,
    text: Text,
    *,
    label: str | None,
    task: str | None,
    seed: int,
    valid_fraction: float | None,
    reading: Reading,
) -> Data:
    """Load the texts of a table, a Hugging Face data set or a folder; see :func:`heptane.load_data`.

    Raises:
        InputError: there is no such text or label, or a library is missing.
    """
    found = _find(source, text, label, task)
    parts, notes = _split(found, seed, valid_fraction)
    if text.tokenizer is None:
        content = learn_tokenizer(_some(found, parts["train"]))
        notes.append("tokens were learned from the training texts")
    else:
        content = read_tokenizer(text.tokenizer)
    tokenizer = Tokenizer(content, text.max_tokens)
    store, cut, where = _tokenized(found, tokenizer, reading)
    typical = int(np.median(store.lengths))
    notes.append(f"{len(store.lengths):,} texts of {typical} tokens (median), {int(store.lengths.max())} at most{where}")
    if cut:
        notes.append(f"{cut:,} text(s) were cut at {text.max_tokens} tokens: --max-tokens sets another limit")
    targets, target = found.labels.targets, None
    if not found.labels.names:
        target = TargetScale.learn(targets[parts["train"]])
        targets = target.apply(targets)
        notes.append(target.note(f"the label {found.label!r}" if found.label else "the label"))
    preprocess = TextPreprocess(found.label, text.column, text.max_tokens, content, target)
    made = {part: (padded(store, rows, tokenizer.pad), targets[rows]) for part, rows in parts.items()}
    about = (len(found.labels.names) or None, found.labels.names, tuple(notes), found.where)
    files = {part: _names(found, rows) for part, rows in parts.items() if part != "train" or found.names}
    train, valid, test = (made.get(part) for part in ("train", "valid", "test"))
    assert train is not None
    return Data(found.name, train, valid, test, *about, kind="text", preprocess=preprocess, files=files)


def _find(source: Any, text: Text, label: str | None, task: str | None) -> TextSource:
    from heptane.data.images.hub_data import is_hub_data

    if is_path(source) and is_hub_data(os.path.expanduser(source)):
        return hub_texts(os.path.expanduser(source), text.column, label, task)
    if is_path(source) and Path(source).expanduser().is_dir() and not is_table(source):
        if label is not None or task is not None:
            raise InputError(f"label={label!r}, task={task!r}: the folders are the classes; omit them for {str(source)!r}")
        return folder_texts(Path(source).expanduser())
    if text.column is None:
        raise InputError(f"text needs the name of a column of {str(source)!r}: pass --text COLUMN")
    return table_texts(source, text.column, label, task)


def _split(found: TextSource, seed: int, valid_fraction: float | None) -> tuple[dict[str, Any], list[str]]:
    """The rows of each part, and notes."""
    notes, targets, given = list(found.notes), found.labels.targets, found.parts
    if "valid" in given:
        if valid_fraction is not None:
            raise InputError(f"valid_fraction={valid_fraction}: {found.where!r} has a validation part, so leave it out")
        return dict(given), notes
    whole = torch.as_tensor(given["train"]) if given else torch.arange(len(targets))
    shares = [*([] if given else [0.1]), 0.1 if valid_fraction is None else valid_fraction]
    made = split_by_class(targets[whole], shares, seed)
    names = ("train", "valid") if given else ("train", "test", "valid")
    parts = {part: whole[rows].numpy() for part, rows in zip(names, made, strict=True)}
    counts = ", ".join(f"{len(parts[part])} {part}" for part in names)
    notes.append(f"the {'training ' if given else ''}texts were split by seed {seed}: {counts}")
    if found.labels.names:
        notes += out_of_balance(torch.bincount(targets[whole]).tolist(), found.labels.names)
    return parts | {part: rows for part, rows in given.items() if part == "test"}, notes


def _some(found: TextSource, train: npt.NDArray[np.int64]) -> Iterator[str]:
    """Some of the training texts, in order."""
    spaced = np.linspace(0, len(train) - 1, min(len(train), LEARNED_TEXTS)).astype(np.int64)
    chosen, start = np.zeros(len(found.labels.targets), dtype=bool), 0
    chosen[np.asarray(train)[spaced]] = True
    with working("learning tokens", len(chosen)) as advance:
        for texts in found.texts():
            yield from (texts[at] for at in np.flatnonzero(chosen[start : start + len(texts)]).tolist())
            start += len(texts)
            advance(len(texts))


def _tokenized(found: TextSource, tokenizer: Tokenizer, reading: Reading) -> tuple[TokenStore, int, str]:
    """The tokens, how many texts were cut, and where they are kept, in words."""
    counted = {"cut": 0}

    def pieces() -> Iterator[tuple[Any, Any]]:
        with working("cutting texts into tokens", len(found.labels.targets)) as advance:
            for texts in found.texts():
                flat, lengths, cut = tokenizer.numbers(texts)
                counted["cut"] += cut
                advance(len(texts))
                yield flat, lengths

    def in_memory() -> tuple[TokenStore, int, str]:
        return TokenStore(list(pieces_of(pieces()))), counted["cut"], ""

    if reading.cache == OFF or found.facts is None or found.characters < SMALL:
        return in_memory()
    facts = [FORMAT, found.where, found.facts, hashlib.sha256(tokenizer.content.encode()).hexdigest(), tokenizer.max_tokens]
    key = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]
    folder = reading.cache_folder
    path, largest = folder / key, 4 * found.characters + 8 * len(found.labels.targets)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            store = _open(path / FILE)
            if store is None:
                if make_room(folder, path, largest, reading.cache_gb):
                    return in_memory()
                path.mkdir(exist_ok=True)
                write_tokens(path / FILE, pieces_of(pieces()))
                store = TokenStore.open(path / FILE)
                mark_used(path, {"data": found.where, "bytes": (path / FILE).stat().st_size, "cut": counted["cut"]})
            known = json.loads((path / FACTS).read_text())
            mark_used(path, known)
    except OSError as error:
        if reading.cache != AUTO:
            raise InputError(f"data_cache={str(folder)!r} cannot be used ({one_line(error)}): choose another") from error
        return in_memory()
    return store, int(known["cut"]), f"; cached in {folder}"


def _open(path: Path) -> TokenStore | None:
    """The tokens in a file; None if it is missing or damaged."""
    import pyarrow as pa

    try:
        return TokenStore.open(path) if (path.parent / FACTS).is_file() else None
    except (OSError, ValueError, pa.ArrowException):
        return None


def _names(found: TextSource, rows: Any) -> Any:
    from heptane.data.tables.table_rows import RowNames

    return RowNames(rows) if found.names is None else [found.names[row] for row in rows]
