"""Files and settings from a stranger: what is done with 10,000 mutated files and 10,000 sets of flags. ``make fuzz``.

Files: checkpoints, weights (safetensors and ``.pth``), ``.npz``, IDX and images, mutated by bits, cuts, copies and extreme
numbers. Flags: from Hypothesis, each field of the settings and the tricks with fair and foul values, on a tiny data set.
Allowed is success, or one clear error; not allowed are another exception, more than 5 s, more than 1 GiB, and a folder left
half made. What failed is kept in ``tests/regressions`` and tried by the tests from then on.
"""

from __future__ import annotations

import argparse
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
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import heptane as hp
from heptane import checkpoint, storage
from heptane.assemble import assemble
from heptane.cli import main as command_line
from heptane.data.idx import read_idx
from heptane.loop import steps
from heptane.report import html
from heptane.settings import Settings
from heptane.tricks import KINDS
from results import save

MOST_SECONDS, MOST_BYTES, BATCH = 5.0, 1 << 30, 250
REGRESSIONS = Path(__file__).parents[1] / "tests" / "regressions"
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))


def run() -> Any:
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    return assemble(network(), data, optimizer=sgd, epochs=2, batch_size=4, device="cpu")


# What is made, and what reads it ------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path) -> Path:
    trained = run()
    for event in steps(trained):
        if event.step == 2:
            break
    return checkpoint.save(trained, 2, [dict.fromkeys(("epoch", "step", "train_seconds", "evaluate_seconds"), 1)], folder)


def read_checkpoint(path: Path) -> None:
    """As a run does, also where the checksums fit."""
    checkpoint.load(run(), checkpoint.read(path))


def reseal(path: Path) -> None:
    """Give a mutated checkpoint checksums that fit, as one who means harm would."""
    try:
        found = json.loads((path / "facts.json").read_bytes())
        files = {part.name: storage.checksum(part) for part in path.iterdir() if part.name != "facts.json"}
        body = {"files": files, "facts": found["facts"]}
        text = json.dumps({"sha256": storage._of_body(body), **body})
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    (path / "facts.json").write_text(text)


def make_safetensors(folder: Path) -> Path:
    save_file(dict(network().state_dict()), folder / "w.safetensors")
    return folder / "w.safetensors"


def make_pth(folder: Path) -> Path:
    torch.save(network().state_dict(), folder / "w.pth")
    return folder / "w.pth"


def make_npz(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=draw.integers(0, 255, (20, 4, 4), dtype=np.uint8), y=np.arange(20) % 3)
    return folder / "d.npz"


