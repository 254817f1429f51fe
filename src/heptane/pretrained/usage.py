"""Record the order in which a model uses its tensors, in one forward pass that leaves the model unchanged."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from heptane.model.snapshot import preserved_model


class Usage(NamedTuple):
    """When parameters and buffers are used in a forward pass, by their ids."""

    first: dict[int, int]
    """index of the first call that uses it"""
    last: dict[int, int]
    """index of the last call that uses it on the way to the output"""

    def first_of(self, module: torch.nn.Module) -> float:
        """Index of the first use of ``module`` or a part of it; infinity if it is unused."""
        return min((self.first[id(t)] for t in _own(module) if id(t) in self.first), default=float("inf"))

    def last_of(self, module: torch.nn.Module) -> int:
        """Index of its last use on the way to the output; -1 if it is unused."""
        return max((self.last[id(t)] for t in _own(module) if id(t) in self.last), default=-1)


def trace_usage(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Usage | None:
    """Run ``model`` once in eval mode and record its use of tensors; None if nothing can be recorded (TorchScript).

    Args:
        model: its modes, buffers and the random state are restored; no hook is added.
        inputs: a few samples, on the model's device.
        labels: for a model that computes its loss; zeros are passed instead, since the head may not know their classes yet.
    """
    from heptane.base.tree import tree_map
    from heptane.model.probe import eval_output

    with preserved_model(model), _Recorder() as seen:
        output = eval_output(model, inputs, None if labels is None else tree_map(torch.zeros_like, labels))
    first = {id(t): index for index, (taken, _) in reversed(list(enumerate(seen.calls))) for t in taken}
    if not any(id(parameter) in first for parameter in model.parameters()):
        return None
    return Usage(first, _last_uses(_tensors(output), seen.calls) or _last_uses(None, seen.calls))


def _last_uses(output: list[torch.Tensor] | None, calls: list[tuple[list[Any], list[Any]]]) -> dict[int, int]:
    """The last call that uses each tensor and leads to ``output``; None: any call."""
    last: dict[int, int] = {}
    leading = {id(tensor) for tensor in output or ()}
    for index, (taken, returned) in reversed(list(enumerate(calls))):
        if output is None or any(id(tensor) in leading for tensor in returned):
            for tensor in taken:
                leading.add(id(tensor))
                last.setdefault(id(tensor), index)
    return last


class _Recorder(TorchFunctionMode):
    """Records the tensors that each function takes and returns; keeping them alive keeps their ids unique."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        returned = _tensors(args[0] if function is torch.Tensor.__setitem__ else result)
        if returned:  # reading a shape or a dtype is not a use
            self.calls.append((_tensors((args, kwargs)), returned))
        return result


def _own(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
