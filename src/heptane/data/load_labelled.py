"""Load labelled data to evaluate a trained model; classes are matched by name, and some may be absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch
from heptane.data.images.folder import find_parts, list_entries
from heptane.data.images.image_files import ListedImage, list_files
from heptane.data.images.read_image import SUFFIXES
from heptane.data.images.sources import images_kind, list_images
from heptane.data.tables.read_table import parquet_files

if TYPE_CHECKING:
    from heptane.data.images.listing import Listing
    from heptane.data.preprocess import Preprocess, TargetScale

MAX_NAMED = 5


def load_labelled(
    source: Path | str, part: str, classes: Sequence[str], preprocess: Preprocess, label: str | None = None
) -> tuple[Any, torch.Tensor, str]:
    """Load data; return the source for ``preprocess.inputs``, the targets, and the name of the part.

    Args:
        source: a folder of class folders (or of ``train/``, ``valid/``, ``test/``), a table or an ``.npz`` file. Data
            without parts is used whole. For a run on images also a manifest, shards or a Hugging Face data set.
        part: ``train``, ``valid``, ``test`` or ``all``.
        classes: the model's classes, in the order of its outputs; () for regression.
        preprocess: of the run.
        label: the label's column of a manifest and the like; None: by its name.

    Raises:
        InputError: the data has an unknown class, no labels, or another kind than the training data.
    """
    listed = preprocess.kind == "images" and images_kind(source) in ("manifest", "shards", "hub")
    listing = list_images(source, label=label, task=None if classes else "regression") if listed else None
    if listing is not None:
        return _listed(listing, part, classes, preprocess.target)
    path = Path(source)
    folder = path.is_dir() and not parquet_files(path)
    kind = "images" if folder else "arrays" if path.suffix.lower() == ".npz" else "table"
    if (kind, preprocess.kind) == ("table", "text"):
        return _table(path, classes, preprocess)
    if kind != preprocess.kind and not (kind == "arrays" and preprocess.kind == "images"):
        raise InputError(f"{path} is {_named(kind)}, but the run was trained on {_named(preprocess.kind)}: give such data")
    if kind == "images":
        return _folder(path, part, classes)
    return _arrays(path, part, classes, preprocess.target) if kind == "arrays" else _table(path, classes, preprocess)


def known(names: Sequence[str], classes: Sequence[str], where: Path) -> dict[str, int]:
    """Map the model's class names to numbers; raise :class:`InputError` if ``names`` has others."""
    numbers = {name: index for index, name in enumerate(classes)}
    unknown = sorted(name for name in names if name not in numbers)
    if unknown:
        raise InputError(f"{where} has classes that the run does not know: {_shorten(unknown)}; known: {_shorten(classes)}")
    return numbers


def _listed(
    listing: Listing, part: str, classes: Sequence[str], target: TargetScale | None
) -> tuple[list[ListedImage], torch.Tensor, str]:
    used = "all" if "all" in listing.parts or part == "all" else part
    if used != "all" and part not in listing.parts:
        raise InputError(f"{listing.where} has no {part} part, but {', '.join(listing.parts)}: choose one with --part")
    rows = np.arange(len(listing.images)) if used == "all" else listing.parts[used]
    if bool(classes) != bool(listing.classes):
        kinds = ("classes", "numbers") if listing.classes else ("numbers", "classes")
        raise InputError(f"{listing.where} is labelled with {kinds[0]}, but the run predicts {kinds[1]}: give such data")
    images, labels = [ListedImage(listing.images, row) for row in rows.tolist()], torch.from_numpy(listing.labels[rows])
    if not classes:
        return images, labels if target is None else target.apply(labels), used
    numbers = known(listing.classes, classes, Path(listing.where))
    column = torch.tensor([numbers[name] for name in listing.classes])
    if labels.ndim == 1:
        return images, column[labels], used
    several = labels.new_zeros(len(labels), len(classes))
    several[:, column] = labels
    return images, several, used


