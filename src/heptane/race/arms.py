"""The arms of a race: plain, all, all without each trick, plain with each trick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heptane.base.errors import InputError, did_you_mean
from heptane.tricks import Tricks

PLAIN, ALL = "plain", "all"


@dataclass(frozen=True)
class Arm:
    """A named set of tricks: ``plain``, ``all``, ``all-TRICK`` or ``plain+TRICK``."""

    name: str
    tricks: Tricks

    @property
    def trick(self) -> str | None:
        """The removed or added trick; None for plain and all."""
        return self.name.removeprefix("all-").removeprefix("plain+") if self.name not in (PLAIN, ALL) else None

    @property
    def adds(self) -> bool:
        """Whether this is plain with one trick."""
        return self.name.startswith("plain+")

    @property
    def title(self) -> str:
        """The name in words: ``all without label smoothing``."""
        words = (self.trick or self.name).replace("_", " ")
        return words if self.trick is None else f"plain with {words}" if self.adds else f"all without {words}"


def make_arms(chosen: Tricks, names: Sequence[str] | None = None) -> list[Arm]:
    """The arms of a race without duplicates; plain first, then all.

    With two tricks, all without one is plain with the other: it runs once, under the first name. With one trick, the only
    arms are plain and all.

    Args:
        chosen: the tricks of the arm ``all``.
        names: such as ``["plain", "all"]``, ``all-mixup`` or ``plain+cyclical``; None for every arm.

    Raises:
        InputError: no trick is on, or a name is unknown.

    Example:
        >>> from heptane import Cyclical, LabelSmoothing, Mixup, Tricks
        >>> [arm.name for arm in make_arms(Tricks(cyclical=Cyclical(), mixup=Mixup(), label_smoothing=LabelSmoothing()))]
        ['plain', 'all', 'all-cyclical', 'all-mixup', 'all-label_smoothing', 'plain+cyclical', 'plain+mixup', \
'plain+label_smoothing']
    """
    if not chosen.on:
        raise InputError("tricks=none: a race needs at least one trick to race against plain training")
    sets = _sets(chosen)
    arms: list[Arm] = []
    for name, tricks in sets.items():
        if all(tricks != arm.tricks for arm in arms):
            arms.append(Arm(name, tricks))
    if names is None:
        return arms
    wanted = [sets[_known(name, sets)] for name in names]
    return [arm for arm in arms if arm.tricks in wanted]


def find_arm(race: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An arm of ``race.json``; one without tricks and runs if the race has none of this name."""
    none: Mapping[str, Any] = {"name": name, "tricks": {}, "runs": []}
    return next((arm for arm in race["arms"] if arm["name"] == name), none)


def _sets(chosen: Tricks) -> dict[str, Tricks]:
    without = {f"all-{name}": chosen.without(name) for name in chosen.on}
    alone = {f"plain+{name}": Tricks(**{name: getattr(chosen, name)}) for name in chosen.on}
    return {PLAIN: Tricks(), ALL: chosen, **without, **alone}


def _known(name: str, sets: Mapping[str, Tricks]) -> str:
    head = next((head for head in ("all-", "plain+") if name.startswith(head)), "")
    full = head + name.removeprefix(head).replace("-", "_")
    if full not in sets:
        raise InputError(f"arms={name!r} is not known{did_you_mean(full, sets)}: expected {', '.join(sets)}")
    return full
