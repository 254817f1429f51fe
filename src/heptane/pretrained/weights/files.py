"""Read weight files, and folders of them, without running code and without leaving the folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.model.names import AROUND, without_compiled
from heptane.pretrained.weights.find import find_tensors
from heptane.pretrained.weights.names import abbreviate, printable
from heptane.pretrained.weights.pickles import REMEDY, could_run, read_pickle

SAFE = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LARGEST_JSON = 64 << 20  # bytes; the index of a model with a million tensors takes half of that


def read_weights(path: str | Path, label: str = "") -> dict[str, torch.Tensor]:
    """The named tensors in a weight file or a folder, on the CPU; no code in it is run.

    Args:
        path: ``.safetensors``, or a pickle of tensors (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), where a state dict inside a
            training checkpoint is found (:mod:`heptane.pretrained.weights.find`); or a folder, see :func:`find_file`.
        label: name of the source in messages; empty: ``weights=`` and the path.

    Raises:
        InputError: no such file, an unknown ending, a damaged file, a pickle that would run code, no tensors, or an index
            with files that are missing, outside the folder or without the listed tensors.

    Example:
        >>> read_weights("nowhere.pth")
        Traceback (most recent call last):
        heptane.base.errors.InputError: weights='nowhere.pth': no such file; give the path of a .safetensors or .pth file, \
or of a folder with one
    """
    return read_named(path, label)[0]


def read_named(path: str | Path, label: str = "") -> tuple[dict[str, torch.Tensor], str]:
    """As :func:`read_weights`, and the key of the file that held the tensors, in words; empty if it holds nothing else."""
    file, label = Path(os.path.expanduser(path)), label or f"weights={str(path)!r}"
    file = find_file(file, label) if os.path.isdir(file) else file
    if not os.path.isfile(file):
        raise InputError(f"{label}: no such file; give the path of a .safetensors or .pth file, or of a folder with one")
    tensors, where = (_read_shards(file, label), "") if file.name in IN_FOLDER[1::2] else _read_file(file, label)
    if not tensors:
        raise InputError(f"{label} holds no named tensors; save it with torch.save(model.state_dict(), path)")
    return tensors, where


def find_file(folder: Path, label: str) -> Path:
    """The file in a folder that holds its weights, or the index of a sharded checkpoint.

    Args:
        folder: of a heptane run or a Hugging Face model, with ``model.safetensors``, ``pytorch_model.bin`` or the index of
            one; or a folder with a single weight file of any name.
        label: name of the source in messages.

    Raises:
        InputError: there is none, or several under other names.
    """
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    if (folder / "race.json").is_file():
        raise InputError(f"{label} is the folder of a race, which stores no models; give the folder of heptane train")
    if (folder / "checkpoints").is_dir():
        raise InputError(f"{label} is the folder of an unfinished run; finish it with heptane train --resume FOLDER")
    for endings in ((SAFE,), PICKLES):
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in endings and file.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"{label} is a folder with several weight files ({abbreviate(f.name for f in found)}); give one of them"
            )
    raise InputError(f"{label} is a folder without weights: expected one of {', '.join(IN_FOLDER)} in it")


def read_json(file: Path, label: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: it is too large, damaged, or holds something else.
    """
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise InputError(f"{label}: {file.name} is larger than {LARGEST_JSON >> 20} MB; download it again")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{label}: {file.name} is damaged: it is not JSON ({one_line(error)}); download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{label}: {file.name} holds a {type(content).__name__}, not an object; download it again")
    return content


def _read_file(file: Path, label: str) -> tuple[dict[str, torch.Tensor], str]:
    if file.suffix.lower() not in (SAFE, *PICKLES):
        raise InputError(f"{label} ends in {file.suffix!r}: expected {SAFE}, {', '.join(PICKLES)}")
    found, unknown = (_read_safetensors(file, label), "") if file.suffix.lower() == SAFE else read_pickle(file, label)
    tensors, where = find_tensors(found, label)
    if not tensors and unknown:
        raise InputError(f"{label} {could_run(unknown)}; {REMEDY}")
    outer = {name: len(AROUND.match(name)[0]) for name in tensors}  # type: ignore[index]
    names = {name: name[:end] + without_compiled(name[end:]) for name, end in outer.items()}
    apart = len(set(names.values())) == len(names)
    return {names[name] if apart else name: value for name, value in tensors.items()}, where


def _read_shards(index: Path, label: str) -> dict[str, torch.Tensor]:
    """The tensors that an index lists, each from its file; all files are checked before any is read."""
    names_in = _shards(index, label)
    tensors: dict[str, torch.Tensor] = {}
    for part, names in names_in.items():
        found, _ = _read_file(index.parent / part, f"{label}, {printable(part)}")
        if lost := [name for name in names if name not in found]:
            held = f"{index.name} lists {abbreviate(lost)} in {printable(part)}"
            raise InputError(f"{label}: {held}, which does not hold it; download both again")
        tensors |= {name: found[name] for name in names}
    return tensors


def _shards(index: Path, label: str) -> dict[str, list[str]]:
    """The files of an index, each with the names of its tensors."""
    listed = read_json(index, label).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(part, str) for part in listed.values()):
        raise InputError(f"{label}: {index.name} has no weight_map from names to files; download it again")
    ending = SAFE if index.name.startswith(IN_FOLDER[0]) else ".bin"
    names_in: dict[str, list[str]] = {}
    for name, part in listed.items():
        names_in.setdefault(part, []).append(name)
    for part in names_in:
        path = PurePosixPath(part)
        if path.is_absolute() or PureWindowsPath(part).anchor or ".." in re.split(r"[\\/]", part):
            raise InputError(f"{label}: {index.name} names {printable(part)!r}, outside its folder; do not trust this model")
        if path.suffix != ending:
            raise InputError(f"{label}: {index.name} names {printable(part)!r}: expected files that end in {ending}")
        if not os.path.isfile(index.parent / part):
            raise InputError(f"{label}: {index.name} names {printable(part)!r}, which is not there; download it again")
    return names_in


def _read_safetensors(file: Path, label: str) -> dict[str, Any]:
    from safetensors import SafetensorError

    from heptane.model.serialise import read_model

    try:
        return read_model(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{label} is damaged or not a safetensors file ({one_line(error)}); download it again") from error