def _folder(root: Path, part: str, classes: Sequence[str]) -> tuple[list[Path], torch.Tensor, str]:
    folders = find_parts(root)
    used = "all" if "all" in folders or part == "all" else part
    if "all" not in folders and part != "all" and part not in folders:
        raise InputError(f"{root} has no {part} part, but {', '.join(folders)}: choose one with --part")
    chosen = list(folders.values()) if used == "all" else [folders[part]]
    inside = [entry for folder in chosen for entry in list_entries(folder) if entry.is_dir()]
    numbers = known([entry.name for entry in inside], classes, root)
    files, labels = [], []
    for entry in inside:
        found = [entry / name for name in list_files(entry, SUFFIXES)[0]]
        files += found
        labels += [numbers[entry.name]] * len(found)
    if not files:
        raise InputError(f"{root} has no image in its class folders: expected ROOT/CLASS/IMAGE")
    return files, torch.tensor(labels), used


def _arrays(path: Path, part: str, classes: Sequence[str], target: TargetScale | None) -> tuple[Any, torch.Tensor, str]:
    from heptane.data.npz import read_npz

    arrays, _ = read_npz(path)
    there = {name: f"_{name}" for name in ("valid", "test") if f"x_{name}" in arrays}
    if part in there or (part == "train" and there):
        suffixes, used = [there.get(part, "")], part
    else:
        suffixes, used = ["", *there.values()], "all"
    x = np.concatenate([arrays[f"x{suffix}"] for suffix in suffixes])
    y = np.concatenate([arrays[f"y{suffix}"] for suffix in suffixes])
    if len(x) != len(y):
        raise InputError(f"{path}: x has {len(x)} samples and y {len(y)}: give one target per sample")
    if not classes or (y.dtype.kind == "f" and y.ndim > 1):
        return x, torch.from_numpy(y.astype(np.float32)) if target is None else target.apply(torch.from_numpy(y)), used
    if y.dtype.kind == "U":
        numbers = known(sorted(set(y.tolist())), classes, path)
        return x, torch.tensor([numbers[name] for name in y.tolist()]), used
    whole = torch.from_numpy(y.astype(np.int64))
    if whole.ndim != 1 or bool((whole < 0).any()) or int(whole.max()) >= len(classes):
        raise InputError(f"{path}: y has labels outside 0 to {len(classes) - 1} ({_shorten(classes)}): correct them")
    return x, whole, used


def _table(path: Path, classes: Sequence[str], preprocess: Any) -> tuple[Any, torch.Tensor, str]:
    from heptane.data.tables.cells import comma_of, read_cells
    from heptane.data.tables.labels import read_labels
    from heptane.data.tables.read_table import read_table

    frame, _ = read_table(path)
    if preprocess.label not in frame.columns:
        raise InputError(f"{path} has no label column {preprocess.label!r}: for unlabelled data use heptane predict")
    cells = read_cells(frame[preprocess.label], preprocess.comma or comma_of(frame), label=True)
    if not classes:
        labels = read_labels(repr(preprocess.label), cells, "regression")
        return frame, preprocess.target.apply(labels.targets), "all"
    if cells.missing.any():
        raise InputError(f"{path}: the label {preprocess.label!r} is missing in row {int(np.flatnonzero(cells.missing)[0])}")
    texts = [_name(value, cells.note == "booleans") for value in cells.values.tolist()]
    numbers = known(sorted(set(texts)), classes, path)
    return frame, torch.tensor([numbers[text] for text in texts]), "all"


def _name(value: Any, boolean: bool) -> str:
    """The class name of a table's label."""
    if boolean:
        return str(bool(value))
    return str(int(value)) if isinstance(value, float) and value == round(value) else str(value)


def _named(kind: str) -> str:
    return {"images": "a folder of images", "arrays": "arrays (.npz)", "table": "a table", "text": "text"}[kind]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
