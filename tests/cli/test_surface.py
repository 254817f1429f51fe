"""The command line itself: version, short and full help, completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import heptane
from heptane.cli import main
from heptane.cli.flags import make_parser
from heptane.cli.parser import RACE, TRAIN, Parser
from heptane.session.settings import AUGMENTS


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_python_m_heptane_is_the_command_and_says_its_version_without_torch() -> None:
    code = "import sys, runpy; sys.argv = ['heptane', '--version']\ntry: runpy.run_module('heptane', run_name='__main__')\n"
    code += "finally: print([name for name in ('torch._C', 'numpy._core', 'rich', 'shtab') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"heptane {heptane.__version__}", "[]"]


def command(name: str) -> Parser:
    return make_parser()._subparsers._group_actions[0].choices[name]  # type: ignore[union-attr, index, no-any-return]


@pytest.mark.parametrize(("name", "everyday"), [("train", TRAIN), ("race", RACE)])
def test_help_has_about_fifteen_flags_and_help_all_has_all(
    name: str, everyday: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    there = set(command(name)._option_string_actions) - {"-h", "--help", "--help-all"}
    short, full = printed(capsys, name, "--help"), printed(capsys, name, "--help-all")
    shown = {flag for flag in there if any(line.startswith(f"  {flag} ") for line in short.splitlines())}
    assert shown == {f"--{flag}" for flag in everyday}
    assert 12 <= len(shown) <= 18
    assert f"{len(there) - len(shown)} more flags" in short
    assert all(flag in full for flag in there)
    assert all(len(line) <= 80 for line in short.splitlines())


def test_a_flag_that_is_not_known_is_one_line_with_the_nearest_also_before_a_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, near in ((["--verison"], "--version"), (["train", "--dta", "x"], "--data"), (["trian"], "train")):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"did you mean {near}?" in line


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_a_completion_script_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    said = printed(capsys, "--print-completion", shell)
    assert "heptane" in said
    assert "train" in said


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_flags_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    script = tmp_path / "script"
    script.write_text(printed(capsys, "--print-completion", "bash"))
    lines = [f"source {script}"]
    for words in ("heptane tr", "heptane train --mixup.al", "heptane train --augment ''"):
        lines.append(f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); COMPREPLY=()")
        lines.append('_shtab_heptane; echo "${COMPREPLY[*]}"')
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train tricks", "--mixup.alpha", " ".join(AUGMENTS)]


def test_a_shell_that_is_not_known_or_a_missing_shtab_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("shtab")
    assert main(["--print-completion", "fihs"]) == 2
    assert "did you mean fish?" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert 'pip install "heptane[completion]"' in capsys.readouterr().err
