"""The defaults of a run: model, image size, batch, epochs, learning rate and augmentation, each with its reason.

What is chosen is a function of the data, of facts about the machine (its cores, its instructions, its GPU) and of what the
user gave, never of how busy the machine is: the same command with the same seed trains the same model, alone or beside
other work. Only a time budget measures the machine first.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from heptane.core.optimizers import LEARNING_RATES, PEAK, REFERENCE_BATCH
from heptane.data.survey import are_characters
from heptane.recommend.facts import Choices, DataFacts, Machine
from heptane.recommend.timing import LAST_BLOCK_COST, TRAIN_COST, epoch_seconds, forward_seconds, time_limit_seconds

if TYPE_CHECKING:
    from heptane.pretrained.hubs.available import Pretrained

SIDES = (24, 32, 40, 48, 64, 80, 96)  # pixels, of images for a model that is trained from scratch
PRETRAINED_SIDES = (96, 128, 160, 192, 224)
LEAST_STEPS = 300  # that a run on few samples should have
MAX_EPOCHS = 100
LAST_BLOCK = {"efficientnet-lite0": 16}  # groups that are frozen where the last block trains with the head
LAST_BLOCK_SAMPLES, LAST_BLOCK_STEPS = 400, 100  # least samples for it, and steps
TABLE_RATE = 3e-3  # AdamW's on a table, for a batch of 32


def before_loading(
    look: DataFacts, machine: Machine, given: Mapping[str, Any], pretrained: Pretrained | str | None = None
) -> Choices:
    """The model, where its weights are from, and the size of a folder's images.

    Args:
        look: the data.
        machine: where it trains.
        given: what the user set, by the names of ``heptane train``'s settings, and ``start``, the weights.
        pretrained: weights that can be had here, or why none are wanted.

    Returns:
        ``model``, ``start`` (its weights, or None) and ``image_size`` (of a folder, else None).
    """
    made = Choices(given)
    start, why = _start(look, machine, given, pretrained)
    name = made.put("model", start.model if start else _own_model(look), why)
    made.put("start", start.weights if start and name == start.model else None, why)
    if look.survey is not None:
        size, because = _image_size(look, machine, name, pretrained=made["start"] is not None)
        made.put("image_size", size, because)
    return made


def after_loading(
    look: DataFacts, machine: Machine, given: Mapping[str, Any], chosen: Choices, *, cycle: bool = True
) -> Choices:
    """How to train: ``batch_size``, ``frozen_groups`` (0: see the transfer trick), ``epochs``,
    ``optimizer``, ``lr``, ``augment`` and ``evaluate_every_epochs``.

    Args:
        look: the data, as they were loaded.
        machine: where it trains.
        given: as for :func:`before_loading`.
        chosen: what :func:`before_loading` chose; it is continued.
        cycle: the learning rate is the peak of a cycle, not a constant one.
    """
    made = Choices(given, dict(chosen.made))
    tuned = made["start"] is not None
    batch = made.put("batch_size", *_batch(look, given.get("accumulate") or 1))
    batch = min(batch, look.num_train)
    steps_per_epoch = ceil(look.num_train / batch)
    made.put("frozen_groups", *_frozen_groups(look, machine, made, steps_per_epoch))
    epochs = made.put("epochs", *_epochs(look, machine, made, steps_per_epoch))
    made.put("optimizer", *_optimizer(look, tuned))
    if str(made["optimizer"]).lower() in LEARNING_RATES:
        made.put("lr", *_rate(str(made["optimizer"]).lower(), batch, look, tuned, cycle))
    made.put("augment", *_augment(look, tuned, bool(given.get("computed_once", True))))
    made.put("evaluate_every_epochs", max(1.0, ceil(epochs / 20)) if epochs > 20 else 1.0, "about 20 evaluations at most")
    return made


def _start(
    look: DataFacts, machine: Machine, given: Mapping[str, Any], pretrained: Pretrained | str | None
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
    if own is None and (look.survey.is_writing or are_characters(look.survey.classes)):
        return None, "letters and signs are learned as well from scratch: ImageNet's weights know photographs"
    total = sum(look.survey.counts)
    seconds = forward_seconds("efficientnet-lite0", PRETRAINED_SIDES[0], machine) or 0.0
    if own is None and total * seconds > max(300.0, time_limit_seconds(total, machine)):
        return None, f"reading {total:,} images with pretrained weights would take over 5 min here"
    return pretrained, f"{pretrained.note}: few images need little training"


def _own_model(look: DataFacts) -> str:
    return {"images": "resnet", "table": "tabular"}.get(look.kind, "mlp")


def _image_size(look: DataFacts, machine: Machine, model: str, *, pretrained: bool) -> tuple[int, str]:
    """Pixels of height and width for a folder's images: as detailed as they are, and as the machine can train."""
    survey = look.survey
    assert survey is not None
    sides = PRETRAINED_SIDES if pretrained or model not in ("resnet", "resnet-wide", "mlp") else SIDES
    wanted = next((side for side in sides if side >= survey.size), sides[-1])
    total = sum(survey.counts)
    samples = total if pretrained else look.num_train * TRAIN_COST * _epochs_by_data(look.num_train)
    limit = (0.4 if pretrained else 0.9) * time_limit_seconds(look.num_train, machine)
    fitting = [s for s in sides if s <= wanted and (forward_seconds(model, s, machine) or 0.0) * samples <= limit]
    size = fitting[-1] if fitting else sides[0]
    stored = f"median {survey.width}x{survey.height}"
    if size < wanted:
        return size, f"{stored}; larger would take longer than {limit:.0f} s on {machine}"
    return size, f"{stored}" + (", as detailed as they are" if size >= survey.size else f"; {size} is the most by default")


