"""Weight averaging: an exponential moving average, evaluated and returned in place of the last weights.

Equation
    After applied step n (from 1): a <- d * a + (1 - d) * w, with d = min(decay, (1 + n) / (10 + n)), so that early weights
    are forgotten quickly.

Source
    Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30(4).
    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", arXiv:1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import local_part
from heptane.model.names import clean_name

OF_LOSS = "of the loss: "  # prefix of a loss parameter's number; no model parameter has such a name


class Average:
    """Moving average of the parameters of a model and its loss; buffers, such as BatchNorm's statistics, are not averaged.

    Args:
        model: the model; if it is sharded, after sharding.
        decay: d in the equation, in (0, 1).
        of_loss: trainable parameters of the loss.
    """

    def __init__(self, model: torch.nn.Module, decay: float, of_loss: Sequence[torch.nn.Parameter] = ()) -> None:
        self.decay = decay
        named = {clean_name(model, name): p for name, p in model.named_parameters()}
        named |= {f"{OF_LOSS}{at}": p for at, p in enumerate(of_loss)}
        named = {name: p for name, p in named.items() if p.is_floating_point() or p.is_complex()}
        self._names, self._parameters = list(named), list(named.values())
        self._averages = [p.detach().clone() for p in self._parameters]

    def update(self, number: int) -> None:
        """Update the average after applied step ``number``, from 1."""
        weight = 1 - min(self.decay, (1 + number) / (10 + number))
        # of sharded tensors this worker's part: foreach operations cannot mix sharded and plain tensors
        averages = [local_part(average) for average in self._averages]
        with torch.no_grad():
            torch._foreach_lerp_(averages, [local_part(p.detach()) for p in self._parameters], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model and the loss the averaged weights inside; restore their own at the end."""
        before = [p.detach().clone() for p in self._parameters]
        self.take_over()
        try:
            yield
        finally:
            _copy(before, self._parameters)

    def take_over(self) -> None:
        """Replace the weights of the model and the loss by the average."""
        _copy(self._averages, self._parameters)

    def state(self) -> dict[str, torch.Tensor]:
        """The averages by parameter name, for a checkpoint."""
        return dict(zip(self._names, self._averages, strict=True))

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state` returned."""
        _copy([state[name] for name in self._names], self._averages)


def _copy(source: list[torch.Tensor], target: list[Any]) -> None:
    with torch.no_grad():
        for new, old in zip(target, source, strict=True):
            new.copy_(old)
