"""Which text of a data set is read, and how it is cut into tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass

from heptane.base.errors import InputError, check_range

MAX_TOKENS = 256


@dataclass(frozen=True)
class Text:
    """The text that :func:`heptane.load_data` reads from a table, a Hugging Face data set or a folder of .txt files.

    Args:
        column: of a table or a Hugging Face data set; a folder of .txt files needs none.
        max_tokens: longer texts are cut, 1 or more; with a note.
        tokenizer: a ``tokenizer.json``, or a folder that holds one, such as that of a pretrained model; None: learned from
            the training texts.

    Example:
        >>> Text("review", max_tokens=128)
        Text(column='review', max_tokens=128, tokenizer=None)
    """

    column: str | None = None
    max_tokens: int = MAX_TOKENS
    tokenizer: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_range("max_tokens", self.max_tokens, 1, 1 << 20, whole=True)
        if self.column == "":
            raise InputError("text='': expected the name of a column")
