"""Tokenizers: one learned from the training texts, or that of a pretrained model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np

VOCABULARY = 8192  # different tokens of a learned tokenizer, at most
FILE, PAD, UNKNOWN = "tokenizer.json", "[PAD]", "[UNK]"
INSTALL = 'pip install "heptane[text]"'


class Tokenizer:
    """Cuts texts into token numbers.

    Args:
        content: of a ``tokenizer.json``.
        max_tokens: of a text.
    """

    def __init__(self, content: str, max_tokens: int) -> None:
        self.content, self.max_tokens = content, max_tokens
        try:
            self._tokenizer = _library().Tokenizer.from_str(content)
        except InputError:
            raise
        except Exception as error:  # the library raises a plain Exception
            raise InputError(f"the tokenizer is damaged ({one_line(error)}): expected a {FILE}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        found = (self._tokenizer.token_to_id(name) for name in (PAD, "<pad>", "<|endoftext|>"))
        self.pad: int = next((number for number in found if number is not None), 0)

    def numbers(self, texts: Sequence[str]) -> tuple[Any, Any, int]:
        """Tokens of some texts, int32, one after the other; how many each has, int64; and how many texts were cut."""
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        ids = [one.ids or [self.pad] for one in encoded]  # an empty text is one token long
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter((number for one in ids for number in one), dtype=np.int32, count=int(lengths.sum()))
        return flat, lengths, sum(bool(one.overflowing) for one in encoded)


def read_tokenizer(source: str | os.PathLike[str]) -> str:
    """The content of a ``tokenizer.json``, or of that in a folder."""
    path = Path(source).expanduser()
    path = path / FILE if path.is_dir() else path
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"tokenizer={str(source)!r} cannot be read ({one_line(error)}): give a {FILE}, or its folder"
        ) from error


def learn_tokenizer(texts: Iterable[str]) -> str:
    """Learn pairs of bytes from texts in lower case; the same texts give the same tokenizer.

    Source: Sennrich et al. 2016, "Neural machine translation of rare words with subword units", arXiv:1508.07909.
    """
    library = _library()
    made = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN))
    made.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    trainer = library.trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=[PAD, UNKNOWN], show_progress=False, limit_alphabet=500
    )
    made.train_from_iterator(iter(texts), trainer)
    return str(made.to_str())


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise InputError(f"text needs tokenizers, which is missing: {INSTALL}") from error
    return tokenizers
