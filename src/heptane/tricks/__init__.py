"""The seven tricks, and :class:`Tricks`, which holds one of each. ``None`` is off; all off is plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from heptane.base.errors import InputError, check_choice
from heptane.tricks.cyclical import Cyclical
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.label_smoothing import LabelSmoothing
from heptane.tricks.lr_scaling import LRScaling
from heptane.tricks.mixed_precision import MixedPrecision
from heptane.tricks.mixup import Mixup
from heptane.tricks.recommended import TaskFacts, choose, has_classes
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


@dataclass(frozen=True)
class Tricks:
    """The settings of each trick, or None for off."""

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
        """The settings of each of the seven, in order; an empty dict for one that is off."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: {} if trick is None else dict(vars(trick)) for name, trick in chosen.items()}

    def without(self, *names: str) -> Tricks:
        """A copy with some of them turned off."""
        for name in names:
            check_choice("trick", name, KINDS)
        return replace(self, **dict.fromkeys(names))

    @classmethod
    def recommended(cls, model: Any = None, data: Any = None, **facts: Any) -> Tricks:
        """The default tricks for a model and data.

        Args:
            model: not used yet; pass pretrained weights as ``weights=``.
            data: the training data, as :func:`heptane.fit` takes them, or a :class:`heptane.Data`. Label smoothing is left
                out for real-valued targets; None: that is decided once the targets are seen.
            facts: fields of :class:`heptane.tricks.recommended.TaskFacts`, such as ``epochs=30``; they take precedence.

        Example:
            >>> Tricks.recommended(torch.nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))).label_smoothing
        """
        facts = {"classes": None if data is None else has_classes(data), **facts}
        return recommend(**facts)[0]


def recommend(**facts: Any) -> tuple[Tricks, dict[str, str]]:
    """The default tricks, and the reason why each of the seven is on or off.

    Args:
        facts: fields of :class:`heptane.tricks.recommended.TaskFacts`.

    Example:
        >>> recommend(classes=False, num_gpus=0)[0].on
        ['cyclical', 'mixed_precision']
    """
    chosen, why = choose(TaskFacts(**facts))
    return Tricks(**chosen), why


def check_tricks(tricks: Any) -> Tricks:
    """Return ``tricks``, all off for None; refuse anything that is not a :class:`heptane.Tricks`."""
    if tricks is not None and not isinstance(tricks, Tricks):
        raise InputError(f"tricks={tricks!r}: expected heptane.Tricks(mixup=heptane.Mixup(), ...), or None for all off")
    return tricks or Tricks()
