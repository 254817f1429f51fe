"""Choose the criterion for a given loss, or for the targets where none is given; and what it receives of the model's
output."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from heptane.base.errors import InputError, check_choice
from heptane.base.lazy import torch
from heptane.core.custom_losses import CustomLoss, ModelLoss, align_outputs, align_targets, choose_loss_input
from heptane.core.guess import guess_loss
from heptane.core.losses import Criterion, CrossEntropy, Ctc, Elementwise, Loss, can_smooth
from heptane.model.forward import call, main_output

LOSSES = {  # a name for the user, and the function in torch.nn.functional
    "cross_entropy": "cross_entropy",
    "binary_cross_entropy": "binary_cross_entropy_with_logits",
    "mse": "mse_loss",
    "l1": "l1_loss",
    "smooth_l1": "smooth_l1_loss",
}

NOT_SMOOTHED: dict[type, str] = {
    Elementwise: "loss {!r}: regression has no classes to smooth; turn it off",
    ModelLoss: "loss='model': heptane cannot smooth inside the model; leave loss out, so that it is computed from the "
    "model's logits, or turn label_smoothing off",
    CustomLoss: "a custom loss: heptane cannot smooth inside it; use loss='cross_entropy', torch.nn.CrossEntropyLoss(...), "
    "or turn label_smoothing off",
}


def model_output(criterion: Criterion, model: torch.nn.Module, inputs: Any, targets: Any) -> Any:
    """The model's output for a batch. A model that computes its own loss receives the targets too."""
    return loss_input(criterion, call(model, inputs, targets if isinstance(criterion, ModelLoss) else None))


def loss_input(criterion: Criterion, answer: Any) -> Any:
    """What the criterion receives: the main output, or the whole output if the loss takes it."""
    whole = isinstance(criterion, ModelLoss) or (isinstance(criterion, CustomLoss) and not criterion.first)
    return answer if whole else main_output(answer)[0]


def choose_criterion(
    loss: str | Loss | CrossEntropy | None, output: Any, targets: Any, smoothing: float | None
) -> tuple[Criterion, str]:
    """Choose the criterion for a loss, a model output and targets.

    Args:
        loss: a name, a ``torch.nn`` loss, a function, or None to choose by the targets.
        output, targets: of a few samples.
        smoothing: eps of label smoothing; None if it is off.

    Returns:
        The criterion, and the reason as a sentence.

    Raises:
        InputError: label smoothing that does not apply or is requested twice, a loss that is not a mean, or ambiguous
            targets.
    """
    eps, why = smoothing or 0.0, "asked for"
    answer, (output, how) = output, main_output(output)
    if loss is None:
        _check_real(loss, output, targets)
        if not isinstance(targets, torch.Tensor) or not isinstance(output, torch.Tensor):
            raise InputError("loss=None: outputs and targets that are not one tensor each need a loss; pass loss=")
        loss, why = guess_loss(output, targets)
    criterion = _by_name(loss, eps) if isinstance(loss, str) else _by_object(loss, eps)
    if not isinstance(criterion, (CustomLoss, ModelLoss)):
        _check_real(criterion.name, output, targets)
    if isinstance(criterion, CrossEntropy) and isinstance(targets, torch.Tensor) and isinstance(output, torch.Tensor):
        column = not targets.is_floating_point() and targets.shape[1:] == (1,) and output.ndim == 2
        criterion = replace(criterion, column=column)
    if isinstance(criterion, CustomLoss) and how:
        criterion = choose_loss_input(criterion, answer, answer, targets)
        output = loss_input(criterion, answer)
    if how and not isinstance(criterion, ModelLoss) and (not isinstance(criterion, CustomLoss) or criterion.first):
        why += f"; the output is {how}"
    if isinstance(criterion, CustomLoss) and isinstance(targets, torch.Tensor) and isinstance(output, torch.Tensor):
        criterion, note = align_outputs(criterion, output, targets)
        why += note
    if isinstance(criterion, CustomLoss) and isinstance(targets, torch.Tensor):
        criterion, note = align_targets(replace(criterion, shape=tuple(targets.shape[1:])), output, targets)
        why += note
    if smoothing is not None and not can_smooth(criterion):
        raise InputError(f"label_smoothing with {NOT_SMOOTHED[type(criterion)].format(criterion.name)}")
    return criterion, f"loss {criterion.name}: {why}"


