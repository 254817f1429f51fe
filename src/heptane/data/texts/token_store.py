"""Token numbers of texts, in memory or in a mapped Arrow file, and batches of them, padded to the longest of each batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import np, torch
from heptane.base.tree import Rows

if TYPE_CHECKING:
    import numpy.typing as npt

FILE = "tokens.arrow"
PIECE_TEXTS = 1 << 16  # of a record batch in the file


class TokenStore:
    """The tokens of all texts of a data set: flat numbers, and where each text begins.

    Args:
        pieces: for ``PIECE_TEXTS`` texts each, the offsets (N + 1) and the flat numbers, int32.
        path: of the file that holds them; None: they are in memory.
    """

    def __init__(self, pieces: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], path: Path | None = None) -> None:
        self.pieces, self.path = pieces, path
        self.lengths = np.concatenate([np.diff(offsets) for offsets, _ in pieces]).astype(np.int32)

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Map the file that :func:`write_tokens` wrote into memory."""
        import pyarrow as pa

        opened = pa.ipc.open_file(pa.memory_map(str(path)))
        columns = [opened.get_batch(index).column(0) for index in range(opened.num_record_batches)]
        return cls([(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns], path)

    def text(self, row: int) -> npt.NDArray[Any]:
        """The tokens of a text."""
        offsets, numbers = self.pieces[row // PIECE_TEXTS]
        at = row % PIECE_TEXTS
        return numbers[offsets[at] : offsets[at + 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        return (TokenStore, (self.pieces,)) if self.path is None else (TokenStore.open, (self.path,))


def pieces_of(found: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Collect the tokens of any number of texts at a time into pieces of ``PIECE_TEXTS`` texts."""
    numbers, lengths, held = list[Any](), list[Any](), 0
    for flat, each in found:
        start = 0
        while start < len(each):
            count = min(len(each) - start, PIECE_TEXTS - held)
            size = int(each[start : start + count].sum())
            numbers.append(flat[:size])
            lengths.append(each[start : start + count])
            flat, start, held = flat[size:], start + count, held + count
            if held == PIECE_TEXTS:
                yield _piece(numbers, lengths)
                numbers, lengths, held = [], [], 0
    if held:
        yield _piece(numbers, lengths)


def _piece(numbers: list[Any], lengths: list[Any]) -> tuple[Any, Any]:
    return np.concatenate([[0], *lengths]).cumsum().astype(np.int64), np.concatenate(numbers)


def write_tokens(path: Path, pieces: Iterator[tuple[Any, Any]]) -> None:
    """Write pieces of tokens to an Arrow file, beside its place, and rename it."""
    import pyarrow as pa

    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    kind = pa.large_list(pa.int32())
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("tokens", kind)])) as writer:
            for offsets, numbers in pieces:
                column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers), type=kind)
                writer.write_batch(pa.record_batch([column], names=["tokens"]))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class TokenRows(Rows):
    """The tokens of one part of a data set, or the mask of what is not padding, in place of a tensor.

    Indexing gives int64 (N, L), padded at the end to the longest of these samples.

    Args:
        store: the tokens of the whole data set.
        rows: the numbers of this part's texts in it.
        pad: the number that pads; None: give 1 for each token, and 0 for padding.
    """

    def __init__(self, store: TokenStore, rows: Any, pad: int | None) -> None:
        self.store, self.pad = store, pad
        self.device, self.dtype = torch.device("cpu"), torch.int64
        self.rows = np.asarray(rows, dtype=np.int64)
        self.lengths = lengths = torch.from_numpy(store.lengths[self.rows])
        self.shape = (len(self.rows), int(lengths.max()) if len(self.rows) else 0)
        self.nbytes = 4 * int(lengths.sum())

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        rows = self.rows[positions.cpu().numpy()]
        lengths = self.store.lengths[rows]
        longest = int(lengths.max()) if len(lengths) else 0
        if self.pad is None:
            return torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
        made = np.full((len(lengths), longest), self.pad, dtype=np.int64)
        for row, number in zip(made, rows.tolist(), strict=True):
            tokens = self.store.text(number)
            row[: len(tokens)] = tokens
        return torch.from_numpy(made)

    def __repr__(self) -> str:
        return f"TokenRows(shape=({self.shape[0]}, up to {self.shape[1]}), {'mask' if self.pad is None else 'tokens'})"


def padded(store: TokenStore, rows: Any, pad: int) -> dict[str, TokenRows]:
    """The inputs of a model of text, by name."""
    return {"input_ids": TokenRows(store, rows, pad), "attention_mask": TokenRows(store, rows, None)}
