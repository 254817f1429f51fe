"""What the defaults go by, facts of the data and the machine; and what comes of them, choices with their reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heptane.data.dataset import Data
    from heptane.data.survey import Survey


@dataclass(frozen=True)
class Default:
    """What was chosen, and why in a few words."""

    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts of a machine that do not change with its load; and, with a budget, its measured speed and the time there is."""

    cores: int = 2
    gflops: float = 110.0
    """thousand million operations per second in the convolutions of a training step, all cores together, roughly"""
    gpu: str | None = None
    seconds: float | None = None
    """for training and what it needs, where there is a budget"""

    @classmethod
    def here(cls, device: str | None = None) -> Machine:
        """This one, as training on ``device`` will find it."""
        from heptane.base.lazy import torch

        cores = torch.get_num_threads()
        if device != "cpu" and torch.cuda.is_available():
            return cls(cores=cores, gflops=20_000.0, gpu=torch.cuda.get_device_name())
        per_core = 90.0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 55.0
        return cls(cores=cores, gflops=per_core * cores)

    def __str__(self) -> str:
        return self.gpu or f"{self.cores} CPU core{'s' * (self.cores > 1)}"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
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
    def of(cls, data: Data, survey: Survey | None = None) -> DataFacts:
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
