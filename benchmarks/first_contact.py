"""Accuracy and wall time of ``heptane train --data ...`` without any other flag, on a newcomer's kind of data.

Four runs of the real command, each in its own process, with imports and report included: 300 rendered letters of 5
classes with different sizes, fonts, colours and modes, with and without pretrained weights; the breast-cancer table
as CSV; and some hundred pictures of 10 classes from the Debian package ``openclipart-png``, if it is installed. A
seed draws letters, fonts and pictures. The result is ``results/first_contact.json``.

``python benchmarks/first_contact.py [--seed N] [--only letters,letters-scratch,table,pictures]``
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from results import save

PICTURES = Path("/usr/share/openclipart/png")
GROUPS = (
    "food/fruit",
    "recreation/music",
    "animals/mammals",
    "transportation/roadsigns",
    "recreation/sports",
    "food/desserts",
    "computer/hardware",
    "transportation/vehicles",
    "animals/bugs",
    "people",
)
MAX_BYTES = 2_000_000  # a few are drawn at hundreds of millions of pixels, which heptane refuses
LETTERS, PER_CLASS, MOST_PICTURES = "BFMTY", 60, 75
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
GOALS = {
    "letters": (0.95, 90.0),
    "letters-scratch": (0.90, 90.0),
    "table": (0.95, 60.0),
    "pictures": (0.80, 60.0),
}


def fonts() -> list[Any]:
    """Fonts of this machine, else Pillow's own."""
    found = sorted(Path("/usr/share/fonts").rglob("*.ttf")) if Path("/usr/share/fonts").is_dir() else []
    text = [str(path) for path in found if not any(word in path.name for word in ("Math", "Symbol", "Dingbat", "Emoji"))]
    return text or [None]


def letter(text: str, draw: random.Random, choices: list[Any]) -> Image.Image:
    """Draw a letter with random font, size, position, colour and mode."""
    height = draw.randint(24, 110)
    width = round(height * draw.uniform(0.8, 1.3))
    name, size = draw.choice(choices), round(height * draw.uniform(0.45, 0.8))
    font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    dark, light = draw.randint(0, 90), draw.randint(160, 255)
    ink, ground = (dark, light) if draw.random() < 0.7 else (light, dark)
    tint = [draw.randint(-20, 20) for _ in range(3)]
    image = Image.new("RGB", (width, height), tuple(max(0, min(255, ground + t)) for t in tint))
    left, top, right, bottom = font.getbbox(text)
    room = max(0.0, width - (right - left)), max(0.0, height - (bottom - top))
    place = (draw.uniform(0, room[0]) - left, draw.uniform(0, room[1]) - top)
    ImageDraw.Draw(image).text(place, text, fill=(ink, ink, ink), font=font)
    image = image.rotate(draw.uniform(-12, 12), fillcolor=image.getpixel((0, 0)), resample=Image.Resampling.BILINEAR)
    mode = draw.choice(MODES)
    if mode == "I;16":
        return Image.frombytes("I;16", image.size, b"".join(bytes((0, v)) for v in image.convert("L").tobytes()))
    return image.convert(mode)


def make_letters(root: Path, seed: int) -> None:
    """Draw a folder of letters per class."""
    draw, choices = random.Random(seed), fonts()
    for text in LETTERS:
        (root / text).mkdir(parents=True)
        for index in range(PER_CLASS):
            letter(text, draw, choices).save(root / text / f"{index}.png")


def make_table(root: Path, seed: int) -> None:
    """Write the breast-cancer table, with words as labels."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    rows = [[*map(float, x), str(table.target_names[y])] for x, y in zip(table.data, table.target, strict=True)]
    random.Random(seed).shuffle(rows)
    root.mkdir(parents=True)
    with (root / "cancer.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*table.feature_names, "diagnosis"])
        writer.writerows(rows)


def make_pictures(root: Path, seed: int) -> None:
    """Collect pictures of ten classes, with a maximum per class."""
    draw = random.Random(seed)
    for group in GROUPS:
        files = [file for file in sorted((PICTURES / group).glob("*.png")) if file.stat().st_size < MAX_BYTES]
        (root / Path(group).name).mkdir(parents=True)
        for file in draw.sample(files, min(MOST_PICTURES, len(files))):
            shutil.copy(file, root / Path(group).name / file.name)


CASES: dict[str, tuple[Callable[[Path, int], None], list[str]]] = {
    "letters": (make_letters, []),
    "letters-scratch": (make_letters, ["--no-transfer"]),
    "table": (make_table, ["--label", "diagnosis"]),
    "pictures": (make_pictures, []),
}


def run(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Make the data, run the command and read its results."""
    make, flags = CASES[name]
    data = folder / name
    make(data, seed)
    shown = ["heptane", "train", "--data", "cancer.csv" if name == "table" else name, *flags]
    command = [sys.executable, "-m", "heptane.cli", *shown[1:], "--out", str(folder / f"{name}-run"), "--seed", str(seed)]
    command[5] = str(data / "cancer.csv" if name == "table" else data)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(shown)} ended with {done.returncode}: {done.stderr[-2000:]}")
    record = json.loads((folder / f"{name}-run" / "result.json").read_text())
    accuracy, limit = GOALS[name]
    found = {key: value for key, value in record["metrics"].items() if key.endswith("accuracy")}
    print(f"{name:16} {found} in {wall:.1f} s (goals: {accuracy:.0%}, {limit:.0f} s)", flush=True)
    return {
        "command": " ".join(shown),
        "samples": {key: value for key, value in record["data"].items() if key.startswith("num_")},
        "seconds": {"wall": wall, **{key: record["seconds"][key] for key in ("train", "cpu")}},
        "metrics": found,
        "plan": [line for line in done.stderr.splitlines() if line.split(" ")[0] in ("images", "model", "batch", "length")],
        "goal": {"accuracy": accuracy, "seconds": limit},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(CASES))
    flags = parser.parse_args()
    names = [name for name in flags.only.split(",") if name != "pictures" or PICTURES.is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run(name, Path(folder), flags.seed) for name in names}
    save("first_contact", "what does a newcomer get without any flag?", {"seeds": [flags.seed], "runs": runs})


if __name__ == "__main__":
    main()
