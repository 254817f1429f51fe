"""The docs: their code runs, their commands parse, their generated parts are up to date."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
from tests.workers import launch

import heptane as hp
from heptane.cli.flags import make_parser
from heptane.tricks import KINDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
KERNELS = {
    "mixup_batch",
    "smooth_labels",
    "soft_cross_entropy",
    "one_cycle",
    "triangular",
    "warmup",
    "scale_lr",
    "precision",
}
KERNELS |= {"load_weights", "freeze", "param_groups", "train_mode"}


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("page", "code"), [(p.name, c) for p in PAGES for c in blocks(p, "python")])
def test_the_code_on_a_page_runs(
    page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_the_readme_has_code_and_commands() -> None:
    assert len(blocks(ROOT / "README.md", "python")) >= 2
    assert len(commands()) >= 5


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "") for line in block.splitlines()]
    return [line for line in lines if line.startswith("heptane ")]


@pytest.mark.parametrize("command", commands())
def test_a_command_on_a_page_is_understood(command: str) -> None:
    words = shlex.split(command)
    assert make_parser().parse(words[1:]).command == words[2 if words[1] == "data" else 1]


def printed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as found:
        exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    return found.getvalue()


UNDER_A_LAUNCHER = {
    "scaling": next(code for code in blocks(ROOT / "docs" / "scaling.md", "python") if "torchrun" in code),
    "example": (ROOT / "examples" / "data_parallel.py").read_text(),
}


@pytest.mark.parametrize("page", UNDER_A_LAUNCHER)
def test_a_program_that_is_said_to_run_under_torchrun_does(page: str) -> None:
    together = ast.literal_eval(launch(printed, {"code": UNDER_A_LAUNCHER[page]}, 2))
    alone = ast.literal_eval(printed(UNDER_A_LAUNCHER[page].replace("workers=2", "workers=1")))
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_at_most_15_lines(path: Path) -> None:
    assert sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 15
    runpy.run_path(str(path), run_name="__main__")


def test_every_kernel_has_an_example() -> None:
    assert {path.stem for path in EXAMPLES} >= KERNELS
    assert set(hp.__all__) >= KERNELS


def test_generated_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))  # as if it ran from there: it imports files beside it
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    pages = build.pages()
    assert len(pages) == len(KINDS) + 5 + bool(build.papers()) + bool(build.peers()) + bool(build.gpu())
    for path, content in pages.items():
        assert path.read_text() == content, f"{path.name} is out of date: python docs/build.py"


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *sorted((ROOT / "docs" / "tricks").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_design_names_files_and_rooms_that_are_there() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    package = ROOT / "src" / "heptane"
    there = {path.name for path in [*package.rglob("*.py"), *(ROOT / "tests").glob("*.py")]}
    assert set(re.findall(r"\w+\.py\b", page)) <= there
    rooms = re.findall(r"^\| `([\w.]+)/?` \|", page, re.MULTILINE)
    found = {path.name for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(rooms) == found - {"__pycache__", "__init__.py", "__main__.py"}
    order = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [room.removesuffix(".py") for room in rooms] == [layer.removeprefix("heptane.") for layer in order]


def test_public_names_are_sorted_documented_and_there() -> None:
    assert hp.__all__ == sorted(hp.__all__)
    for name in hp.__all__:
        assert getattr(hp, name).__doc__, name


def test_every_trap_has_a_number_and_names_tests_that_are_there() -> None:
    page = (ROOT / "docs" / "traps.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", page, flags=re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    for _, where in rows:
        for name in re.findall(r"tests/[\w/.]+", where):
            assert (ROOT / name).exists(), name
