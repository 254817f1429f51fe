"""The command-line parser: errors name the nearest flag, and ``--help`` shows everyday flags only."""

from __future__ import annotations

import argparse
import copy
from typing import Any, NoReturn

from heptane.base.errors import InputError, check_choice, did_you_mean

TRAIN = {
    "data": "Training data: fashion-mnist, digits, a folder with a folder of images per class, or a .csv, .parquet or "
    ".npz file.",
    "label": "The column of a table to predict.",
    "model": "resnet, resnet-wide, mlp, timm:NAME, hf:NAME or my_package.module:function. Default: chosen for the data.",
    "image-size": "Height and width of the images in pixels. Default: chosen for the images and this machine.",
    "epochs": "Number of passes over the training data. Default: chosen for the data.",
    "budget": "Time limit of the whole command, such as 90s or 5m; the run is planned to fit.",
    "batch-size": "Samples per optimizer step. Default: chosen for the data.",
    "optimizer": "sgd, adam, adamw or any other of torch.optim. Default: chosen by the plan, usually sgd.",
    "lr": "Learning rate; with a cycle, its peak. Default: chosen for the optimizer and batch size.",
    "target": "Stop when the validation accuracy reaches this, from 0 to 1, such as 0.9.",
    "tricks": "none, recommended, or names separated by commas, such as mixup,cyclical; heptane tricks explains them. "
    "Default: recommended.",
    "seed": "Random seed. The same seed gives the same weights. Default: 0.",
    "device": "cpu, cuda, cuda:1 ... Default: the GPU if there is one.",
    "out": "Folder for the model, report and records. Default: a new one in runs/.",
    "resume": "Resume the run in this folder. Needs no other flag; a larger --epochs extends the run.",
    "force": "Overwrite the run in --out.",
    "dry-run": "Print the plan and exit.",
}
LAYERS = {
    "data": "Training data, as for heptane train. Default: blank images.",
    **{name: TRAIN[name] for name in ("label", "model", "image-size", "optimizer", "lr")},
    "transfer.mode": "Which layers train: head, head-first, gradual, full or auto.",
    "transfer.freeze": "Number of layer groups to freeze, from the input; -1: all but the head.",
    "transfer.groups": "Layer groups: module names or patterns with *, separated by commas. Default: the model's own.",
    "transfer.rate-factor": "Learning rate of a group relative to the previous one. Default: 2.6.",
    "json": "Print JSON.",
}
RACE = {
    **{name: TRAIN[name] for name in ("data", "label", "model", "image-size")},
    "target": "Target of the race: a validation accuracy from 0 to 1, such as 0.9.",
    "accuracy": "Race for the best accuracy in this training time instead, such as 60s.",
    "epochs": "Maximum epochs of a run; a run that has not reached the target by then has missed it. Default: chosen for "
    "the data.",
    "tricks": "Tricks to race against plain training: recommended, or names separated by commas. Default: recommended.",
    "arms": "Arms of the race: every, or names separated by commas: plain, all, all-TRICK (all but one), plain+TRICK "
    "(only one). Default: every.",
    "seeds": "Number of seeds. More seeds allow clearer verdicts. Default: 3.",
    "budget": "Time limit of the whole race, such as 20m or 2h; runs that do not fit are left out and listed.",
    **{name: TRAIN[name] for name in ("batch-size", "lr")},
    "out": "Folder for the report and records. Default: a new one in runs/.",
    "resume": "Resume the race in this folder. Needs no other flag.",
    "force": "Overwrite the race in --out.",
    "dry-run": "Time a few steps, print the expected duration of the race, and exit.",
}


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line that names the nearest flag.

    Args:
        everyday: the flags that ``--help`` shows, in order, with their help texts; ``--help-all`` shows the others. None:
            ``--help`` shows all.
        settings: arguments of ``ArgumentParser``.
    """

    def __init__(self, everyday: dict[str, str] | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.everyday = everyday
        if everyday is not None:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="Show all flags and exit.")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the arguments, or raise :class:`InputError`."""
        commands = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        if arguments and not arguments[0].startswith("-"):
            check_choice("command", arguments[0], commands.choices)
        elif arguments and arguments[0].split("=")[0] not in self._option_string_actions:
            near = did_you_mean(arguments[0], self._option_string_actions)
            raise InputError(f"unknown flag {arguments[0]!r}{near}; see {self.prog} --help")
        flags, unknown = self.parse_known_args(arguments)
        if unknown:
            known = list(commands.choices[flags.command]._option_string_actions)
            word = unknown[0].split("=")[0]
            raise InputError(f"unknown flag {word!r}{did_you_mean(word, known)}; see heptane {flags.command} --help")
        return flags

    def format_help(self) -> str:
        """The text of ``--help``."""
        if self.everyday is None:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section("everyday flags")
        formatter.add_arguments(shown := [self._everyday(name) for name in self.everyday if self._has(name)])
        formatter.end_section()
        others = len(self._actions) - len(shown) - 2  # without the help flags
        formatter.add_text(f"{others} more flags, including those of each trick: {self.prog} --help-all")
        return formatter.format_help()

    def _has(self, name: str) -> bool:
        return f"--{name}" in self._option_string_actions

    def _everyday(self, name: str) -> argparse.Action:
        """A flag with its everyday help text."""
        shown = copy.copy(self._option_string_actions[f"--{name}"])
        shown.help = (self.everyday or {})[name].replace("%", "%%")
        return shown

    def format_help_all(self) -> str:
        """The text of ``--help-all``."""
        return super().format_help()


class _HelpAll(argparse.Action):
    """Print the help on all flags and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, Parser)
        print(parser.format_help_all(), end="")
        parser.exit()
