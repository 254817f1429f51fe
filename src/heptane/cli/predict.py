"""``heptane predict``: predict new files with a trained model, as CSV or JSON."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from heptane.base.errors import InputError
from heptane.base.progress import working
from heptane.data.images.sources import images_kind
from heptane.data.tables.read_table import is_table
from heptane.session.finished.load_run import LoadedRun, load_run
from heptane.session.finished.predictions import Prediction
from heptane.session.run_folder import clean

ENDINGS = (".csv", ".json")
KINDS = {  # per kind of a run's data: accepted inputs, and their description
    "images": (("image", "folder", "arrays"), "images, folders, manifests or shards of them"),
    "table": (("table",), "a .csv, .tsv or .parquet file"),
    "text": (("table", "folder", "text"), "a table with the text, .txt files, or folders of them"),
    "arrays": (("arrays",), "an .npz file"),
}


def predict(flags: argparse.Namespace) -> int:
    """Predict; returns the exit code."""
    out = None if flags.out is None else _checked(Path(flags.out), flags.force)
    run = load_run(flags.run)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    if run.preprocess is None:
        raise InputError(
            f"{run.folder} does not record its preprocessing, since heptane did not load its data: predict from Python with "
            "hp.load_run(...).predict(inputs)"
        )
    bad: list[str] = []
    found = _each(run, flags, bad)
    if out is None:
        _write(found, sys.stdout, "csv", run, flags.top)
    else:
        aside = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with open(aside, "w", encoding="utf-8", newline="") as file:
                count = _write(found, file, out.suffix[1:].lower(), run, flags.top)
            aside.replace(out)
            print(f"{out}: {count:,} prediction{'s' * (count != 1)}", file=sys.stderr)
        finally:
            aside.unlink(missing_ok=True)
    if bad:
        print(f"note: skipped {len(bad)} unreadable file(s)", file=sys.stderr)
    return 0


def _checked(out: Path, force: bool) -> Path:
    if out.suffix.lower() not in ENDINGS:
        raise InputError(f"--out {out}: the file must end in {' or '.join(ENDINGS)}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist")
    if out.exists() and not force:
        raise InputError(f"--out {out} exists: choose another file, or overwrite it with --force")
    return out


def _each(run: LoadedRun, flags: argparse.Namespace, bad: list[str]) -> Iterator[Prediction]:
    def skip(what: str) -> None:
        bad.append(what)
        print(f"note: skipped: {' '.join(what.split())}", file=sys.stderr)

    images = run.preprocess is not None and run.preprocess.kind == "images"
    for name in flags.files:
        if images and images_kind(name) is not None:
            continue
        if not Path(name).expanduser().exists():
            raise InputError(f"{name}: no such file or folder")
        if run.preprocess is not None:
            _check_kind(run, Path(name).expanduser())
    for source in [list(flags.files)] if images else flags.files:
        several = not images and len(flags.files) > 1
        stream = run.stream(source, batch_size=flags.batch_size, top=flags.top, skip_bad=skip if flags.skip_bad else None)
        for prediction in stream:
            yield Prediction(**{**vars(prediction), "name": f"{source}:{prediction.name}"}) if several else prediction


def _check_kind(run: LoadedRun, path: Path) -> None:
    """Refuse a file of another kind than the training data."""
    assert run.preprocess is not None
    by_suffix = {".npz": "arrays", ".txt": "text"}
    given = "table" if is_table(path) else "folder" if path.is_dir() else by_suffix.get(path.suffix.lower(), "image")
    allowed, wanted = KINDS[run.preprocess.kind]
    if given not in allowed:
        raise InputError(f"{path}: {run.folder} was trained on {run.preprocess.kind} data: pass {wanted}")


def _write(found: Iterable[Prediction], file: IO[str], kind: str, run: LoadedRun, top: int | None) -> int:
    """Write the predictions, with a progress display; returns how many there are."""
    count, writer = 0, csv.writer(file, lineterminator="\n")
    file.write("[" if kind == "json" else "")
    with working("predicting") as advance:
        for prediction in found:
            advance()
            if kind == "json":
                file.write((",\n " if count else "\n ") + json.dumps(clean(prediction.record()), ensure_ascii=False))
            else:
                row = _row(prediction, run, top)
                writer.writerows([row.values()] if count else [row, row.values()])
            count += 1
    file.write("\n]\n" if kind == "json" else "")
    return count


def _row(prediction: Prediction, run: LoadedRun, top: int | None) -> dict[str, Any]:
    """A row of the CSV, by column."""
    row: dict[str, Any] = {"name": prediction.name}
    if prediction.value is not None:
        values = prediction.value if isinstance(prediction.value, tuple) else (prediction.value,)
        return row | {f"value_{i + 1}" if len(values) > 1 else "value": f"{v:.6g}" for i, v in enumerate(values)}
    if run.outputs == "labels" and len(run.classes) > 2:
        row["classes"] = " ".join(prediction.labels) if top is None else None
        shown = {name: prediction.probabilities.get(name) for name in run.classes}
        return {k: v for k, v in row.items() if v is not None} | {
            f"probability_{name}": "" if value is None else f"{value:.6g}" for name, value in shown.items()
        }
    row |= {"class": prediction.label or "", "probability": _number(prediction.probability)}
    others = list(prediction.probabilities.items())[1:] if top else []
    for place in range(2, (top or 1) + 1):
        name, value = others[place - 2] if place - 2 < len(others) else ("", None)
        row |= {f"class_{place}": name, f"probability_{place}": _number(value)}
    return row


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
