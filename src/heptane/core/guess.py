"""Guess the loss from outputs and targets if none is given; targets with two readings are refused.

A guess is noted with its reason. An error names both readings, and how to request each.
"""

from __future__ import annotations

from heptane.base.errors import InputError
from heptane.base.lazy import torch

BINARY, CLASSES, REAL = "binary_cross_entropy", "cross_entropy", "mse"
NUMBERS = REAL, "the targets are real numbers"
AS_NUMBERS, AS_FLOATS = f"real numbers: pass loss={REAL!r}", f"real numbers: pass targets.float(), or loss={REAL!r}"
SHOWN = 3  # values of the targets in a message


def guess_loss(output: torch.Tensor, targets: torch.Tensor) -> tuple[str, str]:
    """The name of the loss for ``targets``, all of them or a batch, and the reason.

    Args:
        output: of the model for a few samples; only its shape matters.
        targets: of any dtype.

    Raises:
        InputError: the targets have two readings.

    Example:
        >>> guess_loss(torch.zeros(2, 1), torch.tensor([0.0, 1.0, 1.0]))
        ('binary_cross_entropy', 'the targets are 0 and 1, and there is one logit for each')
    """
    if output.shape[1:].numel() != targets.shape[1:].numel():
        return _per_class(output, targets)
    if output.shape[1:].numel() == 1:
        return _one_output(targets)
    return _element_by_element(output, targets)


def _one_output(targets: torch.Tensor) -> tuple[str, str]:
    """Outputs and targets of shape (N,) or (N, 1)."""
    if _within(targets, 0, 1) and _whole(targets):
        return BINARY, "the targets are 0 and 1, and there is one logit for each"
    if _only(targets, -1, 1):
        raise _two_ways(targets, "one output", "two classes: pass (targets > 0).float()", AS_NUMBERS)
    if targets.is_floating_point():
        return NUMBERS
    raise _two_ways(targets, "one output", "classes: give the model an output for each", AS_FLOATS)


def _per_class(output: torch.Tensor, targets: torch.Tensor) -> tuple[str, str]:
    """More outputs than targets: classes, or a mistake."""
    if not targets.is_floating_point():
        return CLASSES, f"the targets are {'two' if targets.dtype is torch.bool else 'integer'} classes"
    beside = f"outputs of shape {tuple(output.shape[1:])} per sample"
    if _whole(targets) and _within(targets, 0, max(output.shape[1:], default=1) - 1):
        as_numbers = f"{AS_NUMBERS}, and a model with one output"
        raise _two_ways(targets, beside, "class indices: pass targets.long()", as_numbers)
    return NUMBERS  # the criterion refuses their shape


def _element_by_element(output: torch.Tensor, targets: torch.Tensor) -> tuple[str, str]:
    """As many outputs as targets, and more than one."""
    columns = f"as many outputs, {tuple(output.shape[1:])} per sample"
    one_of_many = targets.ndim > 1 and targets.shape[1] > 1 and targets.shape[1:] == output.shape[1:]
    if not _within(targets, 0, 1):
        return _beyond(targets, columns)
    sums_to_one = one_of_many and torch.allclose(targets.sum(1).double(), torch.ones((), dtype=torch.double), atol=1e-4)
    if sums_to_one and targets.is_floating_point() and targets.ndim == 2:
        return CLASSES, "the targets are distributions, each row sums to 1"
    if sums_to_one:
        classes, labels = f"one of {targets.shape[1]} classes: pass", "labels, several of which may be true: pass"
        if targets.is_floating_point():
            columns += ", which sum to 1 over the classes"
            raise _two_ways(targets, columns, f"{classes} loss={CLASSES!r}", f"{labels} loss={BINARY!r}")
        columns += ", with a single 1 in each row"
        raise _two_ways(targets, columns, f"{classes} targets.argmax(1)", f"{labels} targets.float() and loss={BINARY!r}")
    if _whole(targets):
        return BINARY, "the targets are several labels, each 0 or 1"
    if targets.ndim > 2:
        return NUMBERS
    raise _two_ways(targets, columns, f"probabilities of labels: pass loss={BINARY!r}", AS_NUMBERS)


def _beyond(targets: torch.Tensor, columns: str) -> tuple[str, str]:
    """Elementwise targets that are not all in [0, 1]."""
    if _within(targets, -1, 1) and _whole(targets):
        raise _two_ways(targets, columns, f"labels: pass (targets > 0).float() and loss={BINARY!r}", AS_NUMBERS)
    if targets.is_floating_point():
        return NUMBERS
    raise _two_ways(targets, columns, "classes: give the model outputs (N, classes, ...)", AS_FLOATS)


def _two_ways(targets: torch.Tensor, beside: str, first: str, second: str) -> InputError:
    found = sorted(set(targets.flatten()[:4096].double().tolist()))
    values = ", ".join([f"{value:g}" for value in found[:SHOWN]] + ["..."] * (len(found) > SHOWN))
    kind = str(targets.dtype).removeprefix("torch.")
    return InputError(
        f"loss=None: targets {values} ({kind}, {tuple(targets.shape[1:])} per sample) beside {beside} have "
        f"two readings: as {first}; or as {second}"
    )


def _within(targets: torch.Tensor, low: float, high: float) -> bool:
    return targets.dtype is torch.bool or bool(((targets >= low) & (targets <= high)).all())


def _whole(targets: torch.Tensor) -> bool:
    return not targets.is_floating_point() or bool((targets == targets.round()).all())


def _only(targets: torch.Tensor, *values: float) -> bool:
    known = torch.tensor(values, dtype=torch.double, device=targets.device)
    return bool(torch.isin(targets.double(), known).all())
