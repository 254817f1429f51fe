"""Mutated files, read in a process with limited time and memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import heptane as hp
from fuzz_readers import IMAGES, READERS, reseal
from heptane.base import storage

MOST_SECONDS, MOST_BYTES, BATCH = 5.0, 1 << 30, 250
NUMBERS = [0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Mutate ``content`` in a few places."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, what = draw.randrange(len(made) + 1), draw.randrange(8)
        end = min(len(made), at + draw.choice((1, 2, 8, 64, 4096)))
        if what == 0 and made:
            made[at % len(made)] ^= 1 << draw.randrange(8)
        elif what == 1:
            del made[at:end]
        elif what == 2:
            made[at:at] = draw.randbytes(draw.choice((1, 8, 300)))
        elif what == 3:
            made = made[:at]
        elif what == 4:
            made[at:at] = made[draw.randrange(len(made) + 1) :][: end - at]
        elif what == 5:
            number, width = draw.choice(NUMBERS), draw.choice((1, 2, 4, 8))
            made[at : at + width] = (number % 256**width).to_bytes(width, draw.choice(("little", "big")))
        elif what == 6:
            made = bytearray(number_in_text(bytes(made), draw))
        else:
            made[at:end] = bytes(end - at)
    return bytes(made)


def number_in_text(content: bytes, draw: random.Random) -> bytes:
    """Replace a number written in digits, such as a shape in a JSON header."""
    digits = [i for i, byte in enumerate(content[:4000]) if chr(byte).isdigit()]
    if not digits:
        return content
    at = draw.choice(digits)
    return (
        content[:at]
        + draw.choice((b"-1", b"0", b"99999999999", b"1e999", b'"x"', b"null", b"[]", b"[[[", b"NaN"))
        + content[at + 1 :]
    )


class Slow(BaseException):
    """The reader exceeded its time limit."""


@contextlib.contextmanager
def limits(seconds: float) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Slow(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(read: Callable[[Path], Any], path: Path, seconds: float = MOST_SECONDS) -> str:
    """Read ``path``; returns what went wrong, or an empty string."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with limits(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except (hp.InputError, storage.Damaged) as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            return f"a message of {len(str(error))} characters, or several lines"
    except Slow as error:
        return str(error)
    except BaseException:
        return traceback.format_exc()[-1500:]
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    return f"{grown >> 20} MiB of memory" if grown > MOST_BYTES else ""


def prepare(kind: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    return READERS[kind][0](folder)


def spoil(kind: str, path: Path, draw: random.Random) -> Path:
    """Mutate the file; for a checkpoint, one of its files."""
    victim = draw.choice(sorted(path.iterdir())) if path.is_dir() else path
    victim.write_bytes(mutated(victim.read_bytes(), draw))
    if path.is_dir() and draw.random() < 0.5:
        reseal(path)
    return victim


def fuzz_files(count: int, seed: int, kinds: list[str], keep: Path | None = None, batch: int = BATCH) -> dict[str, Any]:
    """Mutate and read ``count`` files, ``batch`` of one kind at a time, in a process with limited memory."""
    failures: list[dict[str, str]] = []
    done: dict[str, int] = dict.fromkeys(kinds, 0)
    root = Path(tempfile.mkdtemp(prefix="heptane-fuzz-"))
    try:
        for start in range(0, count, batch):
            kind = kinds[start // batch % len(kinds)]
            number = min(batch, count - start)
            failures += _in_a_child(kind, root / str(start), number, f"{seed}-{start}", keep)
            done[kind] += number
            shutil.rmtree(root / str(start), ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {"files": count, "by_kind": done, "failures": failures}


def _in_a_child(kind: str, folder: Path, count: int, seed: str, keep: Path | None) -> list[dict[str, str]]:
    answer = folder.with_suffix(".json")
    pid = os.fork()
    if pid == 0:
        sys.stderr, found = io.StringIO(), []
        try:
            for failure in _failures(kind, folder, count, random.Random(seed), keep):
                found.append(failure)
        except BaseException:
            found.append({"kind": kind, "file": "", "what": traceback.format_exc()[-1500:]})
        answer.write_text(json.dumps(found))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status or not answer.exists():
        return [{"kind": kind, "file": "", "what": f"the process ended with status {status}"}]
    found = json.loads(answer.read_text())
    answer.unlink()
    return found


def _failures(kind: str, folder: Path, count: int, draw: random.Random, keep: Path | None) -> Iterator[dict[str, str]]:
    torch.set_num_threads(1)
    pristine = prepare(kind, folder)
    attempt(READERS[kind][1], pristine, seconds=600)  # what is imported at first use takes its time and memory here
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    for index in range(count):
        room, path = _copied(kind, pristine, folder, index)
        victim = spoil(kind, path, draw)
        wrong = attempt(READERS[kind][1], path)
        if wrong:
            name = f"{kind}-{hashlib.sha256(victim.read_bytes()).hexdigest()[:12]}{path.suffix}"
            if keep:
                (shutil.copytree if path.is_dir() else shutil.copy)(path, keep / name)
            yield {"kind": kind, "file": name, "what": wrong}
        shutil.rmtree(room, ignore_errors=True)


def _copied(kind: str, pristine: Path, folder: Path, index: int) -> tuple[Path, Path]:
    """Copy the original to its own folder; returns the path that the reader gets."""
    room = folder / f"copy{index}"
    if kind == "checkpoint":
        room = folder / f"step-{index + 10:09d}"
        return room, Path(shutil.copytree(pristine, room))
    if kind in IMAGES:
        top = pristine.parents[1]
        return room, Path(shutil.copytree(top, room)) / pristine.relative_to(top)
    room.mkdir()
    return room, Path(shutil.copy(pristine, room))
