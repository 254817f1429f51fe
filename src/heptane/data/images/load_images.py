"""Load the images of a listing: split them into parts, decode them once, and measure their mean and standard deviation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.base.progress import working
from heptane.data.dataset import Data
from heptane.data.images.image_preprocess import ImagePreprocess
from heptane.data.images.listing import PARTS, Listing
from heptane.data.images.pixel_cache import open_store
from heptane.data.images.read_image import ignore_warnings, probe, read_image_unguarded
from heptane.data.images.replaced_images import ReplacedImages
from heptane.data.images.split_images import split_listing
from heptane.data.images.stored_images import Images
from heptane.data.images.survey import evenly_spaced
from heptane.data.normalise import IMAGENET_MEAN, IMAGENET_STD, channel_moments
from heptane.data.preprocess import TargetScale
from heptane.data.reading import Reading
from heptane.data.splits import out_of_balance

if TYPE_CHECKING:
    import numpy.typing as npt

    from heptane.data.images.pixel_store import PixelStore

MAX_KEPT_SIZE, DEFAULT_SIZE = 256, 64  # pixels
MAX_NAMED = 50  # unreadable files listed in a note
HEADERS = 500  # images at most whose headers are read, for their sizes and colours
AT_FIRST = 10_000  # images at most that are decoded before training; of more, each is decoded when it is first needed
MEASURED, FEW = 4096, 1024  # training images at most that are all measured, else so many of them
PLANNED = 256  # training images at most that are measured if none is decoded before it is needed
PIECE = 256  # images measured at a time
LARGE_BYTES = 64 * 2**20  # pixels of this size deserve a note on where they are


def load_images(
    listing: Listing,
    *,
    seed: int,
    image_size: tuple[int, int] | None,
    valid_fraction: float | None,
    skip_bad: int,
    scale: str = "data",
    reading: Reading | None = None,
) -> Data:
    """Load the images; those without parts are split by ``seed``, 80/10/10.

    Args:
        listing: the images.
        seed: of the split.
        image_size: (height, width) in pixels, or None.
        valid_fraction, skip_bad, scale, reading: as for :func:`heptane.load_data`.

    Raises:
        InputError: a class has no readable image, or too many are unreadable.
    """
    parts, notes = split_listing(listing, seed, valid_fraction)
    reading, notes = reading or Reading(), [*listing.notes, *notes]
    size, is_grey = _size_and_colour(listing, image_size)
    channels = 1 if is_grey and scale != "imagenet" else 3
    larger = tuple(round(side * reading.room) for side in size)
    stores, how = dict[tuple[int, ...], "PixelStore"](), ""
    rows = {size: np.concatenate([parts[part] for part in parts if part != "train" or larger == size])}
    rows.setdefault((larger[0], larger[1]), parts["train"])
    for stored, chosen in rows.items():
        stores[stored], how = open_store(listing.images, stored, channels, len(chosen), reading, listing.encoded_bytes)
    training, first = stores[larger[0], larger[1]], AT_FIRST if reading.first is None else reading.first
    replaces = min(skip_bad, first) > 0 and listing.one_class and (len(listing.images) > first or training.rows is None)
    measured = parts["train"] if first else np.array(evenly_spaced(parts["train"].tolist(), PLANNED))
    before = list[tuple["PixelStore", "npt.NDArray[np.int64]"]]()  # what is decoded before training
    for stored, chosen in rows.items():
        if first and (skip_bad or (len(listing.images) <= first and stores[stored].rows is not None)):
            before.append((stores[stored], np.setdiff1d(chosen, parts["train"]) if replaces else np.sort(chosen)))
    bad = _fill([(training, measured)] if skip_bad and not first else before, skip_bad)
    if bad:
        notes.append(f"{len(bad)} unreadable file(s) were skipped: {_named(listing, bad)}")
        parts = {part: index[~np.isin(index, list(bad))] for part, index in parts.items()}
    _check_classes(listing, parts)
    notes += _notes_on_split(listing, parts, seed)
    replaced = ReplacedImages(listing.images, parts["train"], listing.labels, skip_bad - len(bad)) if replaces else None
    if replaced is not None:
        notes.append(f"unreadable training images are found as they are reached, and replaced (--skip-bad {skip_bad})")
    measured = parts["train"] if first else np.setdiff1d(measured, list(bad))
    moments = (IMAGENET_MEAN, IMAGENET_STD) if scale == "imagenet" else _measure(training, measured, replaced)
    made = {part: Images(stores[size], index, size, *moments) for part, index in parts.items() if part != "train"}
    made["train"] = Images(training, parts["train"], size, *moments, replaced)
    labels, target = _targets(listing, parts)
    notes += [] if target is None else [target.note("the label")]
    train, valid, test = ((made[part], labels[part]) if part in made else None for part in PARTS)
    assert train is not None
    notes += _notes_on_storage(made["train"], how) if first else []
    preprocess = ImagePreprocess(size, channels, *moments, target=target, background=reading.background)
    about = (len(listing.classes) or None, listing.classes, tuple(notes), listing.where, *moments)
    files = {part: listing.images.names_at(index) for part, index in parts.items()}
    return Data(listing.name, train, valid, test, *about, kind="images", preprocess=preprocess, files=files)


def _targets(
    listing: Listing, parts: dict[str, npt.NDArray[np.int64]]
) -> tuple[dict[str, torch.Tensor], TargetScale | None]:
    """The targets of each part, and how numbers to predict were standardized; None for classes."""
    labels = {part: torch.from_numpy(listing.labels[index]) for part, index in parts.items()}
    if listing.classes:
        return labels, None
    scale = TargetScale.learn(labels["train"])
    return {part: scale.apply(values) for part, values in labels.items()}, scale


def _notes_on_split(listing: Listing, parts: dict[str, npt.NDArray[np.int64]], seed: int) -> list[str]:
    if "valid" in listing.parts:
        return []
    flat = "all" in listing.parts
    names = ("train", "test", "valid") if flat else ("train", "valid")
    sizes = ", ".join(f"{len(parts[part])} {part}" for part in names)
    split = f"the {'images' if flat else 'training images'} were split by seed {seed}: {sizes}"
    if not listing.one_class:
        return [split]
    counts = np.bincount(np.concatenate([listing.labels[parts[part]] for part in names]), minlength=len(listing.classes))
    return [*out_of_balance(counts.tolist(), listing.classes), split]


def _notes_on_storage(train: Images, how: str) -> list[str]:
    if train.nbytes < LARGE_BYTES and train.in_memory and "takes" not in how:
        return []
    where = "in memory" if train.in_memory else "decoded when they are first needed"
    if not train.in_memory and train.store.rows is None:
        where = "decoded at each use"
    size = f"{len(train):,} training images, {train.nbytes / 2**20:,.0f} MiB as uint8"
    return [f"{size}: {where}{f'; {how}' if how else ''}"]


def _size_and_colour(listing: Listing, image_size: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """(height, width) of the images, and whether all are grey, from their headers."""
    headers = []
    with ignore_warnings():
        for index in evenly_spaced(range(len(listing.images)), HEADERS):
            try:
                headers.append(read_image_unguarded(listing.images.read(index), probe))
            except Exception:  # Pillow's readers raise many types; decoding will report it
                continue
    sizes = {size for size, _ in headers}
    is_grey = bool(headers) and all(grey for _, grey in headers)
    if image_size is None and len(sizes) == 1 and max(width_height := sizes.pop()) <= MAX_KEPT_SIZE:
        return (width_height[1], width_height[0]), is_grey
    return image_size or (DEFAULT_SIZE, DEFAULT_SIZE), is_grey


def _fill(wanted: Sequence[tuple[PixelStore, npt.NDArray[np.int64]]], limit: int) -> dict[int, Exception]:
    """Decode images of stores; return the unreadable ones, or raise :class:`InputError` if they are too many."""
    rank, workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found = dict[int, Exception]()
    for store, rows in wanted:
        first = rank * len(rows) // workers  # the workers share a cache, so each begins with its share
        found |= dict(store.fill(rows.tolist(), f"reading {len(rows):,} images", limit - len(found), first))
        if len(found) > limit:
            index, error = list(found.items())[limit]
            remedy = "repair or remove it, or skip unreadable files with --skip-bad N"
            if limit:
                skipped = [repr(store.images.name(index)) for index in list(found)[:limit]]
                remedy = f"it is one more than --skip-bad {limit} allows, after {', '.join(skipped[:5])}"
            name = f"{store.images.where}/{store.images.name(index)}"
            raise InputError(f"image {name!r} cannot be read ({one_line(error)}): {remedy}") from error
    return found


def _named(listing: Listing, bad: Iterable[int]) -> str:
    names = [repr(listing.images.name(index)) for index in sorted(bad)]
    return ", ".join([*names[:MAX_NAMED], *(["..."] if len(names) > MAX_NAMED else [])])


def _check_classes(listing: Listing, parts: dict[str, npt.NDArray[np.int64]]) -> None:
    """Raise :class:`InputError` if a class has no readable image for training, or no longer one in a part that the data
    brought."""
    if not len(parts["train"]):
        raise InputError(f"{listing.where!r} has no readable image to train on")
    for part, index in parts.items() if listing.one_class else ():
        if part != "train" and part not in listing.parts:
            continue
        listed, left = (
            np.bincount(listing.labels[chosen], minlength=len(listing.classes))
            for chosen in (listing.parts.get(part, index), index)
        )
        lacking = (left == 0) & (True if part == "train" else listed > 0)
        if lacking.any():
            name, where = listing.classes[int(lacking.argmax())], f" in the {part} part" if part in listing.parts else ""
            raise InputError(f"class {name!r} of {listing.where!r} has no readable image{where}: add some, or remove it")


def _measure(
    store: PixelStore, rows: npt.NDArray[np.int64], replaced: ReplacedImages | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the training images, or of some of them, evenly spaced."""
    chosen: Sequence[int] = rows.tolist() if len(rows) <= MEASURED else evenly_spaced(rows.tolist(), FEW)
    images = Images(store, np.array(chosen), store.size, (0.0,), (1.0,), replaced)
    counts: Any = 0
    with working(f"measuring the mean of {len(chosen):,} images", len(chosen)) as advance:
        for part in torch.split(torch.arange(len(chosen)), PIECE):
            pixels = images.pixels(part)
            counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)])
            advance(len(part))
    return channel_moments(counts)
