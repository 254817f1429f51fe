"""What a result records about the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import heptane
from heptane.base import environment

KEYS = {
    *("python", "torch", "heptane", "platform", "cpu", "cores", "cores_usable", "threads", "memory_gib", "gpus"),
    *("cpu_flags", "load_average", "governor", "git_commit", "git_dirty"),
}


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True, env=clean).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_fact_is_there_and_is_json() -> None:
    found = environment.describe()
    assert set(found) == KEYS
    assert json.loads(json.dumps(found)) == found


def test_facts_are_this_machines() -> None:
    found = environment.describe()
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["heptane"] == heptane.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= found["cores_usable"] >= 1
    assert found["memory_gib"] > 0
    assert len(found["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_commit_and_whether_files_differ_from_it(repository: Path) -> None:
    found = environment.describe()
    assert found["git_commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert found["git_dirty"] is False
    (repository / "new.txt").write_text("untracked")
    assert environment.describe()["git_dirty"] is False
    (repository / "a.txt").write_text("two")
    assert environment.describe()["git_dirty"] is True


def test_a_subfolder_and_a_branch_of_any_name_tell_the_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(repository, "checkout", "-q", "-b", "zweig-ü")
    (repository / "sub").mkdir()
    monkeypatch.chdir(repository / "sub")
    monkeypatch.setenv("LC_ALL", "C")
    assert environment.describe()["git_commit"] == git(repository, "rev-parse", "HEAD").strip()


def test_a_repository_without_a_commit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    monkeypatch.chdir(tmp_path)
    found = environment.describe()
    assert (found["git_commit"], found["git_dirty"]) == (None, None)


def test_no_repository_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.describe()["git_commit"] is None


def test_looking_runs_no_program_that_a_repository_names(repository: Path) -> None:
    hook = repository / "monitor.sh"
    hook.write_text(f"#!/bin/sh\ntouch {repository / 'ran'}\n")
    hook.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(hook))
    assert environment.describe()["git_commit"] is not None
    assert not (repository / "ran").exists()


def test_without_git_and_without_proc_nothing_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment, "_GOVERNOR", tmp_path / "governor")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = environment.describe()
    assert (found["git_commit"], found["cpu_flags"], found["governor"]) == (None, None, None)
    assert found["cores_usable"] == os.cpu_count()


def test_cpu_flags_and_model_are_read_from_the_first_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "processor\t: 0\nmodel name\t: Some CPU @ 2: GHz\nflags\t\t: fpu avx2 avx512f amx_bf16\n"
    page += "\nprocessor : 1\nflags : fpu\n"
    (tmp_path / "cpuinfo").write_text(page)
    (tmp_path / "governor").write_text("powersave\n")
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment, "_GOVERNOR", tmp_path / "governor")
    found = environment.describe()
    assert found["cpu"] == "Some CPU @ 2: GHz"
    assert found["cpu_flags"] == {"avx2": True, "avx512": True, "avx512_bf16": False, "amx": True}
    assert found["governor"] == "powersave"


def test_arm_has_no_model_name_and_no_such_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    found = environment.describe()
    assert set(found["cpu_flags"].values()) == {False}
    assert found["cpu"] == (platform.processor() or platform.machine() or None)


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert environment.describe()["gpus"] == ["GPU 0", "GPU 1"]


def test_pytorch_is_not_imported_for_it() -> None:
    code = """
import sys
from heptane.base.environment import describe
found = describe()
assert "torch._C" not in sys.modules
print(found["threads"], found["gpus"], found["torch"] is not None)
"""
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.split() == ["None", "[]", "True"]
