"""A real run's report in a real browser: no console error, the text is there, nothing is wider than a phone."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from tests.conftest import make_images, mlp

import heptane as hp

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = make_images(96)
    tricks = hp.Tricks(cyclical=hp.Cyclical(), mixup=hp.Mixup(), label_smoothing=hp.LabelSmoothing())
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    about = {"model": {"name": "net"}, "data": {"name": "patterns <b>"}}
    hp.fit(mlp(), data, data, optimizer=sgd, epochs=3, batch_size=16, tricks=tricks, run_dir=folder, about=about)
    return folder / "report.html"


@pytest.fixture(scope="module")
def race_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race") / "out"
    data = make_images(96)
    tricks = hp.Tricks(cyclical=hp.Cyclical(), mixup=hp.Mixup(), label_smoothing=hp.LabelSmoothing())
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    about = {"model": {"name": "net"}, "data": {"name": "patterns <b>"}, "command": "heptane race ..."}
    settings = {"epochs": 4, "batch_size": 16, "target": 0.9, "seeds": 2, "tune": 1}
    hp.race(mlp, data, data, optimizer=sgd, tricks=tricks, out=folder, about=about, **settings)
    return folder / "report.html"


def browse(page: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    with tempfile.TemporaryDirectory(prefix="heptane-browser-", ignore_cleanup_errors=True) as profile:
        command = [BROWSER, *quiet, f"--user-data-dir={profile}", "--enable-logging=stderr", *words, page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def console_lines(answer: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in answer.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_has_its_text_and_pictures_and_no_console_error(report: Path) -> None:
    answer = browse(report, "--dump-dom")
    assert console_lines(answer) == []
    seen = re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", answer.stdout, flags=re.DOTALL))
    for wanted in (
        "net reached",
        "patterns &lt;b&gt;",
        "The seven tricks",
        "Label smoothing".lower(),
        "3 recorded",
        "Command",
    ):
        assert wanted in seen, wanted
    assert answer.stdout.count("<svg") == 4


def test_the_page_of_a_race_has_its_text_and_pictures_and_no_console_error(race_report: Path) -> None:
    answer = browse(race_report, "--dump-dom")
    assert console_lines(answer) == []
    seen = re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", answer.stdout, flags=re.DOTALL))
    for wanted in (
        "90.0%",
        "patterns &lt;b&gt;",
        "What each trick is worth",
        "all without label smoothing",
        "plain with mixup",
        "not applicable here",
        "a weak interval",
        "Tuned before the race",
        "heptane race ...",
        "Learning rate of all",
    ):
        assert wanted in seen, wanted
    assert answer.stdout.count("<svg") == 4


def test_a_page_with_an_error_would_be_noticed(report: Path) -> None:
    broken = report.with_name("broken.html")
    broken.write_text(report.read_text().replace("</main>", '<img src="https://example.invalid/a.png"></main>'))
    assert any("Content Security Policy" in line for line in console_lines(browse(broken, "--dump-dom")))


@pytest.mark.parametrize("kind", ["report", "race_report"])
@pytest.mark.parametrize(("width", "height", "scheme"), [(1200, 5000, "dark"), (390, 8000, "light")])
def test_it_is_drawn_in_light_and_dark_and_fits_a_phone(
    kind: str, width: int, height: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    image = pytest.importorskip("PIL.Image")
    report = request.getfixturevalue(kind)
    shot = report.with_name(f"{width}-{scheme}.png")
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    browse(report, f"--window-size={width},{height}", preferred, f"--screenshot={shot}")
    with image.open(shot) as picture:
        pixels = picture.convert("L")
        assert pixels.width == width
        corner = pixels.getpixel((2, 2))
        assert corner < 40 if scheme == "dark" else corner > 220
        low, high = pixels.getextrema()
        assert high - low > 150, "there is text that stands out"
        right = pixels.crop((width - 8, 0, width, pixels.height))
        assert right.getextrema() == (corner, corner), "nothing reaches beyond the margin"
