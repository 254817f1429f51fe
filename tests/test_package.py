"""The installed wheel works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import heptane

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("heptane-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "heptane/py.typed" in names
    assert "heptane/report/run.html.j2" in names
    assert "heptane/cli/measured.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def test_an_installed_wheel_trains(installed: Path, tmp_path: Path) -> None:
    code = "import heptane, sys; print(heptane.__file__); from heptane.cli import main; sys.exit(main(sys.argv[1:]))"
    np.savez(
        tmp_path / "d.npz", x=np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8), y=np.arange(60) % 3
    )
    flags = ["train", "--data", "d.npz", "--model", "mlp", "--epochs", "1", "--out", str(tmp_path / "run")]
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert (tmp_path / "run" / "report.html").exists()


def test_the_command_is_installed_and_the_version_agrees(installed: Path) -> None:
    assert (installed / "bin" / "heptane").exists()
    assert (installed / f"heptane-{heptane.__version__}.dist-info").is_dir()


def test_importing_heptane_does_not_import_torch_or_numpy() -> None:
    heavy = ("torch._C", "numpy._core", "matplotlib", "PIL")
    code = f"import heptane, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_heptane_first_leaves_torch_itself() -> None:
    code = "import heptane, torch; torch.zeros(1); from heptane.base.lazy import torch as lazy; print(lazy is torch)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_module_that_deletes_its_own_names_as_it_is_executed_can_wait_too(tmp_path: Path) -> None:
    # as PyTorch does, which Python 3.12's own lazy loader does not survive
    source = "import sys\nfor name in ['a']:\n    a = 1\n    delattr(sys.modules[__name__], name)\nb = 2\n"
    (tmp_path / "torch.py").write_text(source)
    code = (
        "from heptane.base.lazy import torch as early; print(early.b, early.b); "
        "from heptane.base.lazy import torch; print(torch.b)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.split() == ["2", "2", "2"]
