"""Whether a run's state can be saved, found out before anything is trained."""

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
    """Refuse a model or an optimizer with state that a checkpoint does not hold.

    What an optimizer keeps is there after its first step only: one that is not PyTorch's own is tried on a parameter of two
    numbers, in a copy, and the random state is put back.

    Raises:
        InputError: it names the entry and its type.
    """
    try:
        pack(clean_state(run.model), "model", {})
        pack(run.optimizer.state_dict(), "optimizer", {})
        pack(_after_a_step(run.optimizer), "optimizer", {})
    except InputError as error:
        remedy = "keep that outside the state dict, or leave out run_dir (--out), which saves"
        raise InputError(f"this run could not be saved: {error}; {remedy}") from None


def _after_a_step(optimizer: torch.optim.Optimizer) -> Any:
    """The state dict that one step on a small parameter leaves; None where that cannot be tried."""
    if type(optimizer).__module__.startswith("torch.optim"):
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    small = torch.nn.Parameter(torch.zeros(2))
    try:
        with torch.random.fork_rng(devices=[]):
            made: Any = object.__new__(type(optimizer))
            memo: dict[int, Any] = {id(p): small for p in parameters}
            for name, value in optimizer.__dict__.items():
                hooks = name.endswith("_hooks")  # the user's, who would see a step that is none
                made.__dict__[name] = OrderedDict() if hooks else copy.deepcopy(value, memo)
            del made.param_groups[1:]
            made.param_groups[0]["params"] = [small]
            made.state.clear()
            small.grad = torch.zeros(2)
            made.step()
            state = made.state_dict()
    except Exception:  # it needs a closure, sparse gradients or matrices: its first checkpoint will tell
        return None
    try:
        made.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise InputError(
            f"{type(optimizer).__name__} does not load the state that it saves ({one_line(error)}): keep tensors "
            "and numbers in it"
        ) from error
    return state
