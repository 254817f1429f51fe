"""What a run is asked for: from flags, from a file, and written back as the file that repeats it."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from heptane.base.clock import parse_duration
from heptane.base.errors import InputError, check_choice, check_range, did_you_mean
from heptane.core.fit_options import Extras, check_options
from heptane.data.augment import AUGMENTS, NAMED
from heptane.data.reading import Reading
from heptane.data.texts.text import MAX_TOKENS, Text
from heptane.tricks import KINDS, Tricks

PRESETS = ("none", "recommended")
NAMES = "tuple[str, ...]"  # the annotation of a field that is a list of names


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of ``heptane train``, apart from the tricks' own."""

    data: str = ""
    """Training data: fashion-mnist, digits, a folder with a folder of images (or .txt files) per class, a .csv or .parquet
    table, or an .npz with x and y."""
    label: str | None = None
    """The column of a table to predict. Default: the one called label, target, class or y."""
    text: str | None = None
    """The column of text to predict from, of a table or a Hugging Face data set."""
    max_tokens: int = MAX_TOKENS
    """Longest text in tokens, at least 1; longer ones are cut."""
    task: str | None = None
    """Of labels that can be read as both: classification or regression. Default: by the labels."""
    model: str | None = None
    """The model: resnet, resnet-wide, mlp, tabular, text, efficientnet-lite0, minilm, timm:NAME, hf:NAME or
    package.module:factory. Default: for a folder of images and for text a pretrained one if it is installed, else resnet
    and text; tabular for a table; mlp for other data."""
    epochs: float | None = None
    """Passes over the training data, above 0; a fraction is allowed. Default: by the number of samples and the machine."""
    batch_size: int | None = None
    """Samples per optimizer step, over all workers and micro-batches. Default: 8 to 128, by the number of samples."""
    optimizer: str | None = None
    """An optimizer of torch.optim by name, such as sgd, adam or adamw. Default: sgd for images, else adamw."""
    lr: float | None = None
    """Learning rate; with a cycle, its peak. Default: a fair start for the optimizer, scaled to the batch."""
    momentum: float | None = None
    """Momentum, in [0, 1). Default: 0.9 for sgd, else the optimizer's own."""
    weight_decay: float | None = None
    """Weight decay, at least 0. Default: 5e-4 for sgd, else the optimizer's own."""
    loss: str | None = None
    """cross_entropy, binary_cross_entropy, mse, l1, smooth_l1 or model (its own). Default: by the targets."""
    target: float | None = None
    """Stop when the validation accuracy reaches this, from 0 to 1, such as 0.9; exit code 3 if it does not."""
    seed: int = 0
    """Random seed of weights, order, augmentation, mixup and dropout: the same seed gives the same weights."""
    accumulate: int = 1
    """Micro-batches per step, at least 1: the same step in less memory."""
    clip_norm: float | None = None
    """Largest norm of all gradients together, above 0."""
    augment: str | None = None
    """Of images: none, flip (left and right), crop-flip (shifts of up to 2 pixels too), warp (small shifts, turns and
    changes of size), warp-flip, crop (random resized crop and flip), crop-color (and colours) or trivial (crop and
    TrivialAugment). Default: by what a folder's images look like; none for other data."""
    sampling: str = Extras.sampling
    class_weights: str | None = None
    """Weights of the classes in the loss: balanced, so that each class weighs the same in all, or numbers joined by
    commas. They are scaled to a mean of 1 over the training samples."""
    progressive_size: int | None = None
    """Height and width of the images at first, in pixels: progressive resizing. Default: whole images throughout."""
    progressive_until: float = 0.6
    """Share of the steps on the smaller images, in (0, 1)."""
    image_size: int | None = None
    """Height and width of a folder's images, in pixels. Default: by their size, the model and the machine."""
    budget: str | None = None
    """Time limit of the whole command, such as 90s or 5m: the run is planned to fit, and stops in time."""
    data_cache: str = Reading.cache  # type: ignore[assignment]
    """Folder in which decoded images are kept for later runs, or off. Default: in heptane's cache folder."""
    data_cache_gb: float | None = Reading.cache_gb
    """Largest size of that folder in GB, above 0. Default: 20, and at most half of the free disk."""
    readers: int | None = Reading.readers
    """Threads that decode images, at least 0. Default: one per processor core."""
    background: str = Reading.background
    """Behind transparent pixels: white, black, grey or #rrggbb. Default: white, but black behind a nearly white image."""
    valid_fraction: float | None = None
    """Share of the samples set aside for validation, in (0, 1), where the data brings no such part."""
    skip_bad: int = 0
    """Leave out up to so many images that cannot be read, at least 0, and name them."""
    evaluate_every_epochs: float | None = None
    """How often to evaluate, in epochs, above 0. Default: each epoch; of a long run, about 20 times."""
    compile: bool | str = Extras.compile
    average_decay: float | None = Extras.average_decay
    weights: str = Extras.weights
    patience: int | None = Extras.patience
    checkpoint_every: str | None = None
    """How often to save: a number of steps, or a time such as 90s or 5m. Default: at each evaluation."""
    keep_checkpoints: int = Extras.keep_checkpoints
    on_nan: str = Extras.on_nan
    nan_limit: int = Extras.nan_limit
    device: str | None = None
    """Device, such as cpu, cuda or cuda:1. Default: the GPU if there is one."""

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError(
                "data is missing: pass --data fashion-mnist, digits, a folder of class folders, a table or an .npz"
            )
        if self.task is not None:
            check_choice("task", self.task, ("classification", "regression"))
        if self.text is not None or self.max_tokens != MAX_TOKENS:
            Text(self.text, self.max_tokens)
        check_options(self)
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, 1, whole=True)
        if self.augment is not None:
            check_choice("augment", self.augment, AUGMENTS)
        _ = self.budget_seconds
        if self.lr is not None:
            check_range("lr", self.lr, 0, 1e6, low_open=True)
        if self.target is not None:
            check_range("target", self.target, 0, 1)

    @property
    def reading(self) -> Reading:
        """How image files are read."""
        return Reading(
            cache=self.data_cache,
            cache_gb=self.data_cache_gb,
            readers=self.readers,
            background=self.background,
            room=getattr(NAMED[self.augment or "none"], "room", 1.0),
        )

    @property
    def budget_seconds(self) -> float | None:
        """``budget`` in seconds."""
        return None if self.budget is None else parse_duration("budget", self.budget)


