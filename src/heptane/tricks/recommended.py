"""Which of the seven tricks are on by default, each with its reason."""

from __future__ import annotations

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

FEW_GROUPS_FACTOR = 2.0  # between the rates of the few groups that train on computed features
LONG_EPOCHS, LONG_STEPS = 50, 5000  # from here on a run from scratch is taken to be long enough to overfit


def choose(
    *,
    epochs: float = 10,
    steps: int | None = None,
    classes: bool | None = None,
    momentum: bool = True,
    reference_batch: int | None = None,
    weights: str | None = None,
    mode: str | None = None,
    freeze: int = 0,
    num_gpus: int | None = None,
    launched: int = 1,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose tricks for a task and a machine, with the reason for each.

    Args:
        epochs: length of the run.
        steps: optimizer steps of the run; None: enough of them for its epochs to count.
        classes: the targets are classes or labels, not real numbers; None: not known yet.
        momentum: the optimizer has a momentum (or beta1) to cycle.
        reference_batch: the batch for which the learning rate was chosen; None: it was chosen for the batch in use.
        weights: pretrained weights, if there are any, as :class:`heptane.Transfer` names them.
        mode: how to train from them, a mode of :class:`heptane.Transfer`.
        freeze: without a mode, groups to freeze, as :class:`heptane.Transfer` counts them; the others' rates then halve from
            one to the one before it.
        num_gpus: GPUs of this machine; None counts them.
        launched: workers that torchrun started; 1 where it did not start this process.

    Returns:
        Each of the seven by name, None for off; and why it is on or off.

    Example:
        >>> [name for name, trick in choose(classes=False, num_gpus=0)[0].items() if trick]
        ['cyclical', 'mixed_precision']
    """
    check_range("epochs", epochs, 0, low_open=True)
    num_gpus = torch.cuda.device_count() if num_gpus is None else num_gpus
    long = epochs >= LONG_EPOCHS and weights is None and (steps is None or steps >= LONG_STEPS)
    tricks = {
        "data_parallel": DataParallel() if num_gpus > 1 or launched > 1 else None,
        "lr_scaling": LRScaling(reference_batch=reference_batch) if reference_batch else None,
        "cyclical": Cyclical(cycle_momentum=momentum),
        "mixup": Mixup() if long else None,
        "label_smoothing": LabelSmoothing(optional=classes is None) if classes is not False else None,
        "transfer": _transfer(weights, mode, freeze) if weights else None,
        "mixed_precision": MixedPrecision(),
    }
    one_process = "one process already uses this machine's cores"
    least = f"{LONG_STEPS:,} steps" if epochs >= LONG_EPOCHS else f"{LONG_EPOCHS} epochs"
    few_steps = f"it slows runs under {least}"
    too_short = "features of a frozen part stay as they are" if weights else few_steps
    given_batch = f"the learning rate was chosen for a batch of {reference_batch}"
    this_batch = "the learning rate is taken to be chosen for the batch in use"
    workers = f"torchrun started {launched} workers" if launched > 1 else f"{num_gpus} GPUs share each batch"
    why = {
        "data_parallel": workers if tricks["data_parallel"] else one_process,
        "lr_scaling": given_batch if reference_batch else this_batch,
        "cyclical": "1cycle reaches a given accuracy in fewer steps",
        "mixup": f"{epochs:g} epochs are long enough to overfit" if long else too_short,
        "label_smoothing": "costs nothing, and calms over-confidence"
        if classes is not False
        else "real-valued targets have no classes to smooth",
        "transfer": "weights were given" if weights else "no pretrained weights were given",
        "mixed_precision": "kept only where a measurement on this machine says that it pays",
    }
    return tricks, why


def _transfer(weights: str, mode: str | None, freeze: int) -> Transfer:
    if freeze and mode is None:
        return Transfer(weights=weights, freeze=freeze, rate_factor=FEW_GROUPS_FACTOR)
    return Transfer(weights=weights, mode=mode)


def has_classes(data: Any) -> bool:
    """Whether the targets of training data are classes or labels: whole numbers, or numbers that are 0 or 1, or from 0 to 1
    and of sum 1 in each row. Data that cannot be looked at are taken to have classes.

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
    """Targets of some samples of a pair, a ``Dataset`` or a ``DataLoader``; None where there are none to see."""
    try:
        if isinstance(data, (tuple, list)) and len(data) == 2:
            return torch.as_tensor(data[1])
        dataset = getattr(data, "dataset", data)
        return torch.stack([torch.as_tensor(dataset[i][1]) for i in range(min(64, len(dataset)))])
    except Exception:
        return None
