"""The facts that defaults depend on, data and machine; and the resulting choices with their reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heptane.data.dataset import Data
    from heptane.data.images.survey import Survey


@dataclass(frozen=True)
class Default:
    """A chosen value and the reason."""

    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts of a machine that do not depend on its load; with a time budget, also its measured speed and the time left."""

    cores: int = 2
    gflops: float = 110.0
    """10^9 operations per second in the convolutions of a training step, all cores together, roughly"""
    gpu: str | None = None
    seconds: float | None = None
    """for training and its preparation, if there is a budget"""

    @classmethod
    def here(cls, device: str | None = None) -> Machine:
        """This machine, for training on ``device``."""
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
    """The facts of a data set of any kind.

    Attributes:
        kind: "images", "table", "text" or "arrays".
        num_train: training samples, 1 or more.
        num_classes: None for real-valued targets.
        survey: of a folder whose images are resized; None for data of a fixed shape.
        shape: of one sample, if known.
    """

    kind: str
    num_train: int
    num_classes: int | None
    survey: Survey | None = None
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, data: Data, survey: Survey | None = None) -> DataFacts:
        """The facts of loaded data."""
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
    """Defaults, chosen one by one; values given by the user take precedence."""

    given: Mapping[str, Any]
    made: dict[str, Default] = field(default_factory=dict)

    def put(self, name: str, value: Any, why: str) -> Any:
        """Choose a default unless the user gave a value; return the value that applies."""
        own = self.given.get(name)
        self.made[name] = Default(value, why) if own is None else Default(own, "given")
        return self.made[name].value

    def __getitem__(self, name: str) -> Any:
        return self.made[name].value
