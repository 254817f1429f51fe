"""In which order a model uses its tensors, seen in one forward pass that leaves no mark."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from heptane.model.snapshot import preserved_model


class Usage(NamedTuple):
    """Moments of a forward pass, by the id of a parameter or buffer."""

    first: dict[int, int]
    """when it was used first"""
    last: dict[int, int]
    """when it was used last on the way to the output"""

    def first_of(self, module: torch.nn.Module) -> float:
        """When ``module``, or a part of it, was used first; infinity for never."""
        return min((self.first[id(t)] for t in _own(module) if id(t) in self.first), default=float("inf"))

    def last_of(self, module: torch.nn.Module) -> int:
        """When it was used last on the way to the output; -1 for never."""
        return max((self.last[id(t)] for t in _own(module) if id(t) in self.last), default=-1)


def trace_usage(model: torch.nn.Module, inputs: Any, labels: Any = None) -> Usage | None:
    """Run ``model`` once, as an evaluation does, and see when it uses what; None where nothing can be seen (TorchScript).

    Args:
        model: its modes, buffers and the random state are put back; no hook is set.
        inputs: a few samples, on the model's device.
        labels: of a model that computes its loss itself; zeros stand in for them: the head may not know their classes yet.
    """
    from heptane.base.tree import tree_map
    from heptane.model.probe import eval_output

    with preserved_model(model), _Watch() as seen:
        output = eval_output(model, inputs, None if labels is None else tree_map(torch.zeros_like, labels))
    first = {id(t): moment for moment, (taken, _) in reversed(list(enumerate(seen.calls))) for t in taken}
    if not any(id(parameter) in first for parameter in model.parameters()):
        return None
    return Usage(first, _towards(_tensors(output), seen.calls) or _towards(None, seen.calls))


def _towards(output: list[torch.Tensor] | None, calls: list[tuple[list[Any], list[Any]]]) -> dict[int, int]:
    """The last use of each tensor by a call that leads to ``output``; None: by any."""
    last: dict[int, int] = {}
    leading = {id(tensor) for tensor in output or ()}
    for moment, (taken, made) in reversed(list(enumerate(calls))):
        if output is None or any(id(tensor) in leading for tensor in made):
            for tensor in taken:
                leading.add(id(tensor))
                last.setdefault(id(tensor), moment)
    return last


class _Watch(TorchFunctionMode):
    """Notes the tensors that each function takes and makes, and keeps them, so that their ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = _tensors(args[0] if function is torch.Tensor.__setitem__ else result)
        if made:  # a function that asks for a shape or a type makes no tensor, and is no use
            self.calls.append((_tensors((args, kwargs)), made))
        return result


def _own(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
