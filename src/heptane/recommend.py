"""The one place of all defaults that depend on the data and the machine, each with its reason.

What is chosen is a function of the data, of facts about the machine (its cores, its instructions, its GPU) and of what the
user gave, never of how busy the machine is: the same command with the same seed trains the same model, alone or beside
other work. Only a time budget measures (:mod:`heptane.budget`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from heptane.errors import check_range
from heptane.optimizers import PEAK, RATES, REFERENCE_BATCH

if TYPE_CHECKING:
    from heptane.data.load import Data
    from heptane.data.survey import Survey
    from heptane.hubs.pretrained import Pretrained

LONG_EPOCHS = 50  # from here on a run of a model on its own is taken to be long enough to overfit
SIDES = (24, 32, 40, 48, 64, 80, 96)  # pixels, of images for a model that is trained from scratch
PRETRAINED_SIDES = (96, 128, 160, 192, 224)
LEAST_STEPS = 300  # that a run on few samples should have
MAX_EPOCHS, MIN_EPOCHS = 100, 5
PIXEL_FLOPS = {"resnet": 34e3, "resnet-wide": 135e3, "efficientnet-lite0": 64e3}  # of a forward pass, in plain convolutions'
TRAIN_COST = 3.0  # of a step, in forward passes
TABLE_RATE = 3e-3  # AdamW's on a table, for a batch of 32


@dataclass(frozen=True)
class Default:
    """What was chosen, and why in a few words."""

    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts of a machine that do not change with its load."""

    cores: int = 2
    gflops: float = 110.0
    """thousand million operations per second in the convolutions of a training step, all cores together, roughly"""
    gpu: str | None = None

    @classmethod
    def here(cls, device: str | None = None) -> Machine:
        """This one, as training on ``device`` will find it."""
        from heptane._lazy import torch

        cores = torch.get_num_threads()
        if device != "cpu" and torch.cuda.is_available():
            return cls(cores=cores, gflops=20_000.0, gpu=torch.cuda.get_device_name())
        per_core = 90.0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 55.0
        return cls(cores=cores, gflops=per_core * cores)

    def __str__(self) -> str:
        return self.gpu or f"{self.cores} CPU core{'s' * (self.cores > 1)}"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the defaults go by, of any kind of data.

    Attributes:
        kind: "images", "table" or "arrays".
        num_train: training samples, 1 or more.
        num_classes: None for numbers as targets.
        survey: of a folder whose images can have any size; None for data that come as they are.
        shape: of one sample, where it is known.
    """

    kind: str
    num_train: int
    num_classes: int | None
    survey: Survey | None = None
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, data: Data, survey: Survey | None = None) -> Look:
        """Of data that are loaded."""
        shape = data.input_shape
        kind = "images" if len(shape) == 3 and min(shape[1:]) >= 8 else getattr(data, "kind", "arrays")
        return cls(
            kind="arrays" if kind == "images" and len(shape) != 3 else kind,
            num_train=len(data.train[1]),
            num_classes=data.num_classes,
            survey=survey,
            shape=shape,
        )


@dataclass
class Choices:
    """The defaults, one by one; what the user gave stands."""

    given: Mapping[str, Any]
    made: dict[str, Default] = field(default_factory=dict)

    def put(self, name: str, value: Any, why: str) -> Any:
        """Choose, unless the user did; returns what holds."""
        own = self.given.get(name)
        self.made[name] = Default(value, why) if own is None else Default(own, "given")
        return self.made[name].value

    def __getitem__(self, name: str) -> Any:
        return self.made[name].value

    def values(self) -> dict[str, Any]:
        """Every choice, by name."""
        return {name: default.value for name, default in self.made.items()}


def before_loading(
    look: Look, machine: Machine, given: Mapping[str, Any], pretrained: Pretrained | str | None = None
) -> Choices:
    """The model, where its weights are from, and the size of a folder's images.

    Args:
        look: the data.
        machine: where it trains.
        given: what the user set, by the names of ``heptane train``'s settings, and ``weights``.
        pretrained: weights that can be had here, or why none are wanted.

    Returns:
        ``model``, ``weights`` and ``image_size`` (of a folder, else None).
    """
    made = Choices(given)
    start, why = _start(look, machine, given, pretrained)
    name = made.put("model", start.model if start else _own_model(look), why)
    made.put("weights", start.weights if start and name == start.model else None, why)
    if look.survey is not None:
        size, because = _image_size(look, machine, name, pretrained=made["weights"] is not None)
        made.put("image_size", size, because)
    return made


def after_loading(look: Look, machine: Machine, given: Mapping[str, Any], chosen: Choices, *, cycle: bool = True) -> Choices:
    """How to train: ``batch_size``, ``epochs``, ``optimizer``, ``lr``, ``augment`` and ``evaluate_every_epochs``.

    Args:
        look: the data, as they were loaded.
        machine: where it trains.
        given: as for :func:`before_loading`.
        chosen: what :func:`before_loading` chose; it is continued.
        cycle: the learning rate is the peak of a cycle, not a constant one.
    """
    made = Choices(given, dict(chosen.made))
    tuned = made["weights"] is not None
    batch = made.put("batch_size", *_batch(look, given.get("accumulate") or 1))
    batch = min(batch, look.num_train)
    steps_per_epoch = ceil(look.num_train / batch)
    epochs = made.put("epochs", *_epochs(look, machine, made, steps_per_epoch))
    made.put("optimizer", *_optimizer(look, tuned))
    if str(made["optimizer"]).lower() in RATES:
        made.put("lr", *_rate(str(made["optimizer"]).lower(), batch, look, tuned, cycle))
    made.put("augment", *_augment(look, tuned))
    made.put("evaluate_every_epochs", max(1.0, ceil(epochs / 20)) if epochs > 20 else 1.0, "about 20 evaluations at most")
    return made


def forward_seconds(model: str, size: int, machine: Machine) -> float | None:
    """Of one image in a forward pass, roughly; None for a model that is not known here."""
    flops = PIXEL_FLOPS.get(model)
    return None if flops is None else flops * size * size / (machine.gflops * 1e9)


def patience_seconds(num_train: int) -> float:
    """How long training may take when nobody says: a minute for some hundred samples, some minutes for thousands.

    Example:
        >>> [round(patience_seconds(n)) for n in (300, 3000, 50000)]
        [56, 144, 420]
    """
    return min(420.0, max(30.0, 40 + 2.7 * sqrt(num_train) * max(1.0, num_train / 6000) ** 0.5)) if num_train > 50 else 30.0


def _start(
    look: Look, machine: Machine, given: Mapping[str, Any], pretrained: Pretrained | str | None
) -> tuple[Pretrained | None, str]:
    """The weights to start from, if any, and why."""
    own = given.get("model")
    if look.kind != "images" or look.num_classes is None:
        return None, "a small network suits numbers" if look.kind != "images" else "pretrained heads are for classes"
    if look.survey is None:
        return None, "these images come as they are, without their files"
    if pretrained is None or isinstance(pretrained, str):
        return None, pretrained or "small, and fast on this machine"
    if own is not None and own != pretrained.model:
        return None, "given"
    total = sum(look.survey.counts)
    seconds = forward_seconds("efficientnet-lite0", PRETRAINED_SIDES[0], machine) or 0.0
    if own is None and total * seconds > 300:
        return None, f"reading {total:,} images with pretrained weights would take over 5 min here"
    return pretrained, f"{pretrained.said}: few images need little training"


def _own_model(look: Look) -> str:
    return "resnet" if look.kind == "images" else "mlp"


def _image_size(look: Look, machine: Machine, model: str, *, pretrained: bool) -> tuple[int, str]:
    """Pixels of height and width for a folder's images: as detailed as they are, and as the machine can train."""
    survey = look.survey
    assert survey is not None
    sides = PRETRAINED_SIDES if pretrained or model not in ("resnet", "resnet-wide", "mlp") else SIDES
    wanted = next((side for side in sides if side >= survey.size), sides[-1])
    total = sum(survey.counts)
    samples = total if pretrained else look.num_train * TRAIN_COST * _epochs_by_data(look.num_train)
    limit = (0.35 if pretrained else 0.8) * patience_seconds(look.num_train)
    fitting = [s for s in sides if s <= wanted and (forward_seconds(model, s, machine) or 0.0) * samples <= limit]
    size = fitting[-1] if fitting else sides[0]
    stored = f"median {survey.width}x{survey.height}"
    if size < wanted:
        return size, f"{stored}; larger would take longer than {limit:.0f} s on {machine}"
    return size, f"{stored}" + (", as detailed as they are" if size >= survey.size else f"; {size} is the most by default")


