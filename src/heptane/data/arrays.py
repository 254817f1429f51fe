"""Load an ``.npz`` with ``x``, ``y`` and optionally ``x_valid``, ``y_valid``, ``x_test``, ``y_test``; limit memory.

Inputs: uint8 of three dimensions are grey images (N, H, W); uint8 of four are images (N, C, H, W), or (N, H, W, C) if
the last dimension is 1, 3 or 4 and the second is not. Images are scaled to [0, 1] and normalised per channel; any other
numbers become float32 and keep their values.

Targets: whole numbers (or 1-D booleans) are classes 0 to K-1; booleans, or floats that all lie in [0, 1], of shape (N, K)
are soft targets or several labels per sample; other floats, of shape (N,) or (N, K), are for regression.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane._lazy import np, torch
from heptane.data.images import ImagePreprocess, channels_first
from heptane.data.load import Data, normalise, split
from heptane.data.preprocess import Preprocess
from heptane.data.vectors import ArrayPreprocess
from heptane.errors import InputError, one_line

if TYPE_CHECKING:
    import numpy.typing as npt

KEYS = ("x", "y", "x_valid", "y_valid", "x_test", "y_test")
MEMORY_SHARE = 0.6  # of what is available: the model, its optimizer and the batches need the rest


def load_arrays(path: Path, *, seed: int, valid_fraction: float | None) -> Data:
    """Load the ``.npz`` file ``path``; a missing validation part is split off by ``seed`` (10%, or ``valid_fraction``).

    Raises:
        InputError: the file is damaged or too large, holds Python objects, or its arrays do not fit together.
    """
    arrays, notes = read_npz(path)
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for suffix in ("", "_valid", "_test"):
        if f"x{suffix}" in arrays:
            x, y = to_inputs(f"x{suffix}", arrays.pop(f"x{suffix}")), to_targets(f"y{suffix}", arrays[f"y{suffix}"])
            if len(x) != len(y):
                raise InputError(f"x{suffix} has {len(x)} samples and y{suffix} {len(y)}: give one target per sample")
            parts[suffix] = (x, y)
    num_classes = check_parts(parts, notes)
    if "_valid" not in parts:
        inputs, targets = parts[""]
        rest, valid = split([len(targets)], [0.1 if valid_fraction is None else valid_fraction], seed)
        parts[""], parts["_valid"] = (inputs[rest], targets[rest]), (inputs[valid], targets[valid])
        notes.append(f"{len(valid)} of {len(targets)} samples were set aside for validation by the split seed {seed}")
    elif valid_fraction is not None:
        raise InputError(f"valid_fraction={valid_fraction}: {path.name!r} has an x_valid already, so leave it out")
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    shape = tuple(parts[""][0].shape[1:])
    preprocess: Preprocess = ArrayPreprocess(shape)
    if parts[""][0].dtype == torch.uint8:
        scaled, mean, std = normalise([inputs for inputs, _ in parts.values()])
        parts = {key: (x, y) for x, (key, (_, y)) in zip(scaled, parts.items(), strict=True)}
        preprocess = ImagePreprocess((shape[1], shape[2]), shape[0], mean, std)
    valid_part, test_part = parts["_valid"], parts.get("_test")
    about = (num_classes, (), tuple(notes), str(path), mean, std)
    return Data(path.stem, parts[""], valid_part, test_part, *about, kind=preprocess.kind, preprocess=preprocess)


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


def to_inputs(name: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Inputs as uint8 images (N, C, H, W), or as finite float32 of shape (N, ...)."""
    shape = array.shape
    if array.dtype.kind not in "biuf" or array.ndim < 2 or 0 in shape:
        wanted = "real numbers of shape (N, ...), with no empty dimension"
        raise InputError(f"{name} has dtype {array.dtype} and shape {shape}: expected {wanted}")
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        if array.ndim == 3:
            array = array[:, None]
        else:
            array = channels_first(array)
        return torch.from_numpy(np.array(array, order="C"))
    return to_float(name, array)


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


def to_targets(name: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Targets as int64 classes (N,), or as finite float32 of shape (N,) or (N, K)."""
    kind, ndim = array.dtype.kind, array.ndim
    if 0 not in array.shape and ((kind in "biu" and ndim == 1) or (kind in "bf" and ndim in (1, 2))):
        if kind == "f" or ndim == 2:
            return to_float(name, array)
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= 2**31:
            value = low if low < 0 else high
            raise InputError(
                f"{name} has the label {value}: number the classes 0 to K-1, as np.unique(return_inverse=True) does"
            )
        return torch.from_numpy(array.astype(np.int64))
    wanted = "whole numbers of shape (N,), floats of shape (N,) or (N, K), or booleans of shape (N, K)"
    raise InputError(f"{name} has dtype {array.dtype} and shape {array.shape}: expected {wanted}")


def check_parts(parts: dict[str, tuple[torch.Tensor, torch.Tensor]], notes: list[str]) -> int | None:
    """Refuse parts that do not fit together; return the number of classes, or None for regression."""
    x, y = parts[""]
    for suffix, part in parts.items():
        for letter, mine, first in zip("xy", part, (x, y), strict=True):
            have, want = (f"{tuple(t.shape[1:])} {str(t.dtype)[6:]}" for t in (mine, first))
            if have != want:
                raise InputError(f"{letter}{suffix} has samples of {have}, {letter} of {want}: make them the same")
    if y.is_floating_point():
        labels = y.ndim == 2 and bool(((y >= 0) & (y <= 1)).all())  # several labels, or a distribution
        return y.shape[1] if labels else None
    present = set(y.tolist())
    num_classes = int(y.max()) + 1
    if len(present) == 1 or num_classes > max(1000, len(y)):
        seen = f"{len(present)} different label(s), the largest {num_classes - 1}"
        raise InputError(f"y has {seen}: expected 0 to K-1 with K of 2 or more, as np.unique(return_inverse=True) numbers")
    for suffix, (_, targets) in parts.items():
        if int(targets.max()) >= num_classes:
            raise InputError(
                f"y{suffix} has the label {int(targets.max())}: the largest in y is {num_classes - 1}, unknown to a model"
            )
    if len(present) < num_classes:
        notes.append(f"only {len(present)} of the {num_classes} classes have training samples")
    return num_classes


def check_memory(what: str, num_bytes: int, remedy: str) -> None:
    """Raise :class:`InputError` where ``num_bytes`` would take more than ``MEMORY_SHARE`` of the available memory."""
    available = available_memory_bytes()
    if num_bytes > MEMORY_SHARE * available:
        limit = f"{MEMORY_SHARE:.0%} of the {available / 2**30:.3g} GiB available"
        raise InputError(f"{what} would take {num_bytes / 2**30:.3g} GiB of memory, the limit is {limit}: {remedy}")


def available_memory_bytes() -> float:
    """What can be had without swapping, within this container's limit; infinity where the system does not tell."""
    limits = []
    with contextlib.suppress(OSError, ValueError):  # SC_AVPHYS_PAGES leaves out what the file cache holds
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        limits += [int(Path("/sys/fs/cgroup/memory.max").read_text())]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits += [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(limits, default=float("inf"))
