"""The sources of images: folders, manifests, shards and Hugging Face data sets, each listed before any image is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.data.images.folder import is_text_folder, list_folder
from heptane.data.images.hub_data import is_hub_data
from heptane.data.images.image_files import ImageList
from heptane.data.images.listing import Listing
from heptane.data.images.shards import are_shards
from heptane.data.preprocess import is_path
from heptane.data.tables.read_table import parquet_files


def list_images(source: Any, *, label: str | None = None, task: str | None = None, skip_bad: int = 0) -> Listing | None:
    """List the images of a source; None if it is not one of images.

    Args:
        source: a folder, a manifest, shards, a Hugging Face data set, or a listing, which is returned as it is.
        label, task, skip_bad: as for :func:`heptane.load_data`.

    Raises:
        InputError: it is one, but cannot be listed.
    """
    if isinstance(source, Listing):
        return source
    kind = images_kind(source)
    if kind == "manifest":
        from heptane.data.images.manifest import list_manifest

        return list_manifest(Path(source).expanduser(), label=label, task=task, skip_bad=skip_bad)
    if kind == "hub":
        from heptane.data.images.hub_data import list_hub_data

        return list_hub_data(os.path.expanduser(source), label=label, task=task)
    if kind == "shards":
        from heptane.data.images.shards import list_shards

        return list_shards(os.path.expanduser(source), label=label, task=task)
    if kind is None:
        return None
    for name, value in (("label", label), ("task", task)):
        if value is not None:
            raise InputError(f"{name}={value!r}: the folders are the classes; omit it for {os.fspath(source)!r}")
    return list_folder(Path(source).expanduser())


def find_images(source: Any) -> ImageList | None:
    """The images of a manifest, shards or a Hugging Face data set, labelled or not; None for another source.

    Raises:
        InputError: it is one, but cannot be read.
    """
    kind = images_kind(source)
    if kind == "manifest":
        from heptane.data.images.manifest import manifest_images

        return manifest_images(Path(source).expanduser())
    if kind == "hub":
        from heptane.data.images.hub_data import hub_images

        return hub_images(os.path.expanduser(source))
    if kind == "shards":
        from heptane.data.images.shards import index_shards

        return index_shards(os.path.expanduser(source))[0]
    return None


def images_kind(source: Any) -> str | None:
    """``folder``, ``manifest``, ``shards`` or ``hub``; None if a source is not one of images."""
    if not is_path(source) or not os.fspath(source):
        return None
    try:
        if are_shards(os.fspath(source)):
            return "shards"
        path = Path(source).expanduser()
        if is_hub_data(os.path.expanduser(source)):
            return "hub"
        if are_shards(str(path)):
            return "shards"
        if path.is_dir():
            return None if parquet_files(path) or is_text_folder(path) else "folder"
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):
        return None  # loading will report it
    if is_file:
        from heptane.data.images.manifest import path_column

        return "manifest" if path_column(path) else None
    return None
