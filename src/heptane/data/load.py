"""``load_data``: load a dataset by name, by path, or from memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, check_choice, check_range, did_you_mean
from heptane.base.lazy import np, torch
from heptane.data.dataset import Data, DataUnavailable
from heptane.data.images.folder import is_text_folder
from heptane.data.images.image_preprocess import ImagePreprocess
from heptane.data.images.sources import images_kind, list_images
from heptane.data.normalise import normalise
from heptane.data.preprocess import is_path
from heptane.data.reading import Reading
from heptane.data.splits import split
from heptane.data.texts.text import Text

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
    reading: Reading | None = None,
    text: str | Text | None = None,
) -> Data:
    """Load a built-in data set, images, a table, text, or arrays; ``docs/data.md`` has all formats.

    Args:
        source: ``fashion-mnist``, ``digits``, a directory; ``.tar`` shards (a file, a pattern or a URL); ``hf-data:NAME``; a
            ``.csv``, ``.tsv`` or ``.parquet`` file (a table, or a list of image files), a pandas or polars frame, a list of
            dicts; an ``.npz`` file, or a pair (x, y) of arrays, tensors, or a frame and its labels.
        label: for a table or a list of image files, the column to predict; None: the column called label, target, class or
            y.
        task: for those and for arrays, ``classification`` or ``regression``; None: inferred from the labels, and an error if
            they are ambiguous.
        seed: of the split into parts, in [0, 2**32). This is *not* the seed of a run: keep it fixed, so that runs with
            different seeds are evaluated on the same samples.
        image_size: for image files, pixels in [1, 4096]: one side of a square, or (height, width); None: the images' own
            size if they share one of at most 256, else 64.
        valid_fraction: in (0, 1), the fraction set aside for validation, of all samples that are split: the 60,000 of
            Fashion-MNIST, all of ``digits``, a flat folder or a table, else the training part. None: 1/12 for
            Fashion-MNIST, 0.2 for ``digits``, else 0.1.
        skip_bad: for image files, skip up to this many unreadable images and list them in ``notes``; 0: they are an error.
        cache_dir: of downloads; None: ``$HEPTANE_CACHE``, else ``heptane`` in the user's cache folder.
        fallback: built-in dataset to load, with a note, if the requested one is not available on this machine.
        scale: of a folder's pixels: "data" standardises with the training images' mean and standard deviation; "imagenet"
            gives three channels with ImageNet's, as pretrained networks expect.
        reading: how image files are read, and what is cached, a :class:`heptane.Reading`; None: with its defaults.
        text: the column of text to predict from, of a table or a Hugging Face data set; or a :class:`heptane.Text`, which
            also says how it is cut into tokens. A folder of class folders of .txt files needs none.

    Raises:
        InputError: the data or an argument is invalid; the message is one line with the remedy.

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
    if holds_text(source, text):
        from heptane.data.texts.load_text import load_text

        if image_size is not None:
            raise InputError(f"image_size={image_size}: text has none; omit it for {describe_source(source)}")
        how = text if isinstance(text, Text) else Text(text)
        return load_text(
            source,
            how,
            label=label,
            task=task,
            seed=seed,
            valid_fraction=valid_fraction,
            reading=reading or Reading(),
        )
    listing = list_images(source, label=label, task=task, skip_bad=skip_bad)
    if listing is not None:
        from heptane.data.images.load_images import load_images

        return load_images(
            listing,
            seed=seed,
            image_size=size,
            valid_fraction=valid_fraction,
            skip_bad=skip_bad,
            scale=scale,
            reading=reading,
        )
    kind, found = identify(source)
    if image_size is not None:
        raise InputError(f"image_size={image_size}: only image files can be resized; omit it for {describe_source(source)}")
    if label is not None and kind != "table":
        raise InputError(f"label={label!r}: only a table has columns; omit it for {describe_source(source)}")
    if task is not None and kind not in ("table", "arrays"):
        raise InputError(f"task={task!r}: only tables and arrays need it; omit it for {describe_source(source)}")
    if kind == "table":
        return load_any_table(found, label=label, task=task, seed=seed, valid_fraction=valid_fraction, reading=reading)
    if kind == "arrays":
        from heptane.data.arrays.load_arrays import load_arrays

        return load_arrays(found, task=task, seed=seed, valid_fraction=valid_fraction)
    return load_built_in(found, seed, valid_fraction, cache_dir, fallback)


