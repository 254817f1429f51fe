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

MOST_NAMES = 200  # of classes in a file: a training checkpoint has a few
DENIED = {  # modules whose functions run code, or reach what is outside
    "asyncio", "code", "codeop", "commands", "concurrent", "ctypes", "distutils", "ftplib", "http", "imp",
    "importlib", "marshal", "multiprocessing", "nt", "ntpath", "operator", "os", "pdb", "pickle", "_pickle", "pip",
    "pkgutil", "platform", "posix", "posixpath", "pty", "pydoc", "requests", "runpy", "setuptools", "shutil", "signal",
    "smtplib", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "timeit", "urllib", "venv", "webbrowser",
    "xmlrpc", "zipimport",
}  # fmt: skip
PLAIN = {
    "bool",
    "bytes",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "range",
    "slice",
    "str",
    "tuple",
}  # builtins
REMEDY = "get a .safetensors file, or save it again with torch.save(model.state_dict(), path)"


class Placeholder:
    """Stands for an object of a class that is not looked up: it takes whatever it is given, and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DictPlaceholder:
    """Stands for an object of a class that extends dict: a plain one, whose items are looked through as any other's."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class ListPlaceholder:
    """Stands for an object of a class that extends list: a plain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def read_pickle(file: Path, said: str) -> tuple[object, str]:
    """What is in a pickle of tensors, on the CPU; and the first class in it that was not looked up, empty for none.

    Raises:
        InputError: it is torn, of a newer kind of pickle, or names something that runs code.
    """
    stands: dict[str, type[Any]] = {}
    while True:
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals([(kind, name) for name, kind in stands.items()]),
            ):
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True), next(iter(stands), "")
        except Exception as error:  # a hostile or torn file may raise anything at all
            if len(stands) >= MOST_NAMES or not _allowed(str(error), stands):
                raise InputError(f"{said} {_what(error)}; {REMEDY}") from error


def _allowed(error: str, stands: dict[str, type[Any]]) -> bool:
    """Whether reading goes on after ``error`` with one more name that stands for nothing."""
    for name, kind in stands.items():
        if issubclass(kind, Placeholder) and f"{kind.__name__}'" in error and "Can only" in error:
            stands[name] = type(
                kind.__name__, (ListPlaceholder if re.search("Can only (append|extend)", error) else DictPlaceholder,), {}
            )
            return True
    found = re.search(r"Unsupported global: GLOBAL (\S+) was not", error)
    if found is None:
        return False
    name = found[1] if "." in found[1] else f"builtins.{found[1]}"  # which PyTorch leaves out
    module, _, last = name.rpartition(".")
    if module.split(".")[0] in DENIED or (module == "builtins" and last not in PLAIN) or name in stands:
        return False
    stands[name] = type(f"Inert{len(stands)}_", (Placeholder,), {})
    return True


def _what(error: Exception) -> str:
    code = re.search(r"GLOBAL (\S+)", str(error))
    cause = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # the rest advises to read the file unsafely
    if code:
        return could_run(code[1])
    return f"is torn, or holds more than tensors ({cause[1] if cause else one_line(error)})"


def could_run(name: str) -> str:
    """What to say of a file that names a class or function, which reading it in full would run."""
    return f"refused: reading it could run code ({name})"
