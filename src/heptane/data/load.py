"""Load a data set by its name, path or content, and what the loaders share: the normalisation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, check_choice, check_range, did_you_mean
from heptane.base.lazy import np, torch
from heptane.data.dataset import Data, DataUnavailable, normalise
from heptane.data.images import ImagePreprocess
from heptane.data.preprocess import is_path
from heptane.data.splits import split

BUILT_IN = ("fashion-mnist", "digits")
TASKS = ("classification", "regression")


def load_data(
    source: Any,
    *,
    label: str | None = None,
    task: str | None = None,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    valid_fraction: float | None = None,
    skip_bad: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    fallback: str | None = None,
    scale: str = "data",
) -> Data:
    """Load a built-in data set, a folder of class folders, a table, or arrays; ``docs/data.md`` has all formats.

    Args:
        source: ``fashion-mnist``, ``digits``, a directory; a ``.csv``, ``.tsv`` or ``.parquet`` file, a pandas or polars
            frame, a list of dicts; an ``.npz`` file, or a pair (x, y) of arrays, tensors, or a frame and its labels.
        label: of a table, the column to predict; None: the one called label, target, class or y.
        task: of a table or arrays, ``classification`` or ``regression``, where the labels can be read as both; None: by
            the labels, and an error where that is unclear.
        seed: of the split into parts, in [0, 2**32). It is *not* the seed of a run: leave it alone between runs,
            so that runs with different seeds are judged on the same samples and can be compared.
        image_size: pixels in [1, 4096], of height and width or a pair of both, for a folder; None picks (see ``folder.py``).
        valid_fraction: in (0, 1), the share to set aside for validation, of all the samples that are split: the
            60,000 of Fashion-MNIST, all of ``digits``, a flat folder or a table, else the training part. None: 1/12,
            0.2, 0.1.
        skip_bad: leave out up to so many images that cannot be read, and name them in ``notes``; 0: they are an error.
        cache_dir: where downloads are kept; None: ``$HEPTANE_CACHE``, else ``heptane`` in the user's cache folder.
        fallback: the built-in set to load, with a note, where the one asked for cannot be had on this machine.
        scale: of a folder's pixels: "data", by the mean and standard deviation of its training images, or "imagenet", in
            three channels and by those of ImageNet, as pretrained networks expect.

    Raises:
        InputError: for anything wrong with the data or an argument; the message is one line with the remedy.

    Example:
        >>> rows = [{"size": n, "colour": "red" if n % 3 else "blue", "label": n > 50} for n in range(100)]
        >>> data = load_data(rows)
        >>> data.input_shape, data.class_names
        ((3,), ('False', 'True'))
    """
    check_range("seed", seed, 0, 2**32 - 1, whole=True)
    size = None if image_size is None else check_size(image_size)
    if valid_fraction is not None:
        check_range("valid_fraction", valid_fraction, 0, 1, low_open=True, high_open=True)
    if fallback is not None:
        check_choice("fallback", fallback, BUILT_IN)
    check_choice("scale", scale, ("data", "imagenet"))
    if task is not None:
        check_choice("task", task, TASKS)
    kind, found = identify(source)
    if image_size is not None and kind != "folder":
        raise InputError(
            f"image_size={image_size}: only a folder of images can be resized; leave it out for {describe_source(source)}"
        )
    if label is not None and kind != "table":
        raise InputError(f"label={label!r}: only a table has columns; leave it out for {describe_source(source)}")
    if task is not None and kind not in ("table", "arrays"):
        raise InputError(f"task={task!r}: only tables and arrays need it; leave it out for {describe_source(source)}")
    if kind == "folder":
        from heptane.data.folder import load_folder

        return load_folder(found, seed=seed, image_size=size, valid_fraction=valid_fraction, skip_bad=skip_bad, scale=scale)
    if kind == "table":
        from heptane.data.table import load_table

        return load_table(found, label=label, task=task, seed=seed, valid_fraction=valid_fraction)
    if kind == "arrays":
        from heptane.data.arrays import load_arrays

        return load_arrays(found, task=task, seed=seed, valid_fraction=valid_fraction)
    return load_built_in(found, seed, valid_fraction, cache_dir, fallback)


def load_built_in(
    name: str,
    seed: int,
    valid_fraction: float | None,
    cache_dir: str | os.PathLike[str] | None,
    fallback: str | None,
) -> Data:
    """One of ``BUILT_IN``; ``fallback``, with a note, where it cannot be had."""
    try:
        if name == "digits":
            return load_digits(seed=seed, valid_fraction=valid_fraction)
        from heptane.data.fashion_mnist import load_fashion_mnist

        return load_fashion_mnist(seed=seed, valid_fraction=valid_fraction, cache_dir=cache_dir)
    except DataUnavailable as error:
        if fallback is None or fallback == name:
            raise
        data = load_data(fallback, seed=seed, valid_fraction=valid_fraction, cache_dir=cache_dir)
        return replace(data, notes=(f"{name} could not be had, so this is {fallback} instead: {error}", *data.notes))


def identify(source: Any) -> tuple[str, Any]:
    """What kind of data a source is: ``built-in``, ``folder``, ``table`` or ``arrays``; and its name, path or content."""
    from heptane.data.read_table import is_table, join_labels

    if isinstance(source, (str, os.PathLike)) and os.fspath(source):
        name = os.fspath(source)
        if name in BUILT_IN:
            return "built-in", name
        path = existing_path(name)
        return ("folder" if path.is_dir() else "table" if is_table(path) else "arrays"), path
    if isinstance(source, (tuple, list)) and len(source) == 2 and not isinstance(source[0], (str, os.PathLike, Mapping)):
        if is_table(source[0]) and hasattr(source[0], "columns"):
            return "table", join_labels(*source)
        if hasattr(source[0], "shape") or isinstance(source[0], list):
            return "arrays", tuple(source)
    if not is_path(source) and is_table(source):
        return "table", source
    raise InputError(
        f"data={describe_source(source)}: expected a name ({', '.join(BUILT_IN)}), a directory or an .npz file, a .csv or "
        ".parquet file, a frame, or a pair (x, y)"
    )


def describe_source(source: Any) -> str:
    """A source in a message: its name or path, else its type."""
    return repr(os.fspath(source)) if is_path(source) else repr(source) if len(repr(source)) < 40 else type(source).__name__


def check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one side or both."""
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        raise InputError(f"image_size={image_size!r}: expected one whole number, or a pair, (height, width)")
    for side in sides:
        check_range("image_size", side, 1, 4096, whole=True)
    return sides[0], sides[1]


