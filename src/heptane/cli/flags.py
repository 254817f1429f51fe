"""Build the command's flags from the fields of the settings and of each trick."""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from typing import Any

from heptane.base.errors import InputError
from heptane.cli.completion import PrintCompletion
from heptane.cli.parser import LAYERS, RACE, TRAIN, Parser
from heptane.session.settings import NAMES, RaceSettings, Settings, convert, field_docs
from heptane.tricks import KINDS

METAVARS = {"data": "DATA", "label": "COLUMN", "model": "MODEL", "optimizer": "NAME", "device": "DEVICE", "arms": "ARMS"}
RACE_DOCS = {
    "target": "Target of the race: a validation accuracy from 0 to 1, such as 0.9.",
    "epochs": "Maximum epochs of a run; without the target by then, it has missed it. Default: chosen for the data.",
    "evaluate_every_epochs": "How often to evaluate, in epochs, above 0. Default: 0.5.",
}
METAVARS |= {"budget": "TIME", "accuracy": "TIME", "checkpoint-every": "EVERY"}


def make_parser() -> Parser:
    """The parser of the whole command line."""
    from heptane.base.version import __version__

    parser = Parser(
        prog="heptane",
        description="Train PyTorch models in less time with seven tricks, and measure the effect of each.",
        epilog="heptane COMMAND --help explains a command. To start: heptane train --data FOLDER_OF_CLASS_FOLDERS",
    )
    parser.add_argument("--version", action="version", version=f"heptane {__version__}", help="Show the version and exit.")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        metavar="SHELL",
        help="Print a completion script for bash, zsh, fish, tcsh or powershell, and exit.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (add_train, add_race, add_evaluate, add_predict, add_export, add_layers):
        add(commands)
    commands.add_parser("tricks", help="list the seven tricks with their measured effects")
    add_data(commands)
    add_demo(commands)
    return parser


def add_train(commands: Any) -> None:
    """``heptane train``."""
    parser: Parser = commands.add_parser(
        "train",
        everyday=TRAIN,
        usage="heptane train --data DATA [FLAG ...]",
        help="train a model with the tricks and write a report",
        description="Train a model with the tricks. Writes result.json, report.html, the weights and a settings file.",
    )
    _add_settings(parser, "run")
    _add_files(parser, "run")
    more = parser.add_argument_group("predicted speed with more workers")
    more.add_argument("--plan-workers", metavar="N,N", help="Predict the speed with N workers, such as 2,8,64, and exit.")
    for name, default, doc in (
        ("bandwidth", 10.0, "Bandwidth between hosts, in Gbit/s"),
        ("latency", 50.0, "Latency between hosts, in microseconds"),
        ("per-host", 1, "Workers per host"),
    ):
        kind = type(default)
        more.add_argument(f"--plan-{name}", type=kind, default=default, metavar="NUM", help=f"{doc}. Default: {default:g}.")
    _add_tricks(parser)


def add_race(commands: Any) -> None:
    """``heptane race``."""
    parser: Parser = commands.add_parser(
        "race",
        everyday=RACE,
        usage="heptane race --data DATA --target ACCURACY [FLAG ...]",
        help="measure the speed-up of the tricks over plain training, and the effect of each",
        description="Race plain training against the tricks to a target, on your model, data and machine. "
        "Writes race.json, report.html and a settings file.",
    )
    race = parser.add_argument_group("race")
    for field in fields(RaceSettings):
        _add_field(race, field, "", field_docs(RaceSettings)[field.name])
    _add_settings(parser, "each run", RACE_DOCS)
    _add_files(parser, "race")
    _add_tricks(parser)


def _add_settings(parser: Parser, title: str, docs: dict[str, str] | None = None) -> None:
    general, docs = parser.add_argument_group(title), field_docs(Settings) | (docs or {})
    for field in fields(Settings):
        if field.name == "budget" and title != "run":
            continue  # a race has a budget of its own
        _add_field(general, field, "", docs[field.name])


def _add_files(parser: Parser, what: str) -> None:
    files = parser.add_argument_group("files")
    files.add_argument("--out", metavar="DIR", help=f"The folder for the {what}'s files. Default: runs/DATA-MODEL-TIME.")
    files.add_argument("--config", metavar="FILE", help="Settings from a TOML file; flags override it.")
    longer = "; a larger --epochs extends it" if what == "run" else ""
    files.add_argument("--resume", metavar="DIR", help=f"Resume the {what} in DIR; needs no other flag{longer}.")
    files.add_argument("--force", action="store_true", help="Overwrite the run in --out.")
    files.add_argument("--fallback", metavar="DATA", help="Built-in data to use if --data is not available.")
    files.add_argument("--dry-run", action="store_true", help="Print the plan and exit.")


