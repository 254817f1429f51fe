"""The seven tricks, and :class:`Tricks`, which holds one of each. ``None`` is off; all off is plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from heptane._lazy import torch
from heptane.errors import InputError, check_choice, check_range
from heptane.tricks.cyclical import Cyclical
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.label_smoothing import LabelSmoothing
from heptane.tricks.lr_scaling import LRScaling
from heptane.tricks.mixed_precision import MixedPrecision
from heptane.tricks.mixup import Mixup
from heptane.tricks.transfer import Transfer

KINDS: dict[str, type[Any]] = {
    "data_parallel": DataParallel,
    "lr_scaling": LRScaling,
    "cyclical": Cyclical,
    "mixup": Mixup,
    "label_smoothing": LabelSmoothing,
    "transfer": Transfer,
    "mixed_precision": MixedPrecision,
}

LONG_EPOCHS = 50  # from here on a run is taken to be long enough to overfit


@dataclass(frozen=True)
class Tricks:
    """One of each trick, or None for off."""

    data_parallel: DataParallel | None = None
    lr_scaling: LRScaling | None = None
    cyclical: Cyclical | None = None
    mixup: Mixup | None = None
    label_smoothing: LabelSmoothing | None = None
    transfer: Transfer | None = None
    mixed_precision: MixedPrecision | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, KINDS[field.name]):
                kind = KINDS[field.name].__name__
                raise InputError(f"Tricks.{field.name}={value!r}: expected a heptane.{kind}(...), or None for off")

    @property
    def on(self) -> list[str]:
        """Names of the tricks that are on."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def settings(self) -> dict[str, dict[str, Any]]:
        """Of each of the seven, in order, its settings; an empty dict where it is off."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: {} if trick is None else dict(vars(trick)) for name, trick in chosen.items()}

    def without(self, *names: str) -> Tricks:
        """The same set with some turned off."""
        for name in names:
            check_choice("trick", name, KINDS)
        return replace(self, **dict.fromkeys(names))

    @classmethod
    def recommended(cls, **facts: Any) -> Tricks:
        """The defaults the project stands behind; see :func:`recommend` for the facts it takes and its reasons."""
        return recommend(**facts)[0]


def recommend(
    *,
    epochs: float = 10,
    classes: bool = True,
    momentum: bool = True,
    reference_batch: int | None = None,
    weights: str | None = None,
    num_gpus: int | None = None,
    launched: int = 1,
) -> tuple[Tricks, dict[str, str]]:
    """Choose tricks for a task and a machine, with the reason for each.

    Args:
        epochs: length of the run.
        classes: the targets are classes or labels, not real numbers.
        momentum: the optimizer has a momentum (or beta1) to cycle.
        reference_batch: the batch for which the learning rate was chosen; None: it was chosen for the batch in use.
        weights: a file of pretrained weights, if there is one.
        num_gpus: GPUs of this machine; None counts them.
        launched: workers that torchrun started; 1 where it did not start this process.

    Returns:
        The tricks, and for each of the seven why it is on or off.
    """
    check_range("epochs", epochs, 0, low_open=True)
    num_gpus = torch.cuda.device_count() if num_gpus is None else num_gpus
    why: dict[str, str] = {}
    long = epochs >= LONG_EPOCHS
    why["data_parallel"] = (
        f"torchrun started {launched} workers"
        if launched > 1
        else f"{num_gpus} GPUs share each batch"
        if num_gpus > 1
        else "one process already uses this machine's cores"
    )
    why["lr_scaling"] = (
        f"the rate was chosen for a batch of {reference_batch}"
        if reference_batch
        else "the rate is taken to be chosen for the batch in use"
    )
    why["cyclical"] = "1cycle reaches a given accuracy in fewer steps"
    why["mixup"] = f"{epochs:g} epochs are long enough to overfit" if long else f"it slows runs under {LONG_EPOCHS} epochs"
    why["label_smoothing"] = (
        "costs nothing, and calms over-confidence" if classes else "real-valued targets have no classes to smooth"
    )
    why["transfer"] = "weights were given" if weights else "no pretrained weights were given"
    why["mixed_precision"] = "kept only where a measurement on this machine says that it pays"
    tricks = Tricks(
        data_parallel=DataParallel() if num_gpus > 1 or launched > 1 else None,
        lr_scaling=LRScaling(reference_batch=reference_batch) if reference_batch else None,
        cyclical=Cyclical(cycle_momentum=momentum),
        mixup=Mixup() if long else None,
        label_smoothing=LabelSmoothing() if classes else None,
        transfer=Transfer(weights=weights) if weights else None,
        mixed_precision=MixedPrecision(),
    )
    return tricks, why
