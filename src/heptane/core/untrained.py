"""Find parameters that a custom loss holds but no optimizer trains: in a closure, an attribute or a global variable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, select_rows, tree_map
from heptane.core.custom_losses import CustomLoss

DEPTH = 4  # of nested objects that are searched


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
    own = {id(parameter) for parameter in known}
    found = {id(t): t for t in _tensors(criterion.function, DEPTH, set()) if id(t) not in own}
    reached = _reached(criterion, output, targets, list(found.values())) if found else []
    if reached:
        raise InputError(
            f"loss {getattr(criterion.function, '__name__', type(criterion.function).__name__)}: its gradient reaches "
            f"{len(reached)} parameter(s) that no optimizer trains, the first of shape {tuple(reached[0].shape)}: make the "
            "loss a torch.nn.Module that has them as parameters, or call requires_grad_(False) on them"
        )


def _reached(criterion: CustomLoss, output: Any, targets: Any, held: list[torch.Tensor]) -> list[torch.Tensor]:
    """Those of ``held`` that receive a gradient from the loss of a few samples."""

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            loss = criterion.mean(tree_map(leaf, output), select_rows(targets, slice(len(first_tensor(output)))))
            grads = torch.autograd.grad(loss, held, allow_unused=True)
    except Exception as error:  # other errors of the loss are reported by the checks that follow
        return held if "not differentiable with respect to argument" in str(error) else []
    return [tensor for tensor, grad in zip(held, grads, strict=True) if grad is not None]


def _tensors(value: Any, depth: int, seen: set[int]) -> Iterator[torch.Tensor]:
    """Trainable tensors reachable from a value: closures, globals and arguments of a function, attributes of an object."""
    if isinstance(value, torch.Tensor):
        if value.is_leaf and value.requires_grad:
            yield value
        return
    if depth < 0 or id(value) in seen or isinstance(value, (str, bytes, int, float, type, ModuleType, BuiltinFunctionType)):
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, torch.nn.Module):
        inner = [*value.parameters(), *vars(value).values()]
    elif isinstance(value, partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        inner = [value.__self__, value.__func__]
    elif isinstance(value, FunctionType):
        if value.__module__.partition(".")[0] not in ("torch", "heptane"):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
            named = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
            inner = [*cells, *named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)
    elif type(value).__module__.partition(".")[0] not in ("torch", "heptane", "numpy"):
        inner = list(getattr(value, "__dict__", {}).values())
    for held in inner:
        yield from _tensors(held, depth - 1, seen)


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
