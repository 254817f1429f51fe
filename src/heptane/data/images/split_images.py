"""Split a listing of images into parts; copies of one file stay in one part, so that no evaluation sees trained images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch
from heptane.base.progress import working
from heptane.data.duplicates import equal_groups
from heptane.data.images.listing import PARTS, Listing
from heptane.data.splits import split_by_class

if TYPE_CHECKING:
    import numpy.typing as npt

    from heptane.data.images.image_files import ImageList

MAX_COMPARED = 4 * 2**30  # bytes: files of the same size are compared if they take at most this, and OPENING each
OPENING = 2**16  # opening a file takes as long as reading so many bytes


def split_listing(
    listing: Listing, seed: int, valid_fraction: float | None
) -> tuple[dict[str, npt.NDArray[np.int64]], list[str]]:
    """Positions of the images of ``train``, ``valid`` and ``test``, in this order, and notes on copies.

    Args:
        listing: the images; those without parts are split by ``seed``, 80/10/10.
        seed: of the split.
        valid_fraction: as for :func:`heptane.load_data`.
    """
    given = listing.parts
    if "valid" in given:
        if valid_fraction is not None:
            raise InputError(f"valid_fraction={valid_fraction}: {listing.where!r} has a validation part, so leave it out")
        return {part: given[part] for part in PARTS if part in given}, []
    whole = given["all" if "all" in given else "train"]
    shares = [*([0.1] if "all" in given else []), 0.1 if valid_fraction is None else valid_fraction]
    firsts, notes = find_copies(listing.images, whole)
    which = _split_firsts(listing.labels[whole], firsts, shares, seed, one_class=listing.one_class)
    names = ("train", "test", "valid") if "all" in given else ("train", "valid")
    found = {part: whole[which == number] for number, part in enumerate(names)}
    found |= {"test": given["test"]} if "test" in given else {}
    return {part: found[part] for part in PARTS if part in found}, notes


def find_copies(images: ImageList, chosen: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """For each chosen image the position of the first one with the same content, which may be itself; and notes.

    Only files of the same size are read, and none if they take too long.
    """
    firsts, sizes = np.arange(len(chosen)), images.sizes()[chosen]
    _, codes, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    alike = np.flatnonzero((counts[codes] > 1) & (sizes > 0))
    if int(sizes[alike].sum()) + OPENING * len(alike) > MAX_COMPARED:
        return firsts, [
            f"copies of the same file were not looked for, since {len(alike):,} files share their size with another"
        ]
    digests = list[bytes]()
    with working(f"comparing {len(alike):,} files of the same size", len(alike)) as advance:
        for number in chosen[alike].tolist():
            digests.append(images.digest(number))
            advance()
    keys = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 4)  # 256 bits each
    for group in equal_groups(keys):
        firsts[alike[group]] = alike[group[0]]
    count = int((firsts != np.arange(len(firsts))).sum())
    return firsts, [f"{count:,} file(s) are copies of others: each is in the same part as the other"] if count else []


def _split_firsts(
    labels: npt.NDArray[np.float64 | np.int64],
    firsts: npt.NDArray[np.int64],
    shares: list[float],
    seed: int,
    *,
    one_class: bool,
) -> npt.NDArray[np.int64]:
    """The part's number of each image: the first of each group of copies is split, and the others follow it."""
    distinct = np.flatnonzero(firsts == np.arange(len(firsts)))
    try:
        made = split_by_class(torch.from_numpy(labels[distinct]), shares, seed)
    except InputError as error:
        copies = len(firsts) - len(distinct)
        raise InputError(f"{error} ({copies:,} more are copies of these)" if copies else str(error)) from None
    which = np.zeros(len(firsts), dtype=np.int64)
    for number, index in enumerate(made):
        which[distinct[index.numpy()]] = number
    which = which[firsts]
    if one_class and len(distinct) < len(firsts):  # a class may consist of copies of other classes
        trained = np.bincount(labels[which == 0], minlength=int(labels.max()) + 1)
        for label in np.flatnonzero((trained == 0) & (np.bincount(labels) > 0)).tolist():
            which[firsts == firsts[np.argmax(labels == label)]] = 0
    return which
