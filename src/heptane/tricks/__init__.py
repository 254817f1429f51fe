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
from heptane.tricks.recommended import choose, has_classes
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
    def recommended(cls, model: Any = None, data: Any = None, **facts: Any) -> Tricks:
        """The defaults the project stands behind, for a model and data, or for what they are taken to be without them.

        Args:
            model: it is not looked into yet; pretrained weights are told by ``weights=``.
            data: what it trains on, as :func:`heptane.fit` takes it, or a :class:`heptane.Data`: with real numbers as
                targets label smoothing is left out. None: it is left out once the targets are seen.
            facts: of :func:`heptane.tricks.recommended.choose`, such as ``epochs=30``; they win.

        Example:
            >>> Tricks.recommended(torch.nn.Linear(4, 1), (torch.randn(8, 4), torch.randn(8, 1))).label_smoothing
        """
        facts = {"classes": None if data is None else has_classes(data), **facts}
        return recommend(**facts)[0]


def recommend(**facts: Any) -> tuple[Tricks, dict[str, str]]:
    """The tricks that are on by default, and for each of the seven why it is on or off.

    Args:
        facts: of :func:`heptane.tricks.recommended.choose`.

    Example:
        >>> recommend(classes=False, num_gpus=0)[0].on
        ['cyclical', 'mixed_precision']
    """
    chosen, why = choose(**facts)
    return Tricks(**chosen), why


def check_tricks(tricks: Any) -> Tricks:
    """The tricks, all off for None; refuse what is no :class:`heptane.Tricks`."""
    if tricks is not None and not isinstance(tricks, Tricks):
        raise InputError(f"tricks={tricks!r}: expected heptane.Tricks(mixup=heptane.Mixup(), ...), or None for all off")
    return tricks or Tricks()