@dataclass(frozen=True, kw_only=True)
class RaceSettings:
    """The settings of ``heptane race`` beside those of a run."""

    arms: str = "every"
    """Arms of the race: every, or names separated by commas: plain, all, all-TRICK (all but one), plain+TRICK (only one)."""
    seeds: int = 3
    """Number of seeds, at least 1; there is no verdict on fewer than 2. More seeds allow clearer verdicts."""
    fixed_seeds: bool = False
    """Run all the seeds, also where a verdict is clear sooner, and never more; verdicts are then tested at 5%, not 1%."""
    budget: str | None = None
    """Time limit of the whole race, such as 20m or 2h; runs that do not fit are left out and listed."""
    accuracy: str | None = None
    """Race for the best validation accuracy within this training time, such as 60s, in place of a target."""
    tune: int = 3
    """Trials per side before the race: rates for plain, lengths of a cycle for the tricks. 0: none."""
    peak: float = 3.0
    """Peak of a cycle, in multiples of --lr, plain's rate; above 0."""
    planned_epochs: float | None = None
    """Length of the arms with a cycle, in epochs. Default: tuned, at most --epochs."""

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, 1, 1000, whole=True)
        check_range("tune", self.tune, 0, 20, whole=True)
        check_range("peak", self.peak, 0, low_open=True)
        if self.planned_epochs is not None:
            check_range("planned_epochs", self.planned_epochs, 0, low_open=True)
        _ = self.budget_seconds, self.accuracy_seconds

    @property
    def arm_names(self) -> list[str] | None:
        """The names that were given, or None for every arm."""
        return None if self.arms == "every" else [name.strip() for name in self.arms.split(",") if name.strip()]

    @property
    def budget_seconds(self) -> float | None:
        """``budget`` in seconds."""
        return None if self.budget is None else parse_duration("budget", self.budget)

    @property
    def accuracy_seconds(self) -> float | None:
        """``accuracy`` in seconds."""
        return None if self.accuracy is None else parse_duration("accuracy", self.accuracy)


@dataclass(frozen=True)
class Choice:
    """Which tricks were asked for: a preset or a list, settings per trick, and those turned off."""

    base: str | tuple[str, ...] = "recommended"
    own: Mapping[str, Mapping[str, Any]] | None = None
    off: tuple[str, ...] = ()

    def resolve(self, recommended: tuple[Tricks, dict[str, str]]) -> tuple[Tricks, dict[str, str]]:
        """The tricks, and for each of the seven why it is on or off.

        Args:
            recommended: what :func:`heptane.tricks.recommend` says for this run.
        """
        tricks, why = recommended
        if self.base != "recommended":
            names = () if self.base == "none" else tuple(self.base)
            tricks = Tricks(**{name: KINDS[name]() for name in names})
            why = {name: "asked for" if name in names else "not asked for" for name in KINDS}
        for name, settings in (self.own or {}).items():
            on = getattr(tricks, name)
            tricks = replace(tricks, **{name: replace(on, **settings) if on is not None else KINDS[name](**settings)})
            why[name] = f"{why[name]}; settings given" if on is not None else "settings given"
        for name in self.off:
            tricks, why[name] = tricks.without(name), "turned off"
        return tricks, why


