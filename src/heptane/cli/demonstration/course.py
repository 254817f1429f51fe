"""The race of the demonstration, and how much of it fits the time there is on this machine.

What is fixed here (learning rate, peak, target, length of the cycle) was tried out beforehand, with seeds that do not race:
see ``benchmarks/LOG.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.clock import median_seconds
from heptane.base.lazy import torch
from heptane.data import Data
from heptane.pretrained.models import mlp, resnet
from heptane.tricks import Tricks
from heptane.tricks.cyclical import Cyclical

if TYPE_CHECKING:
    from heptane.race.race import RaceRequest

TRICKS = Tricks(cyclical=Cyclical())  # one, so that two arms give a verdict on each trick, and the time goes into seeds
SEEDS, MOST_SEEDS = 3, 12
EVALUATE_EVERY_EPOCHS = 0.5
SPARE = 1.15  # a race is expected to take so much more than its steps: the machine has other things to do
TIMED_STEPS = 12


@dataclass(frozen=True)
class DemoRace:
    """A race: its data, model and target, and how many steps it takes, roughly.

    ``size`` is the height and width that images are reduced to, None for as they are; ``plain_epochs`` and ``all_epochs``
    are what runs without and with a cycle take to the target, ``limit_epochs`` after how many a run has missed it.
    ``network`` is resnet or mlp, for 28x28 images, and ``width`` its channels or hidden units.
    """

    data: str
    num_train: int
    num_valid: int
    size: int | None
    target: float
    plain_epochs: float
    all_epochs: float
    limit_epochs: float
    network: str = "resnet"
    width: int = 8
    batch_size: int = 64
    lr: float = 0.02
    peak: float = 10.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the training data."""
        return -(-self.num_train // self.batch_size)

    def model(self) -> Any:
        """A new network; its weights come from PyTorch's generator."""
        return resnet(width=self.width) if self.network == "resnet" else mlp(10, (1, 28, 28), self.width)

    def optimizer(self, params: Any) -> Any:
        """Plain training's own."""
        return torch.optim.SGD(params, lr=self.lr, momentum=0.9, weight_decay=5e-4)

    def parts(self, data: Data) -> tuple[Any, Any]:
        """Training and validation data, as small as this course wants them."""
        assert data.valid is not None
        return self._reduced(data.train, self.num_train), self._reduced(data.valid, self.num_valid)

    def _reduced(self, part: tuple[torch.Tensor, torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = part[0][:count], part[1][:count]
        if self.size is not None:
            images = torch.nn.functional.interpolate(images, size=(self.size, self.size), mode="area")
        return images, labels

    def request(self, data: Data, tricks: Tricks, **options: Any) -> RaceRequest:
        """The race of ``tricks`` on this task; ``options`` are further fields of :class:`RaceRequest`."""
        from heptane.core.fit_options import Plan
        from heptane.race.race import RaceExtras, RaceRequest

        extras = RaceExtras(
            fixed_seeds=True,
            tune=0,
            peak=self.peak,
            planned_epochs=self.all_epochs,
            evaluate_every_epochs=EVALUATE_EVERY_EPOCHS,
            force=True,
        )
        plan = Plan(optimizer=self.optimizer, epochs=self.limit_epochs, batch_size=self.batch_size, device="cpu")
        train, valid = self.parts(data)
        return RaceRequest(self.model, train, valid, plan, extras, target=self.target, tricks=tricks, **options)

    def seconds(self, speed: Speed) -> float:
        """What a seed takes in both arms, roughly."""
        epochs = self.plain_epochs + self.all_epochs
        training = epochs * self.steps_per_epoch * speed.step_seconds
        return SPARE * (training + epochs / EVALUATE_EVERY_EPOCHS * self.num_valid * speed.sample_seconds)


@dataclass(frozen=True)
class Speed:
    """This machine's: seconds of a training step, and of evaluating one sample."""

    step_seconds: float
    sample_seconds: float


MLP: dict[str, Any] = {"network": "mlp", "width": 64, "batch_size": 128, "lr": 0.01}  # small, so that many seeds fit
COURSES = {
    "fashion-mnist": DemoRace(
        "fashion-mnist", 20_480, 4_000, None, 0.855, plain_epochs=5.5, all_epochs=3.0, limit_epochs=14, **MLP
    ),
    "digits": DemoRace("digits", 1_024, 359, None, 0.94, plain_epochs=2.5, all_epochs=3.0, limit_epochs=15),
}


def measure(course: DemoRace, data: Data) -> Speed:
    """Time a few steps, and an evaluation: the median, after one that is not counted."""
    (images, labels), (held, _) = course.parts(data)
    model = course.model().train()
    optimizer, loss = course.optimizer(model.parameters()), torch.nn.CrossEntropyLoss()
    batch = images[: course.batch_size], labels[: course.batch_size]

    def step() -> None:
        optimizer.zero_grad()
        loss(model(batch[0]), batch[1]).backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate() -> None:
        model(held[:512])

    return Speed(median_seconds(step, repeats=TIMED_STEPS), median_seconds(evaluate, repeats=3) / len(held[:512]))


def num_seeds(course: DemoRace, seconds: float, speed: Speed) -> int:
    """How many seeds to race, 3 to 12: as many as fit.

    Args:
        course: the race.
        seconds: what the race may take.
        speed: of this machine.
    """
    return min(max(int(seconds / course.seconds(speed)), SEEDS), MOST_SEEDS)
