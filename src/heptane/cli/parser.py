"""The parser: a mistake is one line that names the nearest flag, and ``--help`` has what is needed every day."""

from __future__ import annotations

import argparse
import copy
from typing import Any, NoReturn

from heptane.base.errors import InputError, check_choice, did_you_mean

TRAIN = {
    "data": "What to train on: fashion-mnist, digits, a folder with one folder of images per class, or a .csv, .parquet or "
    ".npz file.",
    "label": "The column of a table that is to be predicted.",
    "model": "The model: resnet, resnet-wide, mlp, timm:NAME, hf:NAME or my_package.module:function. Default: what suits "
    "the data.",
    "image-size": "Height and width of the images, in pixels. Default: what suits the images and this machine.",
    "epochs": "How often to go through the training data. Default: what suits the data.",
    "budget": "The time for the whole command, such as 90s or 5m; the run is planned to fit.",
    "batch-size": "How many samples each step of the optimizer sees. Default: what suits the data.",
    "optimizer": "The optimizer: sgd, adam, adamw or any other of torch.optim. Default: sgd, or what the plan says.",
    "lr": "The learning rate; its peak where the rate goes up and down. Default: what suits optimizer and batch size.",
    "target": "Stop as soon as the validation accuracy reaches this, from 0 to 1, such as 0.9.",
    "tricks": "Which tricks to use: none, recommended, or names joined by commas, such as mixup,cyclical. heptane tricks "
    "explains them. Default: recommended.",
    "seed": "Where randomness starts. The same seed gives the same weights. Default: 0.",
    "device": "Where to compute: cpu, cuda, cuda:1 ... Default: the GPU if there is one.",
    "out": "The folder for the model, the report and the records. Default: a new one in runs/.",
    "resume": "Continue the run in this folder. Needs no other flag; a larger --epochs makes the run longer.",
    "force": "Overwrite the run that is in --out.",
    "dry-run": "Show what would be done, and do nothing.",
}
LAYERS = {
    "data": "What the model would be trained on, as for heptane train. Default: blank images.",
    **{name: TRAIN[name] for name in ("label", "model", "image-size", "optimizer", "lr")},
    "transfer.mode": "What trains: head, head-first, gradual, full or auto.",
    "transfer.freeze": "How many groups to freeze, from the first; -1: all but the head.",
    "transfer.groups": "The groups: names of modules, or patterns with *, joined by commas. Default: the model's own.",
    "transfer.rate-factor": "The learning rate of a group over that of the one before it. Default: 2.6.",
    "json": "Print JSON.",
}
RACE = {
    **{name: TRAIN[name] for name in ("data", "label", "model", "image-size")},
    "target": "What to race to: a validation accuracy from 0 to 1, such as 0.9.",
    "accuracy": "Race for the best accuracy in this much training instead, such as 60s.",
    "epochs": "A run that has not arrived after so many passes over the data has failed. Default: what suits the data.",
    "tricks": "The tricks to race against plain training: recommended, or names joined by commas. heptane tricks explains "
    "them. Default: recommended.",
    "arms": "What races: every, or names joined by commas: plain, all, all-TRICK (all but one), plain+TRICK (only one). "
    "Default: every.",
    "seeds": "How many times each arm runs, with other random numbers. More seeds allow firmer verdicts. Default: 3.",
    "budget": "The time for the whole race, such as 20m or 2h; what does not fit is left out, and named.",
    **{name: TRAIN[name] for name in ("batch-size", "lr")},
    "out": "The folder for the report and the records. Default: a new one in runs/.",
    "resume": "Continue the race in this folder. Needs no other flag.",
    "force": "Overwrite the race that is in --out.",
    "dry-run": "Measure a few steps, show how long the race would take, and do nothing else.",
}


class Parser(argparse.ArgumentParser):
    """Like argparse's, but a mistake is one line that names the nearest flag.

    Args:
        everyday: the flags that ``--help`` shows, in this order, and what it says of them; the others are left to
            ``--help-all``. None: ``--help`` shows all.
        settings: what argparse's parser takes.
    """

    def __init__(self, everyday: dict[str, str] | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.everyday = everyday
        if everyday is not None:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="Show every flag, and stop.")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse, or raise :class:`InputError` for what is not known."""
        commands = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        if arguments and not arguments[0].startswith("-"):
            check_choice("command", arguments[0], commands.choices)
        elif arguments and arguments[0].split("=")[0] not in self._option_string_actions:
            near = did_you_mean(arguments[0], self._option_string_actions)
            raise InputError(f"{arguments[0]!r} is not known{near}; see {self.prog} --help")
        flags, unknown = self.parse_known_args(arguments)
        if unknown:
            known = list(commands.choices[flags.command]._option_string_actions)
            word = unknown[0].split("=")[0]
            raise InputError(f"{word!r} is not known{did_you_mean(word, known)}; see heptane {flags.command} --help")
        return flags

    def format_help(self) -> str:
        """What ``--help`` prints."""
        if self.everyday is None:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section("everyday flags")
        formatter.add_arguments(shown := [self._everyday(name) for name in self.everyday if self._has(name)])
        formatter.end_section()
        others = len(self._actions) - len(shown) - 2  # those of help
        formatter.add_text(f"{others} more flags, those of each trick among them: {self.prog} --help-all")
        return formatter.format_help()

    def _has(self, name: str) -> bool:
        return f"--{name}" in self._option_string_actions

    def _everyday(self, name: str) -> argparse.Action:
        """A flag with its everyday help."""
        shown = copy.copy(self._option_string_actions[f"--{name}"])
        shown.help = (self.everyday or {})[name].replace("%", "%%")
        return shown

    def format_help_all(self) -> str:
        """What ``--help-all`` prints."""
        return super().format_help()


class _HelpAll(argparse.Action):
    """Print the help on every flag, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, Parser)
        print(parser.format_help_all(), end="")
        parser.exit()
