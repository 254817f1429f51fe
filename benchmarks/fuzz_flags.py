"""Random flags: valid and invalid values for each field of the settings and tricks, on a tiny data set."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import traceback
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from fuzz_files import MOST_SECONDS, Slow, limits
from heptane.cli import main as command_line
from heptane.report import html
from heptane.session.settings import Settings
from heptane.tricks import KINDS

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
    "augment": st.sampled_from(["none", "flip", "crop-flip", "warp", "crop", "trivial"]),
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

PLAN = ("data", "images", "model", "batch", "length", "rate", "augment", "tricks", "time")
BEFORE = ("note:", "usage:", *(f"{name:9}" for name in PLAN))  # lines that may precede an error
SLOW = ("compile", "workers")  # a compiler and processes take their seconds: only their fair values are tried


@st.composite
def flag_sets(draw: st.DrawFn) -> list[str]:
    """Draw a command line for ``heptane train``: mostly valid, sometimes invalid values."""
    given_flags = ["--epochs", draw(FAIR["epochs"])]
    every = [("", field) for field in fields(Settings) if field.name not in ("data", "epochs")]
    every += [(f"{name.replace('_', '-')}.", field) for name, kind in KINDS.items() for field in fields(kind)]
    for prefix, field in draw(st.lists(st.sampled_from(every), max_size=6, unique_by=lambda e: e[0] + e[1].name)):
        name, value = field.name, None
        if name in FAIR and (name in SLOW or draw(st.integers(0, 9))):
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


def attempt_flags(flags: list[str], folder: Path, seconds: float = MOST_SECONDS) -> str:
    """Run ``heptane train`` on twenty samples; returns what went wrong, or an empty string."""
    out, said, errors = folder / "out", io.StringIO(), io.StringIO()
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["train", "--data", str(folder / "d.npz"), "--out", str(out), *flags]
    try:
        with (
            limits(seconds),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
        ):
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
    if code == 2 and len([line for line in errors.getvalue().splitlines() if not line.startswith(BEFORE)]) != 1:
        return f"not one line: {errors.getvalue()[-500:]}"
    if code in (0, 3) and not (out / "result.json").exists():
        return f"exit code {code} without a result: {errors.getvalue()[-300:]}"
    return "" if code in (0, 1, 2, 3) else f"exit code {code}: {errors.getvalue()[-300:]}"


def fuzz_flags(count: int, seed: int) -> dict[str, Any]:
    """Try ``count`` command lines."""
    failures: dict[str, dict[str, str]] = {}
    codes = 0
    # Drawing the page takes a second, and has tests of its own.
    html.write_report = lambda record, path, pictures=None: path.write_text("page")
    with tempfile.TemporaryDirectory(prefix="heptane-fuzz-") as name:
        folder = Path(name)
        draw = np.random.default_rng(0)
        np.savez(folder / "d.npz", x=draw.integers(0, 255, (20, 9, 9), dtype=np.uint8), y=np.arange(20) % 3)
        before = os.getcwd()
        os.chdir(folder)
        attempt_flags(["--epochs", "1"], folder, seconds=600)  # what is imported at first use takes its time here

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(flag_sets())
        def go(flags: list[str]) -> None:
            nonlocal codes
            codes += 1
            wrong = attempt_flags(flags, folder)
            if wrong:
                failures.setdefault(wrong[-200:], {"flags": json.dumps(flags), "what": wrong})

        try:
            go()
        finally:
            os.chdir(before)
    return {"command_lines": codes, "failures": list(failures.values())}
