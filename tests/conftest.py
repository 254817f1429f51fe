"""What all tests share: one thread count, small data, and the names that doctests may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
import torch

import heptane as hp

os.environ["HEPTANE_PROGRESS"] = "off"  # what is printed must not depend on how busy the machine is


@pytest.fixture(autouse=True)
def _fresh_random_state() -> None:
    torch.manual_seed(0)


@pytest.fixture
def sgd() -> Callable[..., torch.optim.SGD]:
    """A factory: SGD with momentum."""
    return lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """96 images (1, 8, 8) of 4 classes that a small model can tell apart."""
    return make_images(96)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``hp.fit`` forks its workers, which is quicker than starting them."""
    from tests.workers import launch

    import heptane.training  # noqa: F401

    monkeypatch.setattr(sys.modules["heptane.training"], "launch", launch)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a run is one word: drawing it takes longer than these runs, and has tests of its own."""
    monkeypatch.setattr("heptane.report.html.write_report", lambda record, path, pictures: path.write_text("page"))


def make_images(num_samples: int, num_classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise plus a pattern per class."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, num_classes, (num_samples,), generator=random)
    return torch.randn(num_samples, 1, 8, 8, generator=random) * 0.5 + patterns[labels], labels


def mlp(num_in: int = 64, num_classes: int = 4, seed: int = 0) -> torch.nn.Sequential:
    """The same small network each time."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(num_in, 16), torch.nn.ReLU(), torch.nn.Linear(16, num_classes)
    )


class Counting(torch.nn.Module):
    """A layer that counts its training passes, and ``then``, which makes of its output what a test wants in one of them."""

    def __init__(self, then: Callable[[Counting, torch.Tensor], torch.Tensor], layer: torch.nn.Linear | None = None) -> None:
        super().__init__()
        self.layer, self.then, self.passes = layer or torch.nn.Linear(6, 3).double(), then, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.then(self, self.layer(inputs))


__all__ = ["Counting", "hp", "make_images", "mlp"]