def _check_real(loss: str | None, output: Any, targets: Any) -> None:
    """Refuse complex numbers, except for custom losses."""
    for what, tensor in (("outputs", output), ("targets", targets)):
        if isinstance(tensor, torch.Tensor) and tensor.is_complex():
            raise InputError(
                f"{what} of type {str(tensor.dtype).removeprefix('torch.')} and loss={loss!r}, which compares real numbers: "
                "use torch.view_as_real(...) or .abs(), or pass a custom loss, function(outputs, targets) -> mean"
            )


def loss_module(loss: Any) -> torch.nn.Module | None:
    """The module behind a loss (itself, or behind a method or partial), which is trained, saved and resumed with the run.

    None if it has no parameters or buffers.
    """
    if isinstance(loss, partial):
        return loss_module(loss.func)
    found = loss if isinstance(loss, torch.nn.Module) else getattr(loss, "__self__", None)
    return found if isinstance(found, torch.nn.Module) and (found.state_dict() or any(found.buffers())) else None


def is_classification_loss(loss: Any) -> bool:
    """Whether ``loss``, as :func:`choose_criterion` takes it, compares integer labels with one output per class."""
    if isinstance(loss, (CrossEntropy, torch.nn.CrossEntropyLoss, torch.nn.NLLLoss)):
        return True
    return loss is torch.nn.functional.cross_entropy or loss in (None, "cross_entropy", "model")


def _by_name(name: str, eps: float) -> Criterion:
    if name == "model":
        return ModelLoss()
    check_choice("loss", name, [*LOSSES, "model"])
    if name == "cross_entropy":
        return CrossEntropy(eps=eps)
    return Elementwise(name, getattr(torch.nn.functional, LOSSES[name]), eps, name == "binary_cross_entropy")


def _by_object(loss: Loss | CrossEntropy, eps: float) -> Criterion:
    nn = torch.nn
    if not isinstance(loss, CrossEntropy) and not callable(loss):
        raise InputError(f"loss={loss!r}: expected None, one of {', '.join(LOSSES)}, model, a torch.nn loss or a function")
    if getattr(loss, "reduction", "mean") != "mean":
        raise InputError(f"loss={loss!r}: expected reduction='mean', since the loss of a step is a mean")
    for name, function_name in LOSSES.items():
        if loss is getattr(nn.functional, function_name):
            return _by_name(name, eps)
    if isinstance(loss, CrossEntropy):
        return replace(loss, eps=_once(eps, loss.eps, "CrossEntropy(eps"))
    module: Any = loss
    kind = type(module)  # exact type: a subclass may compute something else, so it is a custom loss
    if kind is nn.CrossEntropyLoss:
        eps = _once(eps, module.label_smoothing, "CrossEntropyLoss(label_smoothing")
        return CrossEntropy(eps, module.weight, module.ignore_index)
    if kind is nn.NLLLoss:
        return CrossEntropy(eps, module.weight, module.ignore_index, log_probs=True, name="nll")
    if kind is nn.BCEWithLogitsLoss and module.weight is None:
        function: Loss = nn.functional.binary_cross_entropy_with_logits
        return Elementwise("binary_cross_entropy", function, eps, True, module.pos_weight)
    if kind is nn.CTCLoss:
        return Ctc(eps, module.blank, module.zero_infinity)
    named = {nn.MSELoss: "mse", nn.L1Loss: "l1"}.get(kind)
    if named:
        return _by_name(named, eps)
    if kind is nn.SmoothL1Loss:
        return Elementwise("smooth_l1", partial(nn.functional.smooth_l1_loss, beta=module.beta))
    if kind is nn.HuberLoss:
        return Elementwise("huber", partial(nn.functional.huber_loss, delta=module.delta))
    return CustomLoss(module)


def _once(asked: float, own: float, where: str) -> float:
    if asked and own:
        raise InputError(f"LabelSmoothing.eps={asked} and {where}={own}) would smooth twice; set one of them to 0")
    return asked or own