def _batch(look: DataFacts, accumulate: int) -> tuple[int, str]:
    """Samples per step: a power of 2 that gives even small data some steps per epoch."""
    size = next(
        size for most, size in ((100, 8), (500, 16), (2000, 32), (10_000, 64), (10**18, 128)) if look.num_train < most
    )
    size = max(1, min(size, look.num_train) // accumulate) * accumulate
    why = "small data, small batches" if size < 64 else "enough samples for smooth steps"
    return min(size, max(look.num_train, 1)), why


def _epochs_by_data(num_train: int) -> float:
    """Passes over the data: many over little, few over much."""
    return float(min(MAX_EPOCHS, max(8, round(60 * (240 / num_train) ** 0.4))))


def _last_block_epochs(steps_per_epoch: int) -> int:
    return max(4, ceil(LAST_BLOCK_STEPS / steps_per_epoch))


def _frozen_groups(look: DataFacts, machine: Machine, made: Choices, steps_per_epoch: int) -> tuple[int, str]:
    """How many groups of pretrained weights are frozen where more trains than the head; else 0."""
    groups = LAST_BLOCK.get(str(made["start"]), 0)
    if not groups or made["model"] != made["start"] or not made.given.get("computed_once", True):
        return 0, "the head alone, or as given"
    if made.given.get("frozen_given") or look.num_train < LAST_BLOCK_SAMPLES:
        return 0, "the head alone, or as given"
    each = LAST_BLOCK_COST * (forward_seconds(str(made["model"]), min(look.shape[1:]), machine) or 0.0)
    epochs = made.given.get("epochs") or _last_block_epochs(steps_per_epoch)
    if float(epochs) * look.num_train * each > 0.5 * time_limit_seconds(look.num_train, machine):
        return 0, "the head alone: more would take too long"
    return groups, "the last block trains too: it tells pictures unlike ImageNet's apart"


def _epochs(look: DataFacts, machine: Machine, made: Choices, steps_per_epoch: int) -> tuple[float, str]:
    if made["start"] is not None and made.given.get("computed_once", True):
        if made["frozen_groups"]:
            epochs = float(_last_block_epochs(steps_per_epoch))
            return epochs, f"{epochs * steps_per_epoch:,.0f} steps of head and last block; what is before is computed once"
        epochs = float(min(2 * MAX_EPOCHS, max(8, ceil(2 * LEAST_STEPS / steps_per_epoch))))
        return epochs, f"{epochs * steps_per_epoch:,.0f} steps, cheap ones: the frozen part is computed once"
    usual = _epochs_by_data(look.num_train) / (1 if made["start"] is None else 4)
    epochs = max(round(usual), float(ceil(LEAST_STEPS / steps_per_epoch)))
    if machine.seconds is not None:
        epochs *= 3  # a budget may buy more than is usual
    limit, each = (
        time_limit_seconds(look.num_train, machine),
        epoch_seconds(look, machine, str(made["model"]), steps_per_epoch),
    )
    if epochs * each > limit:
        fits = limit / each
        fits = float(int(fits)) if fits >= 2 else float(f"{fits:.2g}") if machine.seconds is not None else 2.0
        if fits < epochs:
            return fits, f"{fits * steps_per_epoch:,.0f} steps, as many as fit in about {limit:.0f} s on {machine}"
    return epochs, f"{epochs * steps_per_epoch:,.0f} steps" + ("; little data needs many passes" if epochs > 12 else "")


def _optimizer(look: DataFacts, tuned: bool) -> tuple[str, str]:
    if tuned:
        return "adamw", "steady for fine-tuning"
    if look.kind != "images":
        return "adamw", "steady whatever the scale of the columns"
    return "sgd", "with momentum, the best for small convolutional networks"


def _rate(name: str, batch: int, look: DataFacts, tuned: bool, cycle: bool) -> tuple[float, str]:
    """The learning rate for this batch: linear in it for SGD, by its square root for the others."""
    base, reference = (LEARNING_RATES[name], REFERENCE_BATCH)
    if name == "adamw" and (tuned or look.kind != "images"):
        base, reference = TABLE_RATE / PEAK, 32
    share = batch / reference
    rate = base * (PEAK if cycle else 1.0) * (share if name == "sgd" else sqrt(share))
    return float(f"{rate:.3g}"), f"follows the batch; {'peak of the cycle' if cycle else 'constant'}"


def _augment(look: DataFacts, tuned: bool, computed_once: bool) -> tuple[str, str]:
    if look.kind != "images":
        return "none", "no images"
    if tuned and look.survey is not None and computed_once:
        return "none", "features of the frozen part are computed once"
    survey = look.survey
    if survey is None:
        return "none", "these images come as they are; flips or crops might change what they show"
    if survey.sided:
        return "warp", f"small shifts, turns and sizes; no mirroring, since a class is called {survey.sided[0]!r}"
    if survey.is_writing:
        return "warp", "small shifts, turns and sizes; no mirroring, since these look like letters or signs"
    return "warp-flip", "small shifts, turns and sizes, mirrored at random: pictures show the same then"
