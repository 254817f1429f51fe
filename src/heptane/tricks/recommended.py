"""Choose which of the seven tricks are on by default, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heptane.base.errors import check_range
from heptane.base.lazy import torch
from heptane.tricks.cyclical import Cyclical
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.label_smoothing import LabelSmoothing
from heptane.tricks.lr_scaling import LRScaling
from heptane.tricks.mixed_precision import MixedPrecision
from heptane.tricks.mixup import Mixup
from heptane.tricks.transfer import Transfer

FEW_GROUPS_FACTOR = 2.0  # ratio of learning rates of adjacent groups, where few groups train on cached features
LONG_EPOCHS, LONG_STEPS = 50, 5000  # a run from scratch of at least this length is expected to overfit


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What the choice of tricks depends on: the task and the machine."""

    epochs: float = 10
    """Length of the run, above 0."""
    steps: int | None = None
    """Optimizer steps of the run; None: enough for ``epochs`` alone to decide."""
    classes: bool | None = None
    """The targets are classes or labels, not real numbers; None: not known yet."""
    momentum: bool = True
    """The optimizer has a momentum (or beta1) that can be cycled."""
    reference_batch: int | None = None
    """Batch size for which the learning rate was chosen; None: the batch in use."""
    weights: str | None = None
    """Pretrained weights, as :class:`heptane.Transfer` names them."""
    mode: str | None = None
    """How to train from them, a mode of :class:`heptane.Transfer`."""
    freeze: int = 0
    """Without a mode: groups to freeze, as :class:`heptane.Transfer` counts them. Learning rates then halve per group."""
    num_gpus: int | None = None
    """GPUs of this machine; None counts them."""
    blends: bool = True
    """Inputs can be blended; token numbers cannot."""
    launched: int = 1
    """Workers that torchrun started; 1 if it did not start this process."""

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 0, low_open=True)


def choose(facts: TaskFacts) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose the tricks for a task and a machine.

    Returns:
        Each of the seven by name, None for off; and for each the reason why it is on or off.

    Example:
        >>> [name for name, trick in choose(TaskFacts(classes=False, num_gpus=0))[0].items() if trick]
        ['cyclical', 'mixed_precision']
    """
    weights, reference_batch, launched = facts.weights, facts.reference_batch, facts.launched
    num_gpus = torch.cuda.device_count() if facts.num_gpus is None else facts.num_gpus
    long = (
        facts.epochs >= LONG_EPOCHS
        and weights is None
        and facts.blends
        and (facts.steps is None or facts.steps >= LONG_STEPS)
    )
    smooth = facts.classes is not False
    tricks = {
        "data_parallel": DataParallel() if num_gpus > 1 or launched > 1 else None,
        "lr_scaling": LRScaling(reference_batch=reference_batch) if reference_batch else None,
        "cyclical": Cyclical(cycle_momentum=facts.momentum),
        "mixup": Mixup() if long else None,
        "label_smoothing": LabelSmoothing(optional=facts.classes is None) if smooth else None,
        "transfer": _transfer(weights, facts.mode, facts.freeze) if weights else None,
        "mixed_precision": MixedPrecision(),
    }
    workers = f"torchrun started {launched} workers" if launched > 1 else f"{num_gpus} GPUs share each batch"
    least = f"{LONG_STEPS:,} steps" if facts.epochs >= LONG_EPOCHS else f"{LONG_EPOCHS} epochs"
    no_mixup = "cached features of the frozen part cannot change" if weights else f"it slows runs under {least}"
    no_mixup = no_mixup if facts.blends else "token numbers cannot be blended"
    why = {
        "data_parallel": workers if tricks["data_parallel"] else "one process already uses this machine's cores",
        "lr_scaling": f"the learning rate was chosen for a batch of {reference_batch}"
        if reference_batch
        else "the learning rate is assumed to suit the batch in use",
        "cyclical": "1cycle reaches a given accuracy in fewer steps",
        "mixup": f"{facts.epochs:g} epochs are long enough to overfit" if long else no_mixup,
        "label_smoothing": "costs nothing and reduces over-confidence"
        if smooth
        else "real-valued targets have no classes to smooth",
        "transfer": "weights were given" if weights else "no pretrained weights were given",
        "mixed_precision": "used only if measured to be faster on this machine",
    }
    return tricks, why


def _transfer(weights: str, mode: str | None, freeze: int) -> Transfer:
    if freeze and mode is None:
        return Transfer(weights=weights, freeze=freeze, rate_factor=FEW_GROUPS_FACTOR)
    return Transfer(weights=weights, mode=mode)


def has_classes(data: Any) -> bool:
    """Whether the targets of training data are classes or labels.

    They are if they are integers, only 0 and 1, or rows of nonnegative numbers that sum to 1. Data that cannot be read here
    are assumed to have classes.

    Example:
        >>> has_classes((torch.randn(4, 2), torch.randn(4))), has_classes((torch.randn(4, 2), torch.tensor([0, 1, 1, 0])))
        (False, True)
    """
    if hasattr(data, "num_classes") and hasattr(data, "train"):
        return data.num_classes is not None
    targets = _some_targets(data)
    if not isinstance(targets, torch.Tensor) or not targets.is_floating_point():
        return True
    if bool(((targets == 0) | (targets == 1)).all()):
        return True
    if targets.ndim < 2 or bool((targets < 0).any()):
        return False
    return torch.allclose(targets.sum(-1), torch.ones(()).to(targets), atol=1e-3)


def _some_targets(data: Any) -> Any:
    """Targets of a few samples of a pair, a ``Dataset`` or a ``DataLoader``; None if they cannot be read."""
    try:
        if isinstance(data, (tuple, list)) and len(data) == 2:
            return torch.as_tensor(data[1])
        dataset = getattr(data, "dataset", data)
        return torch.stack([torch.as_tensor(dataset[i][1]) for i in range(min(64, len(dataset)))])
    except Exception:
        return None
