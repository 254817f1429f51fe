"""Load an ``.npz`` with ``x``, ``y`` and optionally ``x_valid``, ``y_valid``, ``x_test``, ``y_test``, or a pair (x, y).

Inputs:
    3-d uint8: grey images (N, H, W). 4-d uint8: images (N, C, H, W), or (N, H, W, C) if the last dimension is 1, 3 or 4 and
    the second is not. Images, also floats (N, C, H, W) in [0, 1] or [0, 255], are normalised per channel. Other numbers
    become float32 and are standardized: (N, F) per feature, (N, C, H, W) per channel, others as a whole.

Targets:
    Whole numbers (or 1-d booleans): classes 0 to K-1. Text: class names. One-hot rows of whole numbers: classes. Booleans or
    floats in [0, 1], of shape (N, K): soft or multi-label targets. Other floats, (N,) or (N, K): regression, standardized;
    but only 0.0 and 1.0 of shape (N,) are two classes. A few whole floats, or -1 beside 0 and 1, are ambiguous: an error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.data.arrays.array_preprocess import ArrayPreprocess
from heptane.data.dataset import Data
from heptane.data.images.image_preprocess import CHANNELS, ImagePreprocess, channels_first
from heptane.data.normalise import normalise, standardise
from heptane.data.npz import read_npz, to_float
from heptane.data.preprocess import Preprocess, TargetScale, as_array
from heptane.data.splits import out_of_balance, split, split_by_class
from heptane.data.tables.cells import Cells
from heptane.data.tables.columns import CLIP
from heptane.data.tables.labels import guess_task

if TYPE_CHECKING:
    import numpy.typing as npt


def load_arrays(source: Path | tuple[Any, Any], *, task: str | None, seed: int, valid_fraction: float | None) -> Data:
    """Load an ``.npz`` file or a pair (x, y); a missing validation part is split off by ``seed``, stratified by class.

    Raises:
        InputError: the file is damaged or too large, holds Python objects, or its arrays do not match.
    """
    arrays, notes = read_npz(source) if isinstance(source, Path) else of_pair(*source)
    named, seen = class_names(arrays)
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for suffix in ("", "_valid", "_test"):
        if f"x{suffix}" in arrays:
            x = to_inputs(f"x{suffix}", arrays.pop(f"x{suffix}"))
            y = to_targets(f"y{suffix}", arrays[f"y{suffix}"], task, notes)
            if len(x) != len(y):
                raise InputError(f"x{suffix} has {len(x)} samples and y{suffix} {len(y)}: give one target per sample")
            parts[suffix] = (x, y)
    num_classes = check_parts(parts, notes, seen)
    if "_valid" not in parts:
        inputs, targets = parts[""]
        rest, valid = set_aside(targets, 0.1 if valid_fraction is None else valid_fraction, seed, notes)
        parts[""], parts["_valid"] = (inputs[rest], targets[rest]), (inputs[valid], targets[valid])
        notes.append(f"{len(valid)} of {len(targets)} samples were set aside for validation, with split seed {seed}")
    elif valid_fraction is not None:
        where = repr(source.name) if isinstance(source, Path) else "the data"
        raise InputError(f"valid_fraction={valid_fraction}: {where} already has x_valid, so omit valid_fraction")
    if num_classes is not None and not parts[""][1].is_floating_point():
        every = torch.cat([parts[suffix][1] for suffix in ("", "_valid")])
        notes += out_of_balance(torch.bincount(every, minlength=num_classes).tolist(), named)
    preprocess, scaled = standardize([inputs for inputs, _ in parts.values()], notes)
    parts = {key: (x, y) for x, (key, (_, y)) in zip(scaled, parts.items(), strict=True)}
    if num_classes is None:
        preprocess, parts = standardize_targets(preprocess, parts, notes)
    name, where = (source.stem, str(source)) if isinstance(source, Path) else ("arrays", "arrays in memory")
    moments = (preprocess.mean, preprocess.std) if isinstance(preprocess, ImagePreprocess) else ((), ())
    about = (num_classes, named, tuple(notes), where, *moments)
    return Data(name, parts[""], parts["_valid"], parts.get("_test"), *about, kind=preprocess.kind, preprocess=preprocess)


def of_pair(x: Any, y: Any) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Convert a pair of arrays, tensors or lists to the form that :func:`read_npz` returns."""
    arrays = {}
    for name, value in (("x", x), ("y", y)):
        array = as_array(value)
        try:
            arrays[name] = np.asarray(value) if array is None else array
        except Exception as error:
            raise InputError(f"{name} is a {type(value).__name__}, not an array ({one_line(error)})") from error
        if arrays[name].dtype.kind == "O" and all(isinstance(one, str) for one in arrays[name].flat):
            arrays[name] = arrays[name].astype(str)
    return arrays, []


