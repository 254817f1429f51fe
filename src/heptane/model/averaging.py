"""Averaged weights: an exponential moving average that is evaluated and returned in place of the last step's.

Equation
    After applied step n (from 1): a <- d * a + (1 - d) * w, with d = min(decay, (1 + n) / (10 + n)), so that the first steps
    are soon forgotten.

Source
    Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30(4).
    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", arXiv:1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from heptane.base.lazy import torch
from heptane.model.names import clean_name

OF_LOSS = "of the loss: "  # before the number of one of its parameters, which no model has in a name


class Average:
    """The average of a model's parameters, and of a loss's; buffers, such as BatchNorm's statistics, stay their own.

    Args:
        model: after it was sharded, if it is.
        decay: d of the equation, in (0, 1).
        of_loss: the parameters that train with the model's.
    """

    def __init__(self, model: torch.nn.Module, decay: float, of_loss: Sequence[torch.nn.Parameter] = ()) -> None:
        self.decay = decay
        named = {clean_name(model, name): p for name, p in model.named_parameters()}
        named |= {f"{OF_LOSS}{at}": p for at, p in enumerate(of_loss)}
        named = {name: p for name, p in named.items() if p.is_floating_point() or p.is_complex()}
        self._names, self._parameters = list(named), list(named.values())
        self._kept = [p.detach().clone() for p in self._parameters]

    def update(self, number: int) -> None:
        """After applied step ``number``, from 1."""
        weight = 1 - min(self.decay, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_([_local(k) for k in self._kept], [_local(p.detach()) for p in self._parameters], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model and the loss have the average; after, bit for bit what it had before."""
        before = [p.detach().clone() for p in self._parameters]
        self.take_over()
        try:
            yield
        finally:
            _copy(before, self._parameters)

    def take_over(self) -> None:
        """Put the average into the model and the loss for good."""
        _copy(self._kept, self._parameters)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        return dict(zip(self._names, self._kept, strict=True))

    def load_state(self, state: dict[str, Any]) -> None:
        """What :meth:`state` gave."""
        _copy([state[name] for name in self._names], self._kept)


def _local(tensor: Any) -> torch.Tensor:
    """This worker's part of a sharded tensor; no operation takes sharded and other ones together."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def _copy(source: list[torch.Tensor], target: list[Any]) -> None:
    with torch.no_grad():
        for ours, theirs in zip(target, source, strict=True):
            ours.copy_(theirs)
