"""Find parameters that a custom loss holds but no optimizer trains: in a closure, an attribute or a global variable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, select_rows, tree_map
from heptane.core.custom_losses import CustomLoss
from heptane.model.outputs import autograd_graph


def check_buffers(loss: torch.nn.Module) -> None:
    """Refuse a loss with a buffer that requires a gradient, as ``CrossEntropyLoss(weight=Parameter)`` has: no optimizer
    trains it.

    Raises:
        InputError: it names the buffer.
    """
    for name, buffer in loss.named_buffers():
        if buffer.requires_grad:
            raise InputError(
                f"loss {type(loss).__name__}: {name} of shape {tuple(buffer.shape)} requires a gradient, but buffers are "
                f"not trained: pass {name.rpartition('.')[2]}.detach(), or make it a parameter of your own torch.nn.Module"
            )


def check_untrained(criterion: Any, output: Any, targets: Any, known: Iterable[torch.nn.Parameter]) -> None:
    """Refuse a custom loss whose gradient reaches parameters that nothing trains.

    Args:
        criterion: checked only if it is a custom loss.
        output, targets: of a few samples.
        known: the parameters of the model, and of a loss that is a module.

    Raises:
        InputError: there are such parameters; it says how to train them, or not to.
    """
    if not isinstance(criterion, CustomLoss):
        return
    own, reached = {id(parameter) for parameter in known}, list[torch.Tensor]()
    name = getattr(criterion.function, "__name__", type(criterion.function).__name__)
    output = tree_map(torch.Tensor.detach, output)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            loss = criterion.mean(tree_map(torch.clone, output), select_rows(targets, slice(len(first_tensor(output)))))
        leaves = [node.variable for node in autograd_graph(loss) if hasattr(node, "variable")]
        reached = [leaf for leaf in leaves if id(leaf) not in own]
    except Exception as error:
        if "not differentiable with respect to argument" in str(error):  # later checks report other errors
            raise InputError(
                f"loss {name}: {one_line(error)} Nothing trains it: call requires_grad_(False) on it"
            ) from error
    if reached:
        raise InputError(
            f"loss {name}: its gradient reaches {len(reached)} parameter(s) that no optimizer trains, the first of shape "
            f"{tuple(reached[0].shape)}: make the loss a torch.nn.Module that has them as parameters, or call "
            "requires_grad_(False) on them"
        )