def choice(base: Any, own: Mapping[str, Mapping[str, Any]], off: tuple[str, ...] = ()) -> Choice:
    """A checked :class:`Choice`; ``base`` is a preset, names joined by commas, or a list of names.

    Raises:
        InputError: an unknown trick, with the did_you_mean one, or one that is both set and turned off.
    """
    if isinstance(base, str) and base not in PRESETS:
        base = [name.strip().replace("-", "_") for name in base.split(",") if name.strip()]
    if not isinstance(base, str):
        for name in base:
            if name not in KINDS:
                near = did_you_mean(str(name), [*KINDS, *PRESETS])
                known = f"{', '.join(PRESETS)}, or names of tricks: {', '.join(KINDS)}"
                raise InputError(f"tricks={name!r} is not known{near}: expected {known}")
        base = tuple(base)
    for name in off:
        if name in own:
            flag = name.replace("_", "-")
            raise InputError(f"--no-{flag} and --{flag}.{next(iter(own[name]))} contradict each other: leave one out")
    return Choice(base, own, off)


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a settings file (TOML), its names checked.

    Raises:
        InputError: the file is missing, not TOML, or holds a name that is not known.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"config={str(path)!r} is no file: expected a TOML file of settings")
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(
            f"config={str(path)!r} cannot be read ({error.strerror}): expected a TOML file of settings"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config={str(path)!r} is not TOML: {error}") from None
    tables = {**KINDS, "race": RaceSettings}
    known = [*(field.name for field in fields(Settings)), *tables, "tricks"]
    for name, value in content.items():
        if name not in known:
            raise InputError(f"config {str(path)!r}: {name!r} is not known{did_you_mean(name, known)}")
        if name in tables:
            if not isinstance(value, dict):
                raise InputError(f"config {str(path)!r}: {name}={value!r}: expected a table, [{name}]")
            inner = [field.name for field in fields(tables[name])]
            for key in value:
                if key not in inner:
                    raise InputError(f"config {str(path)!r}: {name}.{key} is not known{did_you_mean(key, inner)}")
    return content


def to_toml(settings: Settings, tricks: Tricks, race: RaceSettings | None = None) -> str:
    """The file that repeats a run or a race: every setting, and the tricks that were on with all of theirs."""
    import tomli_w

    content = {name: value for name, value in asdict(settings).items() if value is not None}
    if race is not None:
        content["race"] = {name: value for name, value in asdict(race).items() if value is not None}
    content["tricks"] = tricks.on
    for name in tricks.on:
        own = vars(getattr(tricks, name))
        content[name] = {key: value for key, value in own.items() if value is not None}
    return tomli_w.dumps(content)


@cache
def field_docs(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line; of an option of the settings that has none,
    :class:`Extras`'s."""
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    docs: dict[str, str] = {}
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = " ".join(str(after.value.value).replace("``", "").split())
    return field_docs(Extras) | docs if kind is Settings else docs


def convert(name: str, annotation: str, value: Any) -> Any:
    """A value of a flag (text) or a file as the type that a field is annotated with.

    Raises:
        InputError: it is not of that type.
    """
    kinds = [kind.strip() for kind in annotation.split("|")]
    if value is None or (value == "none" and "None" in kinds and "str" not in kinds):
        return None
    for kind in ("bool", "int", "float", "str", NAMES):
        if kind in kinds and (made := _converted(kind, value)) is not None:
            return made
    wanted = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"} | {
        NAMES: "names, joined by commas"
    }
    raise InputError(f"{name}={value!r}: expected {' or '.join(wanted[kind] for kind in kinds if kind != 'None')}")


def _converted(kind: str, value: Any) -> Any:
    """``value`` as this kind; None if it is not one."""
    if kind == "bool":
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
        return value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
    if kind == "str":
        return value if isinstance(value, str) else None
    if kind == NAMES:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    if isinstance(value, bool) or (kind == "int" and isinstance(value, float)):
        return None
    try:
        return int(value) if kind == "int" else float(value)
    except (TypeError, ValueError):
        return None
