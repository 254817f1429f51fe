"""Read NumPy archives without running code, and without allocating more than they hold."""

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
    """Read the arrays named in ``keys``; return them and notes on ignored ones. Sizes are checked before loading."""
    name = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise InputError(f"{name} holds two arrays with the same name: write it with np.savez")
            wanted = [key for key in keys if key in members]
            required = set(keys) & {"x", "y"}.union(*({f"x{key[1:]}", f"y{key[1:]}"} for key in wanted))
            if missing := sorted(required - set(wanted)):
                raise InputError(f"{name} has no array {', '.join(missing)}; it has {', '.join(members) or 'none'}")
            check_memory(name, sum(check_header(archive, members[key], name) for key in wanted), "give a smaller file")
            arrays = {}
            for key in wanted:  # by member, whose header was checked: an archive may hold two of the same name
                with archive.open(members[key]) as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # NumPy's reader raises many types for a damaged header
        raise InputError(f"{name} cannot be read ({one_line(error)}): write it with np.savez") from error
    others = sorted(set(members) - set(wanted))
    return arrays, [f"arrays ignored: {', '.join(map(repr, others))}"] if others else []


def check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> int:
    """Check a member's header against its size; return the bytes it needs as float32, or as stored if that is more."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise InputError(f"{name}: {member.filename} holds Python objects, which are not loaded: save numbers")
        count = math.prod(shape)
        if file.tell() + count * dtype.itemsize != member.file_size:
            raise InputError(f"{name}: {member.filename} claims shape {shape}, which does not match its size: save it again")
    return int(count * max(4, dtype.itemsize))


def to_float(name: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Convert to float32, and check that all values are finite."""
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(values), 4096):
        bad = ~np.isfinite(values[start : start + 4096])
        if bad.any():
            first = np.argwhere(bad)[0].tolist()
            first[0] += start
            value = array[tuple(first)]
            raise InputError(
                f"{name}{first} is {value}: remove or replace values that are NaN, infinite or overflow float32"
            )
    return torch.from_numpy(values)
