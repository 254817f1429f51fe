"""The command-line parser: errors name the nearest flag, and ``--help`` shows everyday flags only."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from heptane.base.errors import InputError, check_choice, did_you_mean

# the everyday flags of a command
TRAIN = (
    "data", "label", "model", "image-size", "epochs", "budget", "batch-size", "optimizer", "lr", "target", "tricks", "seed",
    "device", "out", "resume", "force", "dry-run",
)  # fmt: skip
RACE = (
    "data", "label", "model", "image-size", "target", "accuracy", "epochs", "tricks", "arms", "seeds", "budget",
    "batch-size", "lr", "out", "resume", "force", "dry-run",
)  # fmt: skip
LAYERS = (
    "data", "label", "model", "image-size", "optimizer", "lr", "transfer.mode", "transfer.freeze", "transfer.groups",
    "transfer.rate-factor", "json",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line that names the nearest flag.

    Args:
        everyday: the flags that ``--help`` shows, in order; ``--help-all`` shows the others. None: ``--help`` shows all.
        settings: arguments of ``ArgumentParser``.
    """

    def __init__(self, everyday: Sequence[str] | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.everyday = everyday
        if everyday is not None:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="Show all flags and exit.")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the arguments, or raise :class:`InputError`."""
        command = self._command(arguments)
        flags, unknown = self.parse_known_args(arguments)
        flags.command_line = shlex.join(["heptane", *arguments])
        if unknown:
            command._refuse(unknown[0])
        return flags

    def _command(self, arguments: list[str]) -> Parser:
        """The parser of the command that begins the arguments, such as that of ``data inspect``."""
        commands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        if not commands or not arguments:
            return self
        if not arguments[0].startswith("-"):
            check_choice("command", arguments[0], commands[0].choices)
            inner: Parser = commands[0].choices[arguments[0]]
            return inner._command(arguments[1:])
        if arguments[0].split("=")[0] not in self._option_string_actions:
            self._refuse(arguments[0])
        return self

    def _refuse(self, flag: str) -> NoReturn:
        word = flag.split("=")[0]
        raise InputError(f"unknown flag {word!r}{did_you_mean(word, self._option_string_actions)}; see {self.prog} --help")

    def format_help(self) -> str:
        """The text of ``--help``."""
        if self.everyday is None:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section("everyday flags")
        formatter.add_arguments([self._option_string_actions[f"--{name}"] for name in self.everyday])
        formatter.end_section()
        others = len(self._actions) - len(self.everyday) - 2  # without the help flags
        formatter.add_text(f"{others} more flags, including those of each trick: {self.prog} --help-all")
        return formatter.format_help()


class _HelpAll(argparse.Action):
    """Print the help on all flags and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(argparse.ArgumentParser.format_help(parser), end="")
        parser.exit()
