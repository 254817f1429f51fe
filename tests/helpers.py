"""What many tests build: small models, data that they can learn, optimizers, runs with common settings, the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import heptane as hp
from heptane.core.run import Run
from heptane.session.checkpoints import checkpoint

Pair = tuple[torch.Tensor, torch.Tensor]
Factory = Callable[[Any], torch.optim.Optimizer]


# Models


def mlp(num_in: int = 64, num_classes: int = 4, seed: int = 0) -> torch.nn.Sequential:
    """The same small network each time."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(num_in, 16), torch.nn.ReLU(), torch.nn.Linear(16, num_classes)
    )


def seeded(seed: int) -> torch.nn.Linear:
    """One layer, from 4 features to 3 classes."""
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 3)


class Counting(torch.nn.Module):
    """A layer that counts its training passes, and ``then``, which makes of its output what a test wants in one of them."""

    def __init__(self, then: Callable[[Counting, torch.Tensor], torch.Tensor], layer: torch.nn.Linear | None = None) -> None:
        super().__init__()
        self.layer, self.then, self.passes = layer or torch.nn.Linear(6, 3).double(), then, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.then(self, self.layer(inputs))


def net(*between: torch.nn.Module, dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    """For :func:`points`, with ``between`` after its first layer."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), *between, torch.nn.Tanh(), torch.nn.Linear(5, 3)).to(dtype)


def weights(trained: torch.nn.Module | hp.Result) -> torch.Tensor:
    """All parameters and buffers of a model as one vector."""
    model: torch.nn.Module = trained.model if isinstance(trained, hp.Result) else trained
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], atol: float = 1e-12) -> None:
    """The same names, and values that are the same up to rounding."""
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(theirs[key]), rtol=0, atol=atol, msg=key)


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """Parameters and buffers are the same bit for bit."""
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"{name} differs by {(a - b).abs().max():.3g}"


# Data


def make_images(num_samples: int, num_classes: int = 4, seed: int = 0) -> Pair:
    """Images (1, 8, 8): noise plus a pattern per class."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, num_classes, (num_samples,), generator=random)
    return torch.randn(num_samples, 1, 8, 8, generator=random) * 0.5 + patterns[labels], labels


def random_data(num_samples: int = 64) -> Pair:
    """Four features, and labels of 3 classes that have nothing to do with them."""
    random = torch.Generator().manual_seed(5)
    return torch.randn(num_samples, 4, generator=random), torch.randint(0, 3, (num_samples,), generator=random)


def points(dtype: torch.dtype = torch.float64) -> Pair:
    """22 samples of 6 features in 3 classes: batches of 8, 8 and 6."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(22, 6, generator=random, dtype=dtype), torch.randint(0, 3, (22,), generator=random)


# Training


def sgd(params: Any, lr: float = 0.1, momentum: float = 0.9, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=momentum, **more)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def fit(model: torch.nn.Module, train: Any, valid: Any = None, **settings: Any) -> hp.Result:
    """``hp.fit`` with SGD for two epochs of batches of 16, where a test does not say otherwise."""
    batch_size = None if isinstance(train, DataLoader) else 16
    common = {"optimizer": sgd, "epochs": 2, "batch_size": batch_size}
    return hp.fit(model, train, valid, **{**common, **settings})


TRAIN, VALID = make_images(48), make_images(30, seed=1)


def fit_mlp(run_dir: Path | None = None, valid: Any = VALID, **settings: Any) -> hp.Result:
    """Four epochs of :func:`mlp` on images."""
    return fit(mlp(), TRAIN, valid, **{"epochs": 4, "run_dir": run_dir, **settings})


def rows_by_step(num_samples: int, batch_size: int, epochs: int = 1, seed: int = 0) -> Iterator[torch.Tensor]:
    """Which samples a run takes in each step."""
    for epoch in range(epochs):
        yield from hp.epoch_order(num_samples, seed, epoch).split(batch_size)


def shuffled(data: tuple[Any, torch.Tensor], batch_size: int, epochs: int = 1, seed: int = 0) -> Iterator[tuple[Any, Any]]:
    """The batches of a run, in its order."""
    x, y = data
    for rows in rows_by_step(len(y), batch_size, epochs, seed):
        yield {name: value[rows] for name, value in x.items()} if isinstance(x, dict) else x[rows], y[rows]


def on_output(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The loss of a model, its inputs and targets that is ``loss`` of its output and the targets."""
    return lambda model, inputs, targets: loss(model(inputs), targets)


CROSS_ENTROPY = on_output(torch.nn.functional.cross_entropy)


def steps_by_hand(
    model: torch.nn.Module,
    batches: Iterable[tuple[Any, Any]],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[..., torch.Tensor] = CROSS_ENTROPY,
    clip_norm: float | None = None,
) -> Iterator[torch.Tensor]:
    """The plain PyTorch loop, with its loss after each step."""
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        yield loss.detach()


def by_hand(model: torch.nn.Module, batches: Iterable[tuple[Any, Any]], optimizer: Factory = sgd, **more: Any) -> Any:
    """``model`` after the plain PyTorch loop; ``more`` as for :func:`steps_by_hand`."""
    for _ in steps_by_hand(model, batches, optimizer(model.parameters()), **more):
        pass
    return model


# Checkpoints


def save_checkpoint(run: Run, step: int, history: list[dict[str, Any]], folder: Path, keep: int = 1) -> Path:
    """Write a checkpoint of ``step``, and remove all but the newest ``keep``."""
    path = checkpoint.write(checkpoint.take_snapshot(run, step, history), folder, run)
    checkpoint.prune(folder, keep)
    return path


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in ``folder``, newest first."""
    return sorted((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), reverse=True)