def _add_tricks(parser: Parser) -> None:
    tricks = parser.add_argument_group("tricks")
    tricks.add_argument(
        "--tricks",
        metavar="SET",
        help="none, recommended, or NAME,NAME,... (heptane tricks explains them); the flags of a trick add to it. "
        "Default: recommended.",
    )
    tricks.add_argument("--workers", metavar="N", help="Short for --data-parallel.workers.")
    for name, kind in KINDS.items():
        flag = name.replace("_", "-")
        section = parser.add_argument_group(name.replace("_", " "))
        section.add_argument(
            f"--no-{flag}", dest="off", action="append_const", const=name, help=f"Turn {name.replace('_', ' ')} off."
        )
        docs = field_docs(kind)  # type: ignore[arg-type]
        for field in fields(kind):
            _add_field(section, field, f"{flag}.", docs[field.name])


def add_evaluate(commands: Any) -> None:
    """``heptane evaluate``."""
    parser: Parser = commands.add_parser("evaluate", help="evaluate a trained model on data")
    parser.add_argument("--run", metavar="DIR", required=True, help="A folder that heptane train wrote.")
    parser.add_argument("--data", metavar="DATA", help="The data, as for train. Default: the run's data.")
    parser.add_argument(
        "--part",
        choices=("test", "valid", "train", "all"),
        help="The part to evaluate. Default: test, or valid if there is no test data.",
    )
    parser.add_argument("--batch-size", type=int, default=512, metavar="INT", help="Samples per forward pass. Default: 512.")
    parser.add_argument("--skip-bad", type=int, default=0, metavar="INT", help="Skip up to this many unreadable images.")


def add_predict(commands: Any) -> None:
    """``heptane predict``."""
    parser: Parser = commands.add_parser(
        "predict",
        help="predict classes and probabilities, or values, for new files",
        description="Predict images, rows of a table or arrays with a trained model. Inputs are preprocessed as in "
        "training. Without --out, predictions are printed as CSV.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="Images, or folders, manifests (.csv of paths) or shards of them; .csv, .parquet or .npz files.",
    )
    parser.add_argument("--run", metavar="DIR", required=True, help="A folder that heptane train wrote.")
    parser.add_argument("--out", metavar="FILE", help="The file to write, .csv or .json.")
    parser.add_argument("--top", type=int, metavar="INT", help="Number of most probable classes to write. Default: 1.")
    parser.add_argument("--batch-size", type=int, default=64, metavar="INT", help="Samples per forward pass. Default: 64.")
    parser.add_argument("--skip-bad", action="store_true", help="Skip unreadable images, with a note for each.")
    parser.add_argument("--force", action="store_true", help="Overwrite the file --out.")


def add_export(commands: Any) -> None:
    """``heptane export``."""
    parser: Parser = commands.add_parser(
        "export",
        help="export a trained model to ONNX or torch.export, and check it",
        description="Export a trained model for use without heptane, compare its outputs with the model's, and describe "
        "inputs and outputs in FILE.json beside it.",
    )
    parser.add_argument("--run", metavar="DIR", required=True, help="A folder that heptane train wrote.")
    parser.add_argument("--to", choices=("onnx", "torch"), default="onnx", help="The format. Default: onnx.")
    parser.add_argument("--out", metavar="FILE", help="The file. Default: model.onnx or model.pt2 in the run's folder.")
    parser.add_argument("--sample", nargs="+", metavar="FILE", help="Files for the comparison. Default: random inputs.")
    parser.add_argument("--force", action="store_true", help="Overwrite the file.")


