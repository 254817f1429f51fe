"""NumPy archives, read without running code and without allocating more than they hold."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.base.memory import check_memory

if TYPE_CHECKING:
    import numpy.typing as npt

KEYS = ("x", "y", "x_valid", "y_valid", "x_test", "y_test")


def read_npz(path: Path, keys: Sequence[str] = KEYS) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """The arrays called for in ``keys``, and a note on any others; sizes are checked before anything is loaded."""
    name = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise InputError(f"{name} holds two arrays of one name: write it with np.savez")
            wanted = [key for key in keys if key in members]
            required = set(keys) & {"x", "y"}.union(*({f"x{key[1:]}", f"y{key[1:]}"} for key in wanted))
            if missing := sorted(required - set(wanted)):
                raise InputError(f"{name} has no {', '.join(missing)}; it holds {', '.join(members) or 'nothing'}")
            check_memory(name, sum(check_header(archive, members[key], name) for key in wanted), "give a smaller file")
            arrays = {}
            for key in wanted:  # by the member whose header was looked at: an archive may hold two of a name
                with archive.open(members[key]) as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # a damaged header makes NumPy's reader raise many kinds, its tokenizer's too
        raise InputError(f"{name} cannot be read ({one_line(error)}): write it with np.savez") from error
    others = sorted(set(members) - set(wanted))
    return arrays, [f"arrays left out: {', '.join(map(repr, others))}"] if others else []


def check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> int:
    """The bytes a member needs as float32, or as stored if that is more; its header must agree with its size."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise InputError(f"{name}: {member.filename} holds Python objects, which are refused: save numbers")
        count = math.prod(shape)
        if file.tell() + count * dtype.itemsize != member.file_size:
            raise InputError(
                f"{name}: {member.filename} claims shape {shape}, which its size does not bear out: save it anew"
            )
    return int(count * max(4, dtype.itemsize))


def to_float(name: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """float32 values, all of them finite."""
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(values), 4096):
        bad = ~np.isfinite(values[start : start + 4096])
        if bad.any():
            first = np.argwhere(bad)[0].tolist()
            first[0] += start
            value = array[tuple(first)]
            raise InputError(f"{name}{first} is {value}: remove or replace what is NaN, infinite or beyond float32")
    return torch.from_numpy(values)
