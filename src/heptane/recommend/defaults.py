"""The defaults of a run: model, image size, batch size, epochs, learning rate and augmentation, each with its reason.

They are a function of the data, of fixed facts of the machine (cores, instruction sets, GPU) and of what the user gave,
never of the load: the same command with the same seed trains the same model. Only a time budget measures the machine first.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from heptane.core.optimizers import LEARNING_RATES, PEAK, REFERENCE_BATCH
from heptane.data.images.survey import are_characters
from heptane.recommend.facts import Choices, DataFacts, Machine
from heptane.recommend.timing import LAST_BLOCK_COST, TRAIN_COST, epoch_seconds, forward_seconds, time_limit_seconds

if TYPE_CHECKING:
    from heptane.pretrained.hubs.cached import Pretrained

SIDES = (24, 32, 40, 48, 64, 80, 96)  # image sizes in pixels for training from scratch
PRETRAINED_SIDES = (96, 128, 160, 192, 224)
LEAST_STEPS = 300  # of a run on few samples
MAX_EPOCHS = 100
LAST_BLOCK = {"efficientnet-lite0": 16}  # frozen groups if only the last block and the head train
LAST_BLOCK_SAMPLES, LAST_BLOCK_STEPS = 400, 100  # smallest number of samples for it, and of steps
TABLE_LR = 3e-3  # of AdamW on a table, for a batch of 32


def before_loading(
    facts: DataFacts, machine: Machine, given: Mapping[str, Any], pretrained: Pretrained | str | None = None
) -> Choices:
    """Choose the model, its weights, and the image size of a folder.

    Args:
        facts: the data.
        machine: where it trains.
        given: the user's settings, by their names in ``heptane train``, and ``start``, the weights.
        pretrained: weights available here, or the reason why none are used.

    Returns:
        ``model``, ``start`` (its weights, or None) and ``image_size`` (for a folder only).
    """
    made = Choices(given)
    start, why = _start(facts, machine, given, pretrained)
    name = made.put("model", start.model if start else _own_model(facts), why)
    made.put("start", start.weights if start and name == start.model else None, why)
    if facts.survey is not None:
        size, because = _image_size(facts, machine, name, pretrained=made["start"] is not None)
        made.put("image_size", size, because)
    return made


def after_loading(
    facts: DataFacts, machine: Machine, given: Mapping[str, Any], chosen: Choices, *, cycle: bool = True
) -> Choices:
    """Choose how to train.

    ``batch_size``, ``frozen_groups`` (0: as the transfer trick decides), ``epochs``, ``optimizer``, ``lr``, ``augment`` and
    ``evaluate_every_epochs``.

    Args:
        facts: the loaded data.
        machine: where it trains.
        given: as for :func:`before_loading`.
        chosen: the choices of :func:`before_loading`, which are extended.
        cycle: the learning rate is the peak of a cycle rather than constant.
    """
    made = Choices(given, dict(chosen.made))
    tuned = made["start"] is not None
    batch = made.put("batch_size", *_batch(facts, given.get("accumulate") or 1))
    batch = min(batch, facts.num_train)
    steps_per_epoch = ceil(facts.num_train / batch)
    made.put("frozen_groups", *_frozen_groups(facts, machine, made, steps_per_epoch))
    epochs = made.put("epochs", *_epochs(facts, machine, made, steps_per_epoch))
    made.put("optimizer", *_optimizer(facts, tuned))
    if str(made["optimizer"]).lower() in LEARNING_RATES:
        made.put("lr", *_lr(str(made["optimizer"]).lower(), batch, facts, tuned, cycle))
    made.put("augment", *_augment(facts, tuned, bool(given.get("computed_once", True))))
    made.put("evaluate_every_epochs", max(1.0, ceil(epochs / 20)) if epochs > 20 else 1.0, "about 20 evaluations at most")
    return made


def _start(
    facts: DataFacts, machine: Machine, given: Mapping[str, Any], pretrained: Pretrained | str | None
) -> tuple[Pretrained | None, str]:
    """The weights to start from, if any, and the reason."""
    own = given.get("model")
    if facts.kind == "text":
        if pretrained is None or isinstance(pretrained, str) or own not in (None, pretrained.model):
            return None, pretrained if isinstance(pretrained, str) else "a small network that learns from these texts alone"
        return pretrained, f"{pretrained.note}: the head learns from few texts"
    if facts.kind != "images" or facts.num_classes is None:
        return None, "a small network suits numbers" if facts.kind != "images" else "pretrained heads are for classes"
    if facts.survey is None:
        return None, "these images are arrays, which are not resized"
    if pretrained is None or isinstance(pretrained, str):
        return None, pretrained or "small and fast on this machine"
    if own is not None and own != pretrained.model:
        return None, "given"
    if own is None and (facts.survey.is_writing or are_characters(facts.survey.classes)):
        return None, "letters and signs train as well from scratch: ImageNet weights suit photographs"
    total = facts.survey.total
    seconds = forward_seconds("efficientnet-lite0", PRETRAINED_SIDES[0], machine) or 0.0
    if own is None and total * seconds > max(300.0, time_limit_seconds(total, machine)):
        return None, f"reading {total:,} images with pretrained weights would take over 5 min here"
    return pretrained, f"{pretrained.note}: few images need little training"


def _own_model(facts: DataFacts) -> str:
    return {"images": "resnet", "table": "tabular", "text": "text"}.get(facts.kind, "mlp")


def _image_size(facts: DataFacts, machine: Machine, model: str, *, pretrained: bool) -> tuple[int, str]:
    """Height and width in pixels for a folder's images: as detailed as stored, if the machine can train them in time."""
    survey = facts.survey
    assert survey is not None
    sides = PRETRAINED_SIDES if pretrained or model not in ("resnet", "resnet-wide", "mlp") else SIDES
    wanted = next((side for side in sides if side >= survey.size), sides[-1])
    total = survey.total
    samples = total if pretrained else facts.num_train * TRAIN_COST * _epochs_by_data(facts.num_train)
    limit = (0.4 if pretrained else 0.9) * time_limit_seconds(facts.num_train, machine)
    fitting = [s for s in sides if s <= wanted and (forward_seconds(model, s, machine) or 0.0) * samples <= limit]
    size = fitting[-1] if fitting else sides[0]
    stored = f"median {survey.width}x{survey.height}"
    if size < wanted:
        return size, f"{stored}; larger would take longer than {limit:.0f} s on {machine}"
    return size, f"{stored}" + (", as detailed as they are" if size >= survey.size else f"; {size} is the largest default")


