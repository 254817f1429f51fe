"""The same network and tensors, trained as the documentation of each library recommends: one function each.

Each takes the network, the training tensors, the learning rate, the planned epochs, a seed and a
:class:`watch.Watch`. ``PEERS`` has the first learning rate of each, and whether its length must be planned.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from watch import Watch

import heptane as hp

Data = tuple[Tensor, Tensor]
BATCH = 64


def loader(data: Data, batch: int = BATCH) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data), batch_size=batch, shuffle=True)


def plain(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """A tutorial's loop: a DataLoader, Adam with a constant learning rate, fp32."""
    optimizer, loss_function = torch.optim.Adam(model.parameters(), lr=rate), nn.CrossEntropyLoss()
    batches = loader(data)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
        if watch.look(model):
            break


def heptane(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """The recommended tricks as in ``heptane train``, with progressive resizing."""
    sgd = partial(torch.optim.SGD, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    tricks, small = hp.Tricks.recommended(epochs=epochs), hp.Extras(resize=hp.ProgressiveResize(size=20, until=0.6))
    for step in hp.train(model, data, optimizer=sgd, epochs=epochs, batch_size=128, tricks=tricks, seed=seed, extras=small):
        if step.ends_epoch and watch.look(model):
            break


def fastai(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """``fit_one_cycle`` with label smoothing."""
    from fastai.callback.core import Callback, CancelFitException
    from fastai.callback.progress import ProgressCallback
    from fastai.callback.schedule import Learner  # it carries fit_one_cycle
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastLoader
    from fastai.losses import LabelSmoothingCrossEntropy

    class Look(Callback):
        def after_train(self) -> None:
            if watch.look(model):
                raise CancelFitException

    train = FastLoader(TensorDataset(*data), bs=BATCH, shuffle=True, num_workers=0)
    few = FastLoader(TensorDataset(data[0][:BATCH], data[1][:BATCH]), bs=BATCH, num_workers=0)
    learner = Learner(DataLoaders(train, few), model, loss_func=LabelSmoothingCrossEntropy())
    learner.remove_cb(ProgressCallback)
    with learner.no_logging():
        learner.fit_one_cycle(epochs, rate, cbs=[Look()])


def lightning(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """A LightningModule with Adam; logging, checkpoints and progress bar are off, in its favour."""
    import lightning as L

    class Task(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Data, _: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=rate)

    class Look(L.Callback):
        def on_train_epoch_end(self, trainer: Any, _: Any) -> None:
            trainer.should_stop = watch.look(model)

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[Look()], **off)
    trainer.fit(Task(), loader(data))


def accelerate(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """Its computer vision example: Adam with PyTorch's OneCycleLR, everything prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    batches = loader(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate / 25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=len(batches))
    prepared, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)
    for _ in range(epochs):
        for x, y in batches:
            loss = nn.functional.cross_entropy(prepared(x), y)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if watch.look(model):
            break


def composer(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """The recipe of its quick start: label smoothing, CutMix and channels last, with Adam."""
    from composer import Callback, Trainer
    from composer.algorithms import ChannelsLast, CutMix, LabelSmoothing
    from composer.models import ComposerClassifier

    class Look(Callback):
        def epoch_end(self, state: Any, logger: Any) -> None:
            if watch.look(model):
                state.stop_training()

    trainer = Trainer(
        model=ComposerClassifier(model, num_classes=10),
        train_dataloader=loader(data, 128),
        max_duration=f"{epochs}ep",
        optimizers=torch.optim.Adam(model.parameters(), lr=rate),
        algorithms=[LabelSmoothing(smoothing=0.1), CutMix(alpha=1.0), ChannelsLast()],
        callbacks=[Look()],
        progress_bar=False,
        device="cpu",
        seed=seed,
    )
    trainer.fit()


def keras(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """``compile`` and ``fit`` with Adam and batches of 128 (its convnet example), the network in a TorchModuleWrapper."""
    import keras as k

    class Look(k.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = watch.look(model)

    network = k.Sequential([k.layers.TorchModuleWrapper(model)])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=k.optimizers.Adam(rate), loss=loss)
    network.fit(data[0].numpy(), data[1].numpy(), batch_size=128, epochs=epochs, verbose=0, callbacks=[Look()])


def skorch(model: nn.Module, data: Data, rate: float, epochs: int, seed: int, watch: Watch) -> None:
    """A NeuralNetClassifier with Adam and its batch of 128, shuffled, without its own validation split."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback

    class Look(Callback):
        def on_epoch_end(self, net: Any, **_: Any) -> None:
            if watch.look(net.module_):
                raise KeyboardInterrupt  # how skorch is stopped

    net = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=rate,
        max_epochs=epochs,
        batch_size=128,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[Look()],
        verbose=0,
    )
    with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.fit(data[0].numpy(), data[1].numpy())


@dataclass(frozen=True)
class Peer:
    """A loop, the rate that its documentation begins with, whether its schedule must know its length, and which other peer
    does the same arithmetic, so that the two share their tuning."""

    loop: Callable[..., None]
    rate: float
    planned: bool = False
    trains_as: str | None = None


PEERS = {
    "plain": Peer(plain, 1e-3),
    "heptane": Peer(heptane, 0.3, planned=True),
    "fastai": Peer(fastai, 3e-3, planned=True),
    "lightning": Peer(lightning, 1e-3, trains_as="plain"),
    "accelerate": Peer(accelerate, 1e-2, planned=True),
    "composer": Peer(composer, 1e-3),
    "keras": Peer(keras, 1e-3, trains_as="skorch"),
    "skorch": Peer(skorch, 1e-3),
}
