"""``heptane --print-completion SHELL``: a shell script that completes commands, flags, files and choices."""

from __future__ import annotations

import argparse
from typing import Any

from heptane.base.errors import InputError, check_choice
from heptane.data.augment import AUGMENTS
from heptane.session.settings import PRESETS

FILES, FOLDERS = ("data", "config", "resume", "run", "out"), ("resume", "run", "out")
CHOICES = {
    "augment": AUGMENTS,
    "tricks": PRESETS,
    "fallback": ("digits", "fashion-mnist"),
    "optimizer": ("sgd", "adam", "adamw", "rmsprop"),
    "device": ("cpu", "cuda"),
}


class PrintCompletion(argparse.Action):
    """Print the script and exit."""

    def __call__(self, parser: argparse.ArgumentParser, _flags: Any, shell: Any, *_: Any) -> None:
        print(completion_script(parser, str(shell)))
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for ``shell``.

    Raises:
        InputError: the shell is unknown, or shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise InputError(
            '--print-completion needs shtab, which is not installed: pip install "heptane[completion]"'
        ) from None
    check_choice("--print-completion", shell, shtab.SUPPORTED_SHELLS)
    parsers = [parser]
    for one in parsers:  # grows as commands are found
        commands = [action for action in one._actions if isinstance(action, argparse._SubParsersAction)]
        parsers += [command for action in commands for command in action.choices.values()]
    for action in [action for one in parsers for action in one._actions]:
        if action.dest in FILES:
            action.complete = shtab.DIRECTORY if action.dest in FOLDERS else shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in CHOICES and action.choices is None:
            action.choices = CHOICES[action.dest]
    return str(shtab.complete(parser, shell))
