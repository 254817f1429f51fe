"""Download Hugging Face models into the library's cache, or read them from a folder; no code of theirs is run."""

from __future__ import annotations

import os
from pathlib import Path

from heptane.base.errors import InputError, one_line

SCHEME = "hf:"
CONFIG = ["config.json"]
SAFE = ["*.safetensors", "*.json"]
PICKLES = ["*.bin", "*.bin.index.json"]


def find(spec: str, label: str, *patterns: list[str]) -> Path:
    """The folder or file that ``hf:NAME[@REVISION]`` or ``hf:PATH`` refers to.

    An existing path takes precedence. Otherwise ``huggingface_hub`` looks in its cache and downloads what is missing, so
    ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` apply.

    Args:
        spec: with the prefix ``hf:``.
        label: name of the source in messages.
        patterns: lists of file patterns to download; the next is used only if no file matched the first pattern of the one
            before.

    Raises:
        InputError: no such folder, model or revision; no network and not cached; or the library is missing.
    """
    name = spec.removeprefix(SCHEME)
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):
        return path
    if not name or name.startswith((".", "~")) or path.is_absolute():
        raise InputError(f"{label}: no such folder; give hf:FOLDER or hf:ORGANISATION/NAME")
    repository, _, revision = name.partition("@")
    for wanted in patterns:
        folder = _fetch(repository, revision or None, wanted, label)
        if next(folder.glob(wanted[0]), None):
            break
    return folder


def _fetch(repository: str, revision: str | None, wanted: list[str], label: str) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise InputError(f'{label} needs huggingface_hub: pip install "heptane[hf]"') from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except errors.HFValidationError:
        raise InputError(f"{label}: no such folder, and not a name like ORGANISATION/NAME[@REVISION]") from None
    except errors.LocalEntryNotFoundError as error:
        remedy = "load it once online without HF_HUB_OFFLINE, or give its folder as hf:FOLDER"
        raise InputError(f"{label} is not in the cache, and the hub cannot be reached; {remedy}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        what = "revision" if isinstance(error, errors.RevisionNotFoundError) else "model, or it is not public"
        raise InputError(f"{label}: the hub has no such {what}; check the name, or set HF_TOKEN") from error
    except Exception as error:
        raise InputError(f"{label} could not be downloaded ({one_line(error)}); try again, or give its folder") from error
