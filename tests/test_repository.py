"""The files around the package: they parse, and what two of them say agrees."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import heptane as hp

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == hp.__version__
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_changelog_has_the_version_of_the_package() -> None:
    assert re.search(rf"^## {re.escape(hp.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_dependabot_reads_the_folders_that_have_pins() -> None:
    updates = {update["package-ecosystem"]: update["directory"] for update in read(GITHUB / "dependabot.yml")["updates"]}
    assert updates == {"pip": "/", "github-actions": "/"}
    assert (ROOT / "constraints.txt").exists()
    assert WORKFLOWS


def test_every_pin_is_exact_and_there_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in lines), lines
    names = [normal(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))


def test_what_development_needs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = {normal(name) for name in pins()}
    missing = {normal(re.split(r"[<>=!~\[; ]", line)[0]) for line in needed} - pinned
    assert not missing


def test_hooks_use_pinned_versions_and_ruffs_is_that_of_make_lint() -> None:
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {"ruff", "ruff-format", "check-yaml", "check-toml", "end-of-file-fixer"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        for dependency in hook["additional_dependencies"]:
            name, version = dependency.split("==")
            assert pins().get(name, version) == version


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_reads_only_and_names_targets_that_are_there(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert "@" in step.get("uses", "@")
            assert set(re.findall(r"\bmake ([\w-]+)", step.get("run", ""))) <= set(targets)


def test_only_the_upload_of_a_release_may_identify_itself_and_no_secret_is_used() -> None:
    jobs = {(path.stem, name): job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}
    assert {where for where, job in jobs.items() if "permissions" in job} == {("release", "publish")}
    assert jobs["release", "publish"]["permissions"] == {"id-token": "write"}
    assert jobs["release", "publish"]["environment"] == "release"
    assert not any("secrets." in path.read_text() for path in WORKFLOWS)


def test_ci_tests_every_supported_python() -> None:
    versions = read(GITHUB / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert set(listed) <= set(versions)
    assert project["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*_*.yml")), ids=lambda path: path.stem)
def test_an_issue_template_has_what_a_form_needs(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    for field in form["body"]:
        assert {"type", "attributes"} <= field.keys()
        assert field["attributes"]["label"]