def class_names(arrays: dict[str, npt.NDArray[Any]]) -> tuple[tuple[str, ...], bool]:
    """If ``y`` is text, replace it in ``arrays`` by class numbers; return the sorted class names, and whether it was."""
    y = arrays["y"]
    if y.dtype.kind not in "UT" or y.ndim != 1 or not len(y):
        return (), False
    names = np.unique(y.astype(str))
    for key in ("y", "y_valid", "y_test"):
        if key in arrays:
            texts = arrays[key].astype(str)
            unknown = np.setdiff1d(texts, names)
            if len(unknown):
                raise InputError(f"{key} has the class {str(unknown[0])!r}, which y does not have: a model cannot learn it")
            arrays[key] = np.searchsorted(names, texts)
    return tuple(names.tolist()), True


def set_aside(targets: torch.Tensor, share: float, seed: int, notes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices for training and validation: stratified by class, or at random if most classes have one sample."""
    try:
        rest, valid = split_by_class(targets, [share], seed)
    except InputError:
        rest, valid = split([len(targets)], [share], seed)
        if not targets.is_floating_point():
            notes.append(
                "most classes have one sample, so the split is random, and validation has classes that training does not"
            )
    return rest, valid


def standardize(parts: list[torch.Tensor], notes: list[str]) -> tuple[Preprocess, list[torch.Tensor]]:
    """Learn the standardization on the first part; return it and all standardized parts."""
    first = parts[0]
    shape = tuple(first.shape[1:])
    if first.dtype == torch.uint8:
        scaled, mean, std = normalise(parts)
        return ImagePreprocess((shape[1], shape[2]), shape[0], mean, std), scaled
    per_entry = len(shape) == 1 or (len(shape) == 3 and shape[0] in CHANNELS)
    others = tuple(dim for dim in range(first.ndim) if dim != 1) if per_entry else tuple(range(first.ndim))
    values = first.double()
    means, stds = values.mean(others).reshape(-1), values.std(others, correction=0).reshape(-1)
    stds = torch.where(stds > 1e-6 * means.abs().clamp(min=1e-30), stds, torch.ones_like(stds))
    low, high = float(first.min()), float(first.max())
    if len(shape) == 3 and shape[0] in CHANNELS and low >= 0 and high <= 255 and high > 0:
        white = 1.0 if high <= 1 else 255.0
        mean, std = tuple((means / white).tolist()), tuple((stds / white).tolist())
        notes.append(f"x is treated as images with values from 0 to {white:g}, and normalised per channel")
        return ImagePreprocess((shape[1], shape[2]), shape[0], mean, std, white), [
            standardise(part, mean, std, white) for part in parts
        ]
    each = "per feature" if len(shape) == 1 else "per channel" if per_entry else "as a whole"
    notes.append(f"x was standardized {each}, to mean 0 and standard deviation 1 on the training part")
    made = ArrayPreprocess(shape, tuple(means.tolist()), tuple(stds.tolist()), CLIP)
    return made, [made.apply(part) for part in parts]


def standardize_targets(
    preprocess: Preprocess, parts: dict[str, tuple[torch.Tensor, torch.Tensor]], notes: list[str]
) -> tuple[Preprocess, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Standardize regression targets; return ``preprocess`` with their scale, and the parts."""
    assert isinstance(preprocess, ArrayPreprocess | ImagePreprocess)
    scale = TargetScale.learn(parts[""][1])
    notes.append(scale.note("y"))
    return replace(preprocess, target=scale), {key: (x, scale.apply(y)) for key, (x, y) in parts.items()}


def to_inputs(name: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Convert inputs to uint8 images (N, C, H, W) or finite float32 (N, ...)."""
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


def to_targets(name: str, array: npt.NDArray[Any], task: str | None, notes: list[str]) -> torch.Tensor:
    """Convert targets to int64 classes (N,) or finite float32 (N,) or (N, K)."""
    kind, ndim = array.dtype.kind, array.ndim
    if task is None and kind in "if" and ndim == 2:
        refuse_signs(name, array)
    if kind in "iu" and ndim == 2 and array.shape[1] > 1 and len(array) and ((array == 0) | (array == 1)).all():
        if (array.sum(1) == 1).all():
            notes.append(f"{name} is one-hot of shape {array.shape}: treated as {array.shape[1]} classes")
            return torch.from_numpy(array.argmax(1))
        array, kind = array.astype(np.float32), "f"  # multi-label
    if 0 not in array.shape and ((kind in "biu" and ndim == 1) or (kind in "bf" and ndim in (1, 2))):
        if task == "regression" or ndim == 2:
            return to_float(name, array)
        if kind == "f":
            return real_or_classes(name, array, task, notes)
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= 2**31:
            value = low if low < 0 else high
            raise InputError(
                f"{name} has the label {value}: number the classes 0 to K-1, as np.unique(return_inverse=True) does, or "
                "pass task='regression' (--task regression)"
            )
        return torch.from_numpy(array.astype(np.int64))
    wanted = "whole numbers or texts of shape (N,), floats of shape (N,) or (N, K), or booleans of shape (N, K)"
    flat = ": use y.ravel()" if ndim == 2 and array.shape[1:] == (1,) else ""
    raise InputError(f"{name} has dtype {array.dtype} and shape {array.shape}: expected {wanted}{flat}")


def real_or_classes(name: str, array: npt.NDArray[Any], task: str | None, notes: list[str]) -> torch.Tensor:
    """Convert floats (N,): to classes if they are 0.0 and 1.0 or ``task`` says so, else to float32."""
    values = to_float(name, array)
    if task is None:
        task, note = guess_task(name, Cells("number", np.asarray(array, dtype=np.float64)))
        notes += [note] if task == "classification" else []
    if task == "regression":
        return values
    if bool((values < 0).any() or (values != values.round()).any()) or float(values.max()) > 2**24:
        raise InputError(
            f"task='classification', but {name} has labels that are not 0, 1, 2, ...: number the classes 0 to K-1"
        )
    return values.long()


def refuse_signs(name: str, values: npt.NDArray[Any]) -> None:
    """Raise :class:`InputError` for targets (N, K) of -1, 0 and 1, in which -1 is ambiguous."""
    if (values == -1).any() and np.isin(values, (-1, 0, 1)).all():
        raise InputError(
            f"{name} of shape {values.shape} holds -1, 0 or 1, where -1 can be a label that does not apply (or is unknown), "
            "or a number: write 0 for a label that does not apply, or pass task='regression' (--task regression)"
        )


def check_parts(parts: dict[str, tuple[torch.Tensor, torch.Tensor]], notes: list[str], named: bool = False) -> int | None:
    """Check that the parts match; return the number of classes, or None for regression."""
    x, y = parts[""]
    for suffix, part in parts.items():
        for letter, mine, first in zip("xy", part, (x, y), strict=True):
            have, want = (f"{tuple(t.shape[1:])} {str(t.dtype)[6:]}" for t in (mine, first))
            if have != want:
                raise InputError(f"{letter}{suffix} has samples of {have}, but {letter} has {want}: make them equal")
    if y.is_floating_point():
        labels = y.ndim == 2 and bool(((y >= 0) & (y <= 1)).all())  # multi-label, or a distribution
        return y.shape[1] if labels else None
    present = set(y.tolist())
    num_classes = int(y.max()) + 1
    if len(present) == 1 or (num_classes > max(1000, len(y)) and not named):
        seen = f"{len(present)} different label(s), the largest {num_classes - 1}"
        raise InputError(f"y has {seen}: expected 0 to K-1 with K of 2 or more, as np.unique(return_inverse=True) numbers")
    for suffix, (_, targets) in parts.items():
        if int(targets.max()) >= num_classes:
            raise InputError(
                f"y{suffix} has the label {int(targets.max())}, but the largest in y is {num_classes - 1}: correct it"
            )
    if len(present) < num_classes:
        notes.append(f"only {len(present)} of the {num_classes} classes have training samples")
    return num_classes
