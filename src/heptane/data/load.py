"""Load a data set by its name or path, and what the loaders share: the split and the normalisation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from heptane._lazy import np, torch
from heptane.data.images import ImagePreprocess, standardised
from heptane.data.preprocess import Preprocess
from heptane.errors import InputError, check_choice, check_range, nearest

BUILT_IN = ("fashion-mnist", "digits")


class DataUnavailable(InputError):
    """A built-in data set could not be had on this machine; ``fallback=`` of :func:`load_data` answers this one."""


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Attributes:
        name: what it is called: a built-in name, or the name of the folder or file.
        train, valid, test: inputs and targets, or None. Inputs are float32, (N, C, H, W) for images and (N, ...) for
            arrays; targets are int64 class numbers (N,), or float32 (N,) or (N, K).
        num_classes: K, or None for regression.
        class_names: K names, or () where there are none.
        notes: sentences that the user must be told, such as how many files were left out.
        source: where the data came from, in words.
        mean, std: per channel, of pixels scaled to [0, 1], measured on ``train`` and applied to all three parts;
            () where the values were left as they are.
        kind: ``images``, ``table`` or ``arrays``.
        preprocess: what made the inputs; it makes those of new data too. None where the data was made by hand.
        files: of each part the name of every sample's file (or row), in order; absent where samples have no names.
    """

    name: str
    train: tuple[torch.Tensor, torch.Tensor] = field(repr=False)
    valid: tuple[torch.Tensor, torch.Tensor] | None = field(repr=False)
    test: tuple[torch.Tensor, torch.Tensor] | None = field(repr=False)
    num_classes: int | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    source: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    kind: str = "arrays"
    preprocess: Preprocess | None = field(default=None, repr=False)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)

    @property
    def class_counts(self) -> tuple[int, ...] | None:
        """How many training samples each class has; None for regression and for several labels per sample."""
        targets = self.train[1]
        if self.num_classes is None or targets.is_floating_point() or targets.ndim != 1:
            return None
        return tuple(torch.bincount(targets, minlength=self.num_classes).tolist())

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch dimension."""
        return tuple(self.train[0].shape[1:])


def load_data(
    name_or_path: str | os.PathLike[str],
    *,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    valid_fraction: float | None = None,
    skip_bad: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    fallback: str | None = None,
) -> Data:
    """Load a built-in data set, a folder of class folders, or an ``.npz`` file.

    Args:
        name_or_path: ``fashion-mnist``, ``digits``, a directory, or a file that ends in ``.npz``.
        seed: of the split into parts, in [0, 2**32). It is *not* the seed of a run: leave it alone between runs,
            so that runs with different seeds are judged on the same samples and can be compared.
        image_size: pixels in [1, 4096], of height and width or a pair of both, for a folder; None picks (see ``folder.py``).
        valid_fraction: in (0, 1), the share to set aside for validation, of all the samples that are split: the
            60,000 of Fashion-MNIST, all of ``digits`` or a flat folder, else the training part. None: 1/12, 0.2, 0.1.
        skip_bad: leave out up to so many images that cannot be read, and name them in ``notes``; 0: they are an error.
        cache_dir: where downloads are kept; None: ``$HEPTANE_CACHE``, else ``heptane`` in the user's cache folder.
        fallback: the built-in set to load, with a note, where the one asked for cannot be had on this machine.

    Raises:
        InputError: for anything wrong with the data or an argument; the message is one line with the remedy.
    """
    if not isinstance(name_or_path, (str, os.PathLike)) or not os.fspath(name_or_path):
        raise InputError(f"data={name_or_path!r}: expected a name ({', '.join(BUILT_IN)}), a directory or an .npz file")
    check_range("seed", seed, 0, 2**32 - 1, whole=True)
    size = None if image_size is None else check_size(image_size)
    if valid_fraction is not None:
        check_range("valid_fraction", valid_fraction, 0, 1, low_open=True, high_open=True)
    if fallback is not None:
        check_choice("fallback", fallback, BUILT_IN)
    name = os.fspath(name_or_path)
    path = None if name in BUILT_IN else existing_path(name)
    if path is not None and path.is_dir():
        from heptane.data.folder import load_folder

        return load_folder(path, seed=seed, image_size=size, valid_fraction=valid_fraction, skip_bad=skip_bad)
    if image_size is not None:
        raise InputError(f"image_size={image_size}: only a folder of images can be resized; leave it out for {name!r}")
    if path is not None:
        from heptane.data.arrays import load_arrays

        return load_arrays(path, seed=seed, valid_fraction=valid_fraction)
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


def check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one side or both."""
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2:
        raise InputError(f"image_size={image_size!r}: expected one whole number, or a pair, (height, width)")
    for side in sides:
        check_range("image_size", side, 1, 4096, whole=True)
    return sides[0], sides[1]


