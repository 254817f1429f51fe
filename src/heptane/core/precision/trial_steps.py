"""Trial steps that are timed before training: on the model itself, in one precision and memory format after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, select_rows
from heptane.core.criterion import model_output
from heptane.core.losses import Criterion
from heptane.core.precision.comparison import TooSlow
from heptane.core.precision.step import PrecisionSettings
from heptane.model.memory_format import four_dimensional, store_channels_last, to_channels_last
from heptane.model.modes import enable_gradients, no_gradients

if TYPE_CHECKING:
    from heptane.model.snapshot import Snapshot

Variant = tuple[str, bool]


@contextmanager
def trial_steps(
    trick: PrecisionSettings, model: torch.nn.Module, criterion: Criterion, batch: tuple[Any, Any]
) -> Iterator[TrialSteps]:
    """Trial steps on ``batch``; at the end the model, its memory format and the random states are as before."""
    from heptane.model.snapshot import preserved_model

    with preserved_model(model, guarded=False) as snapshot:
        steps = TrialSteps(trick, model, criterion, batch, snapshot)
        try:
            yield steps
        finally:
            steps.store(False)


class TrialSteps:
    """Training steps without an update; see :func:`trial_steps`."""

    def __init__(
        self,
        trick: PrecisionSettings,
        model: torch.nn.Module,
        criterion: Criterion,
        batch: tuple[Any, Any],
        snapshot: Snapshot,
    ) -> None:
        self._trick, self._model, self._criterion, self._batch, self._snapshot = trick, model, criterion, batch, snapshot
        self._strides = [(tensor, tensor.stride()) for tensor in four_dimensional(model)]
        self._stored = False
        self._given: dict[tuple[bool, int | None], tuple[Any, Any]] = {}
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.num_rows = len(first_tensor(batch[0]))

    def step(self, variant: Variant, num_rows: int | None) -> None:
        """One forward and backward pass, starting without gradients."""
        dtype, channels_last = variant
        inputs, targets = self._rows(channels_last, num_rows)
        slot = self._trick.build(dtype, self.device.type)
        for parameter in self._model.parameters():
            parameter.grad = None
        with enable_gradients():
            with slot.autocast():
                output = model_output(self._criterion, self._model, inputs, targets)
            slot.backward(self._criterion.mean(slot.to_fp32(output), targets))

    def first_step(self, variant: Variant, num_rows: int | None) -> None:
        """A step from the original state; None: on the whole batch."""
        with self.watched(lambda: False):
            self.step(variant, num_rows)

    def forward(self, channels_last: bool, num_rows: int, training: bool) -> None:
        """One forward pass in fp32, in train or eval mode."""
        inputs, targets = self._rows(channels_last, num_rows)
        self._model.train(training)
        with self._snapshot.guard(), no_gradients():
            model_output(self._criterion, self._model, inputs, targets)

    @contextmanager
    def watched(self, over: Callable[[], bool]) -> Iterator[None]:
        """A context for a first step from the original state: it detects writes to parameters and stops when ``over()`` is
        true."""
        self._snapshot.restore()
        self._model.train()

        def look(*_: Any) -> None:
            if over():
                raise TooSlow

        compiled = any(hasattr(module, "_orig_mod") for module in self._model.modules())
        hooks = [] if compiled else [m.register_forward_pre_hook(look) for m in self._model.modules()]
        for parameter in self._model.parameters():
            if parameter.requires_grad and parameter.is_leaf:
                hooks.append(parameter.register_post_accumulate_grad_hook(look))  # type: ignore[no-untyped-call]
        try:
            with self._snapshot.guard():
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def store(self, channels_last: bool) -> None:
        """Convert the model in place to channels last, or back to its original memory format, tensor by tensor."""
        if channels_last == self._stored:
            return
        if channels_last:
            store_channels_last(self._model)
        else:
            for tensor, strides in self._strides:
                before = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
                tensor.data = before.copy_(tensor.data)
        self._snapshot.follow(tensor for tensor, _ in self._strides)
        self._stored = channels_last

    def _rows(self, channels_last: bool, num_rows: int | None) -> tuple[Any, Any]:
        """The first samples of the batch, with the model and them in this memory format."""
        self.store(channels_last)
        if (channels_last, num_rows) not in self._given:
            inputs, targets = select_rows(self._batch, slice(num_rows))
            self._given = {key: held for key, held in self._given.items() if key[1] == num_rows}
            self._given[channels_last, num_rows] = (to_channels_last(inputs) if channels_last else inputs), targets
        return self._given[channels_last, num_rows]