def existing_path(name: str) -> Path:
    """The directory, table or ``.npz`` file called ``name``, or an :class:`InputError` that says what was expected."""
    from heptane.data.read_table import is_table

    try:
        path = Path(name).expanduser()
        if path.is_dir() or (path.is_file() and (path.suffix.lower() == ".npz" or is_table(path))):
            return path
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"data={name!r} cannot be opened ({error!r}): give the path of a directory or file") from error
    known = f"expected {', '.join(BUILT_IN)}, a directory of class folders, a .csv, .tsv, .parquet or .npz file"
    if exists:
        raise InputError(f"data={name!r} is neither a directory nor an .npz file nor a table: {known}")
    raise InputError(f"data={name!r} is not a known name or an existing path{did_you_mean(name.lower(), BUILT_IN)}: {known}")


def load_digits(*, seed: int, valid_fraction: float | None) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8 by 8 pixels, split 60/20/20.

    Raises:
        DataUnavailable: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataUnavailable('digits needs scikit-learn, which is missing: pip install "heptane[digits]"') from error
    digits = load()
    pixels = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test, valid = split([len(labels)], [0.2, 0.2 if valid_fraction is None else valid_fraction], seed)
    inputs, mean, std = normalise([pixels[train], pixels[valid], pixels[test]], white=16)
    parts = [(x, labels[i]) for x, i in zip(inputs, (train, valid, test), strict=True)]
    note = f"digits was split {len(train)}/{len(valid)}/{len(test)} into train, valid and test by the split seed {seed}"
    names = tuple(str(i) for i in range(10))
    preprocess = ImagePreprocess((8, 8), 1, mean, std, white=16.0)
    about = (10, names, (note,), "scikit-learn", mean, std)
    return Data("digits", parts[0], parts[1], parts[2], *about, kind="images", preprocess=preprocess)