def _batch(look: Look, accumulate: int) -> tuple[int, str]:
    """Samples per step: a power of 2 that gives even small data some steps per epoch."""
    size = next(size for most, size in ((100, 8), (500, 16), (2000, 32), (10_000, 64), (10**18, 128)) if look.num_train < most)
    size = max(1, min(size, look.num_train) // accumulate) * accumulate
    why = "small data, small batches" if size < 64 else "enough samples for smooth steps"
    return min(size, max(look.num_train, 1)), why


def _epochs_by_data(num_train: int) -> float:
    """Passes over the data: many over little, few over much."""
    return float(min(MAX_EPOCHS, max(8, round(60 * (240 / num_train) ** 0.4))))


def _epochs(look: Look, machine: Machine, made: Choices, steps_per_epoch: int) -> tuple[float, str]:
    epochs = _epochs_by_data(look.num_train)
    if made["weights"] is not None:
        epochs = float(min(40, max(8, ceil(LEAST_STEPS * 2 / steps_per_epoch))))
        return epochs, "the frozen part is computed once, so an epoch is cheap"
    least = ceil(LEAST_STEPS / steps_per_epoch)
    epochs = float(min(max(epochs, least), 10 * MAX_EPOCHS))
    side = min(look.shape[1:]) if look.kind == "images" and len(look.shape) == 3 else 0
    second = forward_seconds(str(made["model"]), side, machine)
    limit = patience_seconds(look.num_train)
    if second and epochs * look.num_train * TRAIN_COST * second > limit:
        fits = float(max(MIN_EPOCHS, limit // (look.num_train * TRAIN_COST * second)))
        if fits < epochs:
            return fits, f"as many as fit in about {limit:.0f} s on {machine}"
    return epochs, f"{epochs * steps_per_epoch:,.0f} steps" + (": little data needs many passes" if epochs > 12 else "")


def _optimizer(look: Look, tuned: bool) -> tuple[str, str]:
    if tuned:
        return "adamw", "steady for fine-tuning"
    if look.kind != "images":
        return "adamw", "steady whatever the scale of the columns"
    return "sgd", "with momentum, the best for small convolutional networks"


def _rate(name: str, batch: int, look: Look, tuned: bool, cycle: bool) -> tuple[float, str]:
    """The learning rate for this batch: linear in it for SGD, by its square root for the others."""
    base, reference = (RATES[name], REFERENCE_BATCH)
    if name == "adamw" and (tuned or look.kind != "images"):
        base, reference = TABLE_RATE / PEAK, 32
    share = batch / reference
    rate = base * (PEAK if cycle else 1.0) * (share if name == "sgd" else sqrt(share))
    return float(f"{rate:.3g}"), f"follows the batch; {'peak of the cycle' if cycle else 'constant'}"


def _augment(look: Look, tuned: bool) -> tuple[str, str]:
    if look.kind != "images":
        return "none", "no images"
    if tuned:
        return "none", "features of the frozen part are computed once"
    survey = look.survey
    if survey is None:
        return "none", "these images come as they are; flips or crops might change what they show"
    if survey.sided:
        return "warp", f"small shifts, turns and sizes; no mirroring, since a class is called {survey.sided[0]!r}"
    if survey.is_writing:
        return "warp", "small shifts, turns and sizes; no mirroring, since these look like letters or signs"
    return "warp-flip", "small shifts, turns and sizes, mirrored at random: pictures show the same then"


def recommend_tricks(
    *,
    epochs: float = 10,
    classes: bool = True,
    momentum: bool = True,
    reference_batch: int | None = None,
    weights: str | None = None,
    num_gpus: int | None = None,
    launched: int = 1,
) -> Any:
    raise NotImplementedError
