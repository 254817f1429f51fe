"""Keep the weights of a run's best evaluation: one copy on the CPU, restored when training ends.

Of equal evaluations the later one counts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from heptane.base.lazy import torch
from heptane.base.tree import local_part
from heptane.core.run import Run

LOSS = "a loss"  # prefix of a loss's tensors; the space keeps it apart from the model's


class BestWeights:
    """A copy of parameters, buffers and extra state of the model, and of a trainable loss, at the best evaluation.

    Of a sharded model, each worker keeps its own part. Parameters that stay frozen are not copied.

    Args:
        run: the run whose model is copied.
        wanted: False: copy nothing.
    """

    def __init__(self, run: Run, wanted: bool = True) -> None:
        self.run, self.wanted = run, wanted
        self.step: int | None = None
        """the step of the copy; None: there is no copy"""
        self._tensors: dict[str, torch.Tensor] = {}
        self._extra: dict[str, Any] = {}

    def take(self, step: int) -> None:
        """Copy the model as it is now, with the weights that were evaluated (averaged ones included)."""
        if not self.wanted:
            return
        same = len(self.run.phases) == 1  # else parameters that are frozen now may train in a later phase
        written = {id(tensor) for tensor in self.run.buffers.written}
        found = {name: tensor for name, tensor in self._held() if not same or _changes(tensor) or id(tensor) in written}
        kept, self._tensors = self._tensors, {}
        with torch.no_grad():
            for name, tensor in found.items():
                mine, before = local_part(tensor), kept.pop(name, None)
                if before is not None and (before.shape, before.dtype) == (mine.shape, mine.dtype) and _is_dense(mine):
                    self._tensors[name] = before.copy_(mine)  # reuse the memory
                else:
                    self._tensors[name] = mine.detach().to("cpu", copy=True)
        self._extra = {name: copy.deepcopy(module.get_extra_state()) for name, module in _with_extra(self.run.model)}
        self.step = step

    def _held(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the model and of the loss."""
        yield from _tensors(self.run.model)
        if self.run.loss is not None:
            own = {id(tensor) for _, tensor in _tensors(self.run.model)}
            yield from ((f"{LOSS}.{name}", held) for name, held in _tensors(self.run.loss) if id(held) not in own)

    def drop(self) -> None:
        """Forget the copy: the run was rewound before its step, or it is on disk."""
        self.step, self._tensors, self._extra = None, {}, {}

    def put_back(self) -> None:
        """Restore the copy into the model."""
        modules = dict(self.run.model.named_modules(remove_duplicate=False))
        if self.run.loss is not None:
            modules |= {f"{LOSS}.{name}".rstrip("."): module for name, module in self.run.loss.named_modules()}
        own = dict(self._held())
        with torch.no_grad():
            for name, kept in self._tensors.items():
                tensor = own.get(name)
                mine = None if tensor is None else local_part(tensor)
                if mine is not None and _is_dense(mine) and mine.shape == kept.shape:
                    mine.copy_(kept)
                else:  # a buffer of another size, or a sparse one
                    owner, _, short = name.rpartition(".")
                    modules[owner]._buffers[short] = kept.to(self.run.place.device, copy=True)
        for name, state in self._extra.items():
            modules[name].set_extra_state(copy.deepcopy(state))


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, including non-persistent buffers."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided


def _changes(tensor: torch.Tensor) -> bool:
    """Whether a step may change a tensor: a buffer, or a trainable parameter."""
    return tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter)


def _with_extra(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            yield name, module