def add_layers(commands: Any) -> None:
    """``heptane layers``."""
    parser: Parser = commands.add_parser(
        "layers",
        everyday=LAYERS,
        usage="heptane layers [--data DATA] [--model MODEL] [FLAG ...]",
        help="show a model's layer groups with their learning rates and freezing",
        description="Show the layer groups, from input to output, that transfer freezes together, with their learning "
        "rates before warm-up and cycle, as heptane train with the same flags has them.",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--config", metavar="FILE", help="Settings from a TOML file; flags override it.")
    parser.add_argument("--fallback", metavar="DATA", help="Built-in data to use if --data is not available.")
    parser.set_defaults(resume=None, out=None, force=False)
    _add_settings(parser, "run", {"data": "Training data, as for heptane train. Default: blank images."})
    _add_tricks(parser)


def add_data(commands: Any) -> None:
    """``heptane data inspect``."""
    group: Parser = commands.add_parser("data", help="inspect data before training on it")
    inner = group.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser: Parser = inner.add_parser(
        "inspect",
        help="show what a data set holds, what is wrong with it, and what heptane train would do",
        description="Count samples, classes and sizes; name unreadable images, samples that occur twice, such as in "
        "training and test, and unused columns; draw a contact sheet; print the plan of heptane train. "
        "Writes inspect.json and, for images, contact.png.",
    )
    docs = field_docs(Settings)
    parser.add_argument("data", metavar="DATA", help="A folder of images, a table, an .npz file, fashion-mnist or digits.")
    for field in fields(Settings):
        if field.name in ("label", "task", "valid_fraction"):
            _add_field(parser, field, "", docs[field.name])
    parser.add_argument(
        "--all", action="store_true", help="Read all images, also of more than 20,000. Default: 10,000 of them."
    )
    parser.add_argument("--out", metavar="DIR", help="The folder for the files. Default: runs/inspect-DATA-TIME.")
    parser.add_argument("--force", action="store_true", help="Overwrite the files in --out.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.set_defaults(resume=None, fallback=None)


def add_demo(commands: Any) -> None:
    """``heptane demo``."""
    parser: Parser = commands.add_parser(
        "demo",
        help="see what heptane does on this machine, in a few minutes",
        description="Download a data set, race the tricks against plain training, and train on 200 images with and without "
        "ImageNet weights. Sized to the machine. Exits with 0 even if a part could not be shown.",
    )
    parser.add_argument("--budget", metavar="TIME", default="150s", help="Time limit, such as 3m. Default: 150s.")
    parser.add_argument(
        "--data",
        metavar="DATA",
        choices=("fashion-mnist", "digits"),
        default="fashion-mnist",
        help="fashion-mnist, which is fetched, or digits, which needs no network. Default: fashion-mnist.",
    )
    parser.add_argument("--out", metavar="DIR", default="runs/demo", help="The folder for the reports. Default: runs/demo.")


def settings_from_flags(flags: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings and the tricks' settings given as flags, typed."""
    values = vars(flags)
    if values["workers"] is not None:
        if values.get("data-parallel.workers") is not None:
            raise InputError("--workers and --data-parallel.workers are the same flag: pass only one")
        values["data-parallel.workers"] = values["workers"]
    own = typed_flags(Settings, values)
    if values.get("command") == "race":
        own.pop("budget", None)
    tricks = {name: typed_flags(kind, values, f"{name.replace('_', '-')}.") for name, kind in KINDS.items()}
    return own, {name: settings for name, settings in tricks.items() if settings}


def typed_flags(kind: type[Any], values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of ``kind`` that were given as flags, typed."""
    found = {}
    for field in fields(kind):
        flag = _flag(field, prefix)
        if values.get(flag) is not None:
            found[field.name] = convert(f"--{flag}", str(field.type), values[flag])
    return found


def typed_table(kind: type[Any], table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of ``kind`` that a table of a settings file holds, typed."""
    return {f.name: convert(prefix + f.name, str(f.type), table[f.name]) for f in fields(kind) if f.name in table}


def _flag(field: Field[Any], prefix: str) -> str:
    return prefix + field.name.replace("_", "-")


def _add_field(group: Any, field: Field[Any], prefix: str, doc: str) -> None:
    flag, kind = _flag(field, prefix), str(field.type).removesuffix(" | None")
    default = "" if field.default in (None, "", ()) else f" Default: {str(field.default).lower()}."
    settings: dict[str, Any] = {"dest": flag, "help": (doc + default).replace("%", "%%")}
    if kind.startswith("bool"):
        settings |= {"nargs": "?", "const": "true", "metavar": "BOOL" if kind == "bool" else "MODE"}
    else:
        settings["metavar"] = METAVARS.get(flag) or {"float": "NUM", "int": "INT", NAMES: "NAME,.."}.get(kind, "TEXT")
    group.add_argument(f"--{flag}", **settings)