def _batch(facts: DataFacts, accumulate: int) -> tuple[int, str]:
    """Samples per step: a power of 2 that gives even small data several steps per epoch."""
    size = next(
        size for most, size in ((100, 8), (500, 16), (2000, 32), (10_000, 64), (10**18, 128)) if facts.num_train < most
    )
    size = max(1, min(size, facts.num_train) // accumulate) * accumulate
    why = "small data, small batches" if size < 64 else "enough samples for smooth steps"
    return min(size, max(facts.num_train, 1)), why


def _epochs_by_data(num_train: int) -> float:
    """Epochs by data size: many for small data, few for large."""
    return float(min(MAX_EPOCHS, max(8, round(60 * (240 / num_train) ** 0.4))))


def _last_block_epochs(steps_per_epoch: int) -> int:
    return max(4, ceil(LAST_BLOCK_STEPS / steps_per_epoch))


def _frozen_groups(facts: DataFacts, machine: Machine, made: Choices, steps_per_epoch: int) -> tuple[int, str]:
    """Number of frozen groups if more than the head trains on pretrained weights; else 0."""
    groups = LAST_BLOCK.get(str(made["start"]), 0)
    if not groups or made["model"] != made["start"] or not made.given.get("computed_once", True):
        return 0, "only the head trains, or as given"
    if made.given.get("frozen_given") or facts.num_train < LAST_BLOCK_SAMPLES:
        return 0, "only the head trains, or as given"
    each = LAST_BLOCK_COST * (forward_seconds(str(made["model"]), min(facts.shape[1:]), machine) or 0.0)
    epochs = made.given.get("epochs") or _last_block_epochs(steps_per_epoch)
    if float(epochs) * facts.num_train * each > 0.5 * time_limit_seconds(facts.num_train, machine):
        return 0, "only the head trains: more would take too long"
    return groups, "the last block trains too, which helps on images unlike ImageNet's"


def _epochs(facts: DataFacts, machine: Machine, made: Choices, steps_per_epoch: int) -> tuple[float, str]:
    if made["start"] is not None and made.given.get("computed_once", True):
        if made["frozen_groups"]:
            epochs = float(_last_block_epochs(steps_per_epoch))
            return epochs, f"{epochs * steps_per_epoch:,.0f} steps of head and last block on cached features"
        epochs = float(min(2 * MAX_EPOCHS, max(8, ceil(2 * LEAST_STEPS / steps_per_epoch))))
        return epochs, f"{epochs * steps_per_epoch:,.0f} cheap steps on cached features"
    usual = _epochs_by_data(facts.num_train) / (1 if made["start"] is None else 4)
    epochs = max(round(usual), float(ceil(LEAST_STEPS / steps_per_epoch)))
    if machine.seconds is not None:
        epochs *= 3  # a budget may buy more than is usual
    limit, each = (
        time_limit_seconds(facts.num_train, machine),
        epoch_seconds(facts, machine, str(made["model"]), steps_per_epoch),
    )
    if epochs * each > limit:
        fits = limit / each
        fits = float(int(fits)) if fits >= 2 else float(f"{fits:.2g}") if machine.seconds is not None else 2.0
        if fits < epochs:
            return fits, f"{fits * steps_per_epoch:,.0f} steps, as many as fit into about {limit:.0f} s on {machine}"
    return epochs, f"{epochs * steps_per_epoch:,.0f} steps" + ("; small data need many epochs" if epochs > 12 else "")


def _optimizer(facts: DataFacts, tuned: bool) -> tuple[str, str]:
    if tuned:
        return "adamw", "robust for fine-tuning"
    if facts.kind != "images":
        return "adamw", "robust to the scale of the columns"
    return "sgd", "with momentum, the best for small convolutional networks"


def _lr(name: str, batch: int, facts: DataFacts, tuned: bool, cycle: bool) -> tuple[float, str]:
    """The learning rate for this batch: proportional to it for SGD, to its square root for other optimizers."""
    base, reference = (LEARNING_RATES[name], REFERENCE_BATCH)
    if name == "adamw" and (tuned or facts.kind != "images"):
        base, reference = TABLE_LR / PEAK, 32
    share = batch / reference
    lr = base * (PEAK if cycle else 1.0) * (share if name == "sgd" else sqrt(share))
    return float(f"{lr:.3g}"), f"scaled to the batch; {'peak of the cycle' if cycle else 'constant'}"


def _augment(facts: DataFacts, tuned: bool, computed_once: bool) -> tuple[str, str]:
    if facts.kind != "images":
        return "none", "no images"
    if tuned and facts.survey is not None and computed_once:
        return "none", "cached features cannot be augmented"
    survey = facts.survey
    if survey is None:
        return "none", "these images are arrays; flips or crops might change their class"
    if survey.sided:
        return "warp", f"small shifts, turns and sizes; no mirroring, since a class is called {survey.sided[0]!r}"
    if survey.is_writing:
        return "warp", "small shifts, turns and sizes; no mirroring, since these look like letters or signs"
    return "warp-flip", "small shifts, turns and sizes, mirrored at random: mirrored photographs keep their class"