def existing_path(name: str) -> Path:
    """The directory or ``.npz`` file called ``name``, or an :class:`InputError` that says what was expected."""
    try:
        path = Path(name).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".npz"):
            return path
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"data={name!r} cannot be opened ({error!r}): give the path of a directory or file") from error
    known = f"expected {', '.join(BUILT_IN)}, a directory of class folders, or an .npz file"
    if exists:
        raise InputError(f"data={name!r} is neither a directory nor an .npz file: {known}")
    raise InputError(f"data={name!r} is not a known name or an existing path{nearest(name.lower(), BUILT_IN)}: {known}")


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


def split(groups: Sequence[int], shares: Sequence[float], seed: int) -> list[torch.Tensor]:
    """Cut samples at random into a rest and one part per share, the same way for the same seed, everywhere.

    Args:
        groups: sizes of the runs of consecutive samples, such as the classes, over which each part is spread evenly.
        shares: each part's share of all the samples, in (0, 1).

    Returns:
        Sorted int64 indices: of the rest, then of each part. Every group keeps at least one sample in the rest.

    Raises:
        InputError: a part, or a group's rest, would be empty.
    """
    random = np.random.RandomState(seed)  # NumPy keeps this old generator's stream unchanged for ever (its NEP 19)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    starts = np.cumsum([0, *groups]).tolist()
    start = 0
    for index in sorted(range(len(groups)), key=lambda index: groups[index]):  # large ones last: they can make up a count
        size = groups[index]
        order = (random.permutation(size) + starts[index]).tolist()
        start += size
        for part, share in zip(parts[1:], shares, strict=True):
            count = max(0, min(round(start * share) - len(part), len(order) - 1))
            part.extend(order[:count])
            order = order[count:]
        parts[0].extend(order)
    wanted = [round(start * share) for share in shares]
    if min(wanted) < 1 or [len(part) for part in parts[1:]] != wanted:
        cut = " + ".join(f"{share:.4g}" for share in shares)
        left = "leaves a part, or a class of the training part, empty"
        raise InputError(f"setting aside {cut} of {start} samples {left}: change valid_fraction or give more data")
    return [torch.tensor(sorted(part), dtype=torch.int64) for part in parts]


def normalise(
    parts: Sequence[torch.Tensor], white: int = 255
) -> tuple[list[torch.Tensor], tuple[float, ...], tuple[float, ...]]:
    """uint8 images (N, C, H, W) as float32, less the first part's mean and over its std, per channel.

    Returns:
        The parts, and the mean and std of pixels scaled so that ``white`` is 1. A constant channel has std 1.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in parts[0].unbind(1)]).double()
    shares, levels = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]).square()).sum(1).sqrt()
    std[std < 1e-6] = white
    scaled_mean, scaled_std = tuple((mean / white).tolist()), tuple((std / white).tolist())
    inputs = [standardised(part, scaled_mean, scaled_std, white) for part in parts]
    return inputs, scaled_mean, scaled_std
