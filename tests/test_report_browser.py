"""Reports in a real browser: no console errors, complete text, contrast, and a width that fits a phone."""

from __future__ import annotations

import functools
import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from tests.facts import fit_with_facts, race_with_facts
from tests.helpers import make_images, mlp

import heptane as hp

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = make_images(96)
    valid = data[0], data[1].roll(3)  # so that there are mistakes to show
    tricks = hp.Tricks(cyclical=hp.Cyclical(), mixup=hp.Mixup(), label_smoothing=hp.LabelSmoothing())
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    names = ["a class whose name is longer than a phone is wide, so that it has to be folded", "b", "c", "d"]
    about = {"model": {"name": "net"}, "data": {"name": "patterns <b>", "class_names": names}}
    settings = {"optimizer": sgd, "epochs": 3, "batch_size": 16, "tricks": tricks, "run_dir": folder}
    fit_with_facts(mlp(), data, valid, about=about, **settings)
    return folder / "report.html"


@pytest.fixture(scope="module")
def race_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race") / "out"
    data = make_images(96)
    tricks = hp.Tricks(cyclical=hp.Cyclical(), mixup=hp.Mixup(), label_smoothing=hp.LabelSmoothing())
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    about = {"model": {"name": "net"}, "data": {"name": "patterns <b>"}, "command": "heptane race ..."}
    arms = ["plain", "all", "all-label_smoothing", "plain+mixup"]
    settings = {"epochs": 4, "batch_size": 16, "target": 0.9, "seeds": 2, "tune": 1, "arms": arms}
    race_with_facts(mlp, data, data, optimizer=sgd, tricks=tricks, out=folder, about=about, **settings)
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
        "net on patterns &lt;b&gt;",
        *("Training images", "Accuracy per class", "Confusion matrix", "Worst mistakes", "What to try next"),
        "Tricks",
        "Label smoothing".lower(),
        "3 evaluations",
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
        "Effect of each trick",
        "all without label smoothing",
        "plain with mixup",
        "Not raced",
        "Tuning before the race",
        "heptane race ...",
        "Learning rate of all",
    ):
        assert wanted in seen, wanted
    assert answer.stdout.count("<svg") >= 3  # what each trick is worth is drawn where there is an interval


def test_a_page_with_an_error_would_be_noticed(report: Path) -> None:
    broken = report.with_name("broken.html")
    broken.write_text(report.read_text().replace("</main>", '<img src="https://example.invalid/a.png"></main>'))
    assert any("Content Security Policy" in line for line in console_lines(browse(broken, "--dump-dom")))


PROBE = """<script>
const bad = [], wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
if (wide > 0) bad.push("the page is " + wide + " pixels too wide");
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function over(colour, ground) {  // what is seen of a colour that lets a ground through
  canvas.fillStyle = `rgb(${ground})`; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function light(rgb) {
  const [r, g, b] = rgb.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
function ground(node) {
  return node ? over(getComputedStyle(node).backgroundColor, ground(node.parentElement)) : [255, 255, 255];
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let seen = 0;
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement, style = getComputedStyle(node);
  if (!walker.currentNode.data.trim() || node.closest("script, svg defs") || !node.getClientRects().length) continue;
  const under = ground(node.closest("svg")?.parentElement ?? node);
  const colour = node.closest("svg") ? style.fill : style.color;
  const [low, high] = [light(over(colour, under)), light(under)].sort((a, b) => a - b);
  const contrast = (high + .05) / (low + .05), large = parseFloat(style.fontSize) >= 24;
  seen += 1;
  if (contrast < (large ? 3 : 4.5)) bad.push(contrast.toFixed(2) + ": " + walker.currentNode.data.trim().slice(0, 40));
}
document.title = seen > 50 ? "probe: " + (bad.join("; ") || "nothing") : "probe: only " + seen + " texts";
</script>"""


@pytest.mark.parametrize("kind", ["report", "race_report"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_text_has_contrast_in_both_modes_and_nothing_overflows_390_pixels(
    kind: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    """The browser's own layout and colours, by WCAG's formula; a phone is a frame, since a window is at least 500 wide."""
    assert probed(request.getfixturevalue(kind), scheme) == ["probe: nothing"]


def test_what_cannot_be_read_or_is_too_wide_would_be_noticed(report: Path) -> None:
    broken = report.with_name("faint.html")
    faint = '<p style="color: #999999; width: 600px">faint and wide</p>'
    broken.write_text(report.read_text().replace("</header>", f"{faint}</header>"))
    (found,) = probed(broken, "light")
    assert "pixels too wide; " in found
    assert ": faint and wide" in found


def probed(report: Path, scheme: str) -> list[str]:
    page = re.sub(r"<meta http-equiv=.*?>", "", report.read_text()).replace("</body>", PROBE + "</body>")
    frame = report.with_name(f"frame-{report.parent.parent.name}-{scheme}.html")
    back = "<script>f.onload = () => document.title = f.contentDocument.title</script>"
    inside = f'<iframe id="f" style="width:390px;height:800px" srcdoc="{html.escape(page, quote=True)}"></iframe>'
    frame.write_text(f'<meta charset="utf-8">{inside}{back}')
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    return re.findall(r"<title>(probe: .*?)</title>", browse(frame, preferred, "--dump-dom").stdout)


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
