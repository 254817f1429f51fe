"""Check before training that a run's state can be saved."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.model.names import clean_state
from heptane.model.packing import pack

if TYPE_CHECKING:
    from heptane.core.run import Run


def check_savable(run: Run) -> None:
    """Refuse a model or an optimizer with state that a checkpoint cannot hold.

    Optimizers create state in their first step. So a copy of a custom optimizer makes a step on a parameter of two numbers;
    random states are preserved.

    Raises:
        InputError: names the entry and its type.
    """
    try:
        pack(clean_state(run.model), "model", {})
        pack(run.optimizer.state_dict(), "optimizer", {})
        pack(_after_a_step(run.optimizer), "optimizer", {})
    except InputError as error:
        remedy = "keep it out of the state dict, or leave out run_dir (--out), so that nothing is saved"
        raise InputError(f"this run could not be saved: {error}; {remedy}") from None


def _after_a_step(optimizer: torch.optim.Optimizer) -> Any:
    """The state dict after one step on a small parameter; None if that is not possible."""
    if type(optimizer).__module__.startswith("torch.optim"):
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    small = torch.nn.Parameter(torch.zeros(2))
    try:
        with torch.random.fork_rng(devices=[]):
            made: Any = object.__new__(type(optimizer))
            memo: dict[int, Any] = {id(p): small for p in parameters}
            for name, value in optimizer.__dict__.items():
                hooks = name.endswith("_hooks")  # user hooks must not see this step
                made.__dict__[name] = OrderedDict() if hooks else copy.deepcopy(value, memo)
            del made.param_groups[1:]
            made.param_groups[0]["params"] = [small]
            made.state.clear()
            small.grad = torch.zeros(2)
            made.step()
            state = made.state_dict()
    except Exception:  # needs a closure, sparse gradients or matrices: its first checkpoint will show
        return None
    try:
        made.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise InputError(
            f"{type(optimizer).__name__} cannot load the state that it saves ({one_line(error)}): keep only tensors "
            "and numbers in its state dict"
        ) from error
    return state