def make_idx(folder: Path) -> Path:
    (folder / "d.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(range(80)))
    return folder / "d.idx"


def make_image(kind: str, folder: Path) -> Path:
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for index in range(5):
            pixels = np.random.default_rng(index).integers(0, 255, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{index}.{kind}")
    return folder / "images" / "a" / f"0.{kind}"


Kind = tuple[Callable[[Path], Path], Callable[[Path], Any]]
READERS: dict[str, Kind] = {
    "checkpoint": (make_checkpoint, read_checkpoint),
    "safetensors": (make_safetensors, lambda path: hp.load_weights(network(), path)),
    "pth": (make_pth, lambda path: hp.load_weights(network(), path)),
    "npz": (make_npz, lambda path: hp.load_data(str(path))),
    "idx": (make_idx, lambda path: read_idx(path, max_bytes=1 << 24)),
    **{
        kind: (partial(make_image, kind), lambda path: hp.load_data(str(path.parents[1]), skip_bad=1))
        for kind in ("png", "jpg", "gif", "bmp", "tiff", "webp")
    },
}


# Mutations ----------------------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """``content`` with a few things wrong."""
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
    """One of the numbers that are written in digits, such as a shape in a JSON header, as another."""
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
    """It took too long."""


@contextlib.contextmanager
def limits(seconds: float = MOST_SECONDS) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Slow(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(read: Callable[[Path], Any], path: Path) -> str:
    """What reading ``path`` comes to: empty if it is as it should be."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with limits(), warnings.catch_warnings():
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
    """Mutate what was made; for a checkpoint one of its files."""
    victim = draw.choice(sorted(path.iterdir())) if path.is_dir() else path
    victim.write_bytes(mutated(victim.read_bytes(), draw))
    if path.is_dir() and draw.random() < 0.5:
        reseal(path)
    return victim


def fuzz_files(count: int, seed: int, kinds: list[str], keep: Path | None = None) -> dict[str, Any]:
    """Mutate and read ``count`` files, in processes of their own that are held to their memory."""
    failures: list[dict[str, str]] = []
    done: dict[str, int] = dict.fromkeys(kinds, 0)
    root = Path(tempfile.mkdtemp(prefix="heptane-fuzz-"))
    try:
        for start in range(0, count, BATCH):
            kind = kinds[start // BATCH % len(kinds)]
            number = min(BATCH, count - start)
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
        found = []
        try:
            sys.stderr = io.StringIO()
            torch.set_num_threads(1)
            draw = random.Random(seed)
            pristine = prepare(kind, folder)
            attempt(READERS[kind][1], pristine)  # what is imported at first use takes its time and memory here
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
            top = pristine if pristine.is_dir() else pristine.parents[1] if kind in IMAGES else pristine
            for index in range(count):
                copied = folder / f"copy{index}"
                if top.is_dir():
                    shutil.copytree(top, copied)
                    path = copied if top == pristine else copied / pristine.relative_to(top)
                else:
                    copied.mkdir()
                    path = Path(shutil.copy(top, copied))
                if kind == "checkpoint":
                    path = path.rename(copied.with_name(f"step-{index + 10:09d}"))
                    copied = path
                victim = spoil(kind, path, draw)
                wrong = attempt(READERS[kind][1], path)
                if wrong:
                    name = hashlib.sha256(victim.read_bytes()).hexdigest()[:12]
                    found.append({"kind": kind, "file": f"{kind}-{name}", "what": wrong})
                    if keep:
                        (shutil.copytree if path.is_dir() else shutil.copy)(path, keep / f"{kind}-{name}")
                shutil.rmtree(copied, ignore_errors=True)
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


IMAGES = ("png", "jpg", "gif", "bmp", "tiff", "webp")


# Flags --------------------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "none", "auto", "x", "-1", "0", "1", "2", "0.5", "1e9", "nan", "inf", "-inf", "1e400", "true", "\0", "é", "a b"]
)
FAIR: dict[str, st.SearchStrategy[str]] = {
    "epochs": st.sampled_from(["0.2", "1", "1.5", "0"]),
    "batch_size": st.integers(-1, 30).map(str),
    "optimizer": st.sampled_from(["sgd", "adam", "adamw", "lbfgs", "rmsprop", "Adagrad", "nadam", "sparseadam"]),
    "model": st.sampled_from(["mlp", "resnet", "resnet-wide", "torch.nn:Linear", "nothing.at:all", "timm:nothing"]),
    "lr": st.floats(0, 10).map(str),
    "loss": st.sampled_from(["cross_entropy", "mse", "l1", "binary_cross_entropy"]),
    "augment": st.sampled_from(["none", "flip", "crop-flip"]),
    "accumulate": st.integers(0, 5).map(str),
    "seed": st.integers(-1, 2**33).map(str),
    "clip_norm": st.floats(0, 2).map(str),
    "progressive_size": st.integers(1, 9).map(str),
    "progressive_until": st.floats(0, 1).map(str),
    "evaluate_every_epochs": st.floats(0, 2).map(str),
    "checkpoint_every": st.sampled_from(["1", "3", "1s", "5m", "0"]),
    "on_nan": st.sampled_from(["skip", "stop", "rewind"]),
    "target": st.floats(0, 1).map(str),
    "device": st.sampled_from(["cpu", "cuda:7", "meta"]),
    "compile": st.just("false"),
    "workers": st.sampled_from(["1", "0", "auto"]),
    "restarts": st.sampled_from(["0", "-1"]),
    "weights": st.sampled_from(["", "nowhere.safetensors", "/dev/null", "."]),
}


@st.composite
def flag_sets(draw: st.DrawFn) -> list[str]:
    """A command line for ``heptane train``: mostly fair, sometimes foul."""
    given_flags = ["--epochs", draw(FAIR["epochs"])]
    every = [("", field) for field in fields(Settings) if field.name not in ("data", "epochs")]
    every += [(f"{name.replace('_', '-')}.", field) for name, kind in KINDS.items() for field in fields(kind)]
    for prefix, field in draw(st.lists(st.sampled_from(every), max_size=6, unique_by=lambda e: e[0] + e[1].name)):
        name, value = field.name, None
        if name in FAIR and draw(st.integers(0, 9)):
            value = draw(FAIR[name])
        elif "bool" in str(field.type):
            value = draw(st.sampled_from(["true", "false", "maybe"]))
        elif "float" in str(field.type) and draw(st.integers(0, 4)):
            value = draw(st.floats(-0.5, 2).map(str))
        elif "int" in str(field.type) and draw(st.integers(0, 4)):
            value = draw(st.integers(-1, 12).map(str))
        given_flags += [f"--{prefix}{name.replace('_', '-')}={draw(WORDS) if value is None else value}"]
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from([*KINDS, "recommended", "none", "mixop"]), max_size=4))
        given_flags += ["--tricks", ",".join(names)]
    return given_flags


def attempt_flags(flags: list[str], folder: Path) -> str:
    """What ``heptane train`` comes to on twenty samples: empty if it is as it should be."""
    out, said, errors = folder / "out", io.StringIO(), io.StringIO()
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["train", "--data", str(folder / "d.npz"), "--out", str(out), *flags]
    try:
        with limits(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = command_line(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    except Slow as error:
        return str(error)
    except BaseException:
        return traceback.format_exc()[-1500:]
    if "Traceback" in errors.getvalue():
        return errors.getvalue()[-1500:]
    if code == 2 and out.exists():
        return f"refused, and {sorted(p.name for p in out.rglob('*'))} were left: {errors.getvalue()[-300:]}"
    if code == 2 and len([line for line in errors.getvalue().splitlines() if not line.startswith(("note:", "usage:"))]) != 1:
        return f"not one line: {errors.getvalue()[-500:]}"
    if code in (0, 3) and not (out / "result.json").exists():
        return f"exit code {code} without a result: {errors.getvalue()[-300:]}"
    return "" if code in (0, 1, 2, 3) else f"exit code {code}: {errors.getvalue()[-300:]}"


def fuzz_flags(count: int, seed: int) -> dict[str, Any]:
    """``count`` command lines."""
    failures: dict[str, dict[str, str]] = {}
    codes = 0
    html.write_report = lambda record, path: path.write_text("page")  # drawing it takes a second, and has tests of its own
    with tempfile.TemporaryDirectory(prefix="heptane-fuzz-") as name:
        folder = Path(name)
        draw = np.random.default_rng(0)
        np.savez(folder / "d.npz", x=draw.integers(0, 255, (20, 9, 9), dtype=np.uint8), y=np.arange(20) % 3)
        before = os.getcwd()
        os.chdir(folder)

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(flag_sets())
        def go(flags: list[str]) -> None:
            nonlocal codes
            codes += 1
            wrong = attempt_flags(flags, folder)
            if wrong:
                failures.setdefault(wrong[-200:], {"flags": json.dumps(flags), "what": wrong})

        go = __import__("hypothesis").seed(seed)(go)
        try:
            go()
        finally:
            os.chdir(before)
    return {"command_lines": codes, "failures": list(failures.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=11_000)
    parser.add_argument("--flags", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(READERS))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    began = time.time()
    files = fuzz_files(wanted.files, wanted.seed, wanted.kinds.split(","), REGRESSIONS)
    flags = fuzz_flags(wanted.flags, wanted.seed) if wanted.flags else {"command_lines": 0, "failures": []}
    for failure in [*files["failures"], *flags["failures"]]:
        print(json.dumps(failure, indent=1))
    content = {"files": files, "flags": flags, "seed": wanted.seed, "seconds": time.time() - began}
    save("fuzz", "what is done with mutated files and with generated flags: failures", content)
    sys.exit(bool(files["failures"] or flags["failures"]))


if __name__ == "__main__":
    main()
