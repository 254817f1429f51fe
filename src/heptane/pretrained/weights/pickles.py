"""Read pickled weights without running code: objects other than tensors become inert placeholders.

PyTorch's restricted unpickler (``torch.load(weights_only=True)``) builds tensors and plain containers and refuses any other
class. Training checkpoints often hold a few such objects beside the weights: a NumPy number, an ``argparse.Namespace``, a
configuration. The unpickler is given a :class:`Placeholder` class for each of these names, so neither the class nor its
module is ever looked up. Names that only a malicious file contains are still refused.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch

MAX_NAMES = 200  # unknown classes in a file; a training checkpoint has a few
DENIED = {  # modules whose functions run code or access the system
    "asyncio", "code", "codeop", "commands", "concurrent", "ctypes", "distutils", "ftplib", "http", "imp",
    "importlib", "marshal", "multiprocessing", "nt", "ntpath", "operator", "os", "pdb", "pickle", "_pickle", "pip",
    "pkgutil", "platform", "posix", "posixpath", "pty", "pydoc", "requests", "runpy", "setuptools", "shutil", "signal",
    "smtplib", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "timeit", "urllib", "venv", "webbrowser",
    "xmlrpc", "zipimport",
}  # fmt: skip
PLAIN = {  # builtins
    "bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple",
}  # fmt: skip
REMEDY = "get a .safetensors file, or save it again with torch.save(model.state_dict(), path)"


class Placeholder:
    """Replaces an object of an unknown class: accepts any arguments and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DictPlaceholder:
    """Replaces an object of a subclass of dict by a plain one, whose items are searched like any other."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class ListPlaceholder:
    """Replaces an object of a subclass of list by a plain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def read_pickle(file: Path, label: str) -> tuple[object, str]:
    """The content of a pickle of tensors, on the CPU; and the first class in it that was replaced by a placeholder, or "".

    Raises:
        InputError: it is damaged, of an unsupported pickle format, or names something that runs code.
    """
    placeholders: dict[str, type[Any]] = {}
    while True:
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals([(kind, name) for name, kind in placeholders.items()]),
            ):
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True), next(iter(placeholders), "")
        except Exception as error:  # a malicious or damaged file may raise anything
            if len(placeholders) >= MAX_NAMES or not _allowed(str(error), placeholders):
                raise InputError(f"{label} {_what(error)}; {REMEDY}") from error


def _allowed(error: str, placeholders: dict[str, type[Any]]) -> bool:
    """Whether to retry after ``error``, with one more placeholder."""
    for name, kind in placeholders.items():
        if issubclass(kind, Placeholder) and f"{kind.__name__}'" in error and "Can only" in error:
            placeholders[name] = type(
                kind.__name__, (ListPlaceholder if re.search("Can only (append|extend)", error) else DictPlaceholder,), {}
            )
            return True
    found = re.search(r"Unsupported global: GLOBAL (\S+) was not", error)
    if found is None:
        return False
    name = found[1] if "." in found[1] else f"builtins.{found[1]}"  # PyTorch omits the module
    module, _, last = name.rpartition(".")
    if module.split(".")[0] in DENIED or (module == "builtins" and last not in PLAIN) or name in placeholders:
        return False
    placeholders[name] = type(f"Inert{len(placeholders)}_", (Placeholder,), {})
    return True


def _what(error: Exception) -> str:
    code = re.search(r"GLOBAL (\S+)", str(error))
    cause = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # the rest of the message suggests loading unsafely
    if code:
        return could_run(code[1])
    return f"is damaged, or holds more than tensors ({cause[1] if cause else one_line(error)})"


def could_run(name: str) -> str:
    """The message for a file that names a class or function whose code unrestricted reading would run."""
    return f"refused: reading it could run code ({name})"