def holds_text(source: Any, text: Any = None) -> bool:
    """Whether a source is read as text: if ``text`` says so, or it is a folder of class folders of .txt files."""
    if text is not None:
        return True
    try:
        return is_path(source) and Path(source).expanduser().is_dir() and is_text_folder(Path(source).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False  # loading will report it


def load_any_table(source: Any, *, reading: Reading | None, **how: Any) -> Data:
    """Load a table: into memory, or as columns on the disk if it is large and the cache has room."""
    from heptane.data.tables.chunks import is_large
    from heptane.data.tables.load_table import load_table

    if not is_large(source):
        return load_table(source, **how)
    from heptane.data.tables.load_large import load_large

    data = load_large(Path(source).expanduser(), **how, reading=reading or Reading())
    if isinstance(data, Data):
        return data
    found = load_table(source, **how)
    return replace(found, notes=(f"the whole table is in memory, since {data}", *found.notes))


def load_built_in(
    name: str,
    seed: int,
    valid_fraction: float | None,
    cache_dir: str | os.PathLike[str] | None,
    fallback: str | None,
) -> Data:
    """Load one of ``BUILT_IN``, or ``fallback``, with a note, if it is not available."""
    try:
        if name == "digits":
            return load_digits(seed=seed, valid_fraction=valid_fraction)
        from heptane.data.arrays.fashion_mnist import load_fashion_mnist

        return load_fashion_mnist(seed=seed, valid_fraction=valid_fraction, cache_dir=cache_dir)
    except DataUnavailable as error:
        if fallback is None or fallback == name:
            raise
        data = load_data(fallback, seed=seed, valid_fraction=valid_fraction, cache_dir=cache_dir)
        return replace(data, notes=(f"{name} is not available, so {fallback} was loaded instead: {error}", *data.notes))


def identify(source: Any) -> tuple[str, Any]:
    """Return the kind of a source (``built-in``, ``table`` or ``arrays``), and its name, path or content."""
    from heptane.data.tables.read_table import is_table, join_labels

    if isinstance(source, (str, os.PathLike)) and os.fspath(source):
        name = os.fspath(source)
        if name in BUILT_IN:
            return "built-in", name
        if images_kind(source) == "hub":
            from heptane.data.images.hub_data import read_hub_table

            return "table", read_hub_table(os.path.expanduser(name))
        path = existing_path(name)
        return ("table" if is_table(path) else "arrays"), path
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
    """A source's name or path, else its type, for messages."""
    return repr(os.fspath(source)) if is_path(source) else repr(source) if len(repr(source)) < 40 else type(source).__name__


def check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one side or both."""
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        raise InputError(f"image_size={image_size!r}: expected a whole number or a pair (height, width)")
    for side in sides:
        check_range("image_size", side, 1, 4096, whole=True)
    return sides[0], sides[1]


def existing_path(name: str) -> Path:
    """Return the path of a directory, table or ``.npz`` file, or raise :class:`InputError`."""
    from heptane.data.tables.read_table import is_table

    try:
        path = Path(name).expanduser()
        if path.is_dir() or (path.is_file() and (path.suffix.lower() == ".npz" or is_table(path))):
            return path
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"data={name!r} cannot be opened ({error!r}): give the path of a directory or file") from error
    files = ".csv, .tsv, .parquet, .npz or .tar file"
    known = f"expected {', '.join(BUILT_IN)}, a directory of class folders, a {files}, a URL, or hf-data:NAME"
    if exists:
        raise InputError(f"data={name!r} is not a directory, table or .npz file: {known}")
    raise InputError(f"data={name!r} is not a known name or an existing path{did_you_mean(name.lower(), BUILT_IN)}: {known}")


def load_digits(*, seed: int, valid_fraction: float | None) -> Data:
    """Load scikit-learn's 1,797 handwritten digits, 8 by 8 pixels, split 60/20/20.

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
