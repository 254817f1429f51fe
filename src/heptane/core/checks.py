"""What a run is refused for before anything is trained: each message names the thing, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heptane.base.errors import DataError, InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import Rows, in_memory, inputs_and_targets, length, tree_map
from heptane.core.criterion import loss_input
from heptane.core.cross_entropy import find_class_dim
from heptane.core.custom_losses import ModelLoss
from heptane.core.losses import Criterion, CrossEntropy, Elementwise
from heptane.data.batches import Source, TensorSource
from heptane.data.loaders.loader_source import preserved_loader
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.data.resize import ProgressiveResize
from heptane.data.sources import as_loader
from heptane.model.forward import main_output
from heptane.model.names import clean_name
from heptane.model.probe import probe_output

if TYPE_CHECKING:
    from heptane.core.run import Run

TRIED = 8  # samples on which an evaluation is tried: they cost a forward pass


def check_model(model: Any) -> None:
    """Refuse what is no model, or has nothing to train."""
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model of type {type(model).__name__}: expected a torch.nn.Module")
    check_on_device(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.nn.parameter.is_lazy(tensor) and tensor.is_inference():
            raise InputError(
                f"{name!r} of {type(model).__name__} was made inside torch.inference_mode(), and cannot be trained: build "
                "the model outside of it"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        frozen = any(True for _ in model.parameters())
        remedy = "; call requires_grad_(True) on some" if frozen else ""
        raise InputError(f"{type(model).__name__} has no parameter that trains{remedy}")


def check_on_device(model: torch.nn.Module) -> None:
    """Refuse a model on the meta device."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"{name!r} of {type(model).__name__} is on the meta device, where tensors hold no values: build the model "
                "on a real device, or call model.to_empty(device='cpu') and load its weights"
            )


def check_one_output(evaluation: Any, probe_training: Callable[[], Any]) -> None:
    """Refuse a model that gives one output in evaluation, and in training several, of which none is the output."""
    training = evaluation
    with suppress(Exception):  # what fails in training is its first step's to report
        training = probe_training()
    if isinstance(main_output(evaluation)[0], torch.Tensor) and not isinstance(main_output(training)[0], torch.Tensor):
        names = f" with {', '.join(map(repr, training))}" if isinstance(training, dict) else ""
        raise InputError(
            f"the model gives {type(training).__name__}{names} in training, and it is not known which of these is the "
            "output: call it 'logits', put it first in a tuple, or pass a loss of your own, which is given all of it"
        )


def check_optimizer(built: Any, num_groups: int | None) -> None:
    """Refuse what an optimizer factory returned, unless it is an optimizer that this loop can step, of so many groups."""
    if not isinstance(built, torch.optim.Optimizer):
        raise InputError(f"the optimizer factory returned {type(built).__name__}: expected a torch.optim.Optimizer")
    if isinstance(built, torch.optim.LBFGS):
        raise InputError("optimizer LBFGS evaluates the loss many times per step; use one that takes one gradient per step")
    if num_groups is not None and len(built.param_groups) != num_groups:
        raise InputError(
            f"the optimizer factory made {len(built.param_groups)} parameter groups of the {num_groups} it was given: "
            "with transfer it must pass its argument on, as in lambda params: torch.optim.AdamW(params)"
        )


TAKE_SPARSE = ("SGD", "Adagrad", "SparseAdam")  # of torch.optim


def check_trained(built: torch.optim.Optimizer, model: torch.nn.Module, others: list[torch.nn.Parameter]) -> list[str]:
    """Refuse an optimizer that trains something else than the model and ``others``, a loss's; what it leaves out is noted.

    Raises:
        InputError: it holds a parameter that is neither's; or it cannot take the gradients of a sparse embedding.
    """
    held = {id(parameter): parameter for group in built.param_groups for parameter in group["params"]}
    own = {id(parameter) for parameter in (*model.parameters(), *others)}
    foreign = [parameter for key, parameter in held.items() if key not in own]
    if foreign:
        raise InputError(
            f"the optimizer holds {len(foreign)} of {len(held)} parameters that are not {type(model).__name__}'s, the first "
            f"of shape {tuple(foreign[0].shape)}: build it from the parameters that the factory is given; those of a loss "
            "come with it where the loss is a torch.nn.Module"
        )
    tables = {id(p) for m in model.modules() if getattr(m, "sparse", None) is True for p in m.parameters(recurse=False)}
    if isinstance(built, torch.optim.SparseAdam) and not tables.issuperset(held):
        raise InputError(
            "optimizer SparseAdam takes sparse gradients only, and most layers give dense ones: use SGD or Adagrad, or give "
            "SparseAdam the parameters of layers with sparse=True alone"
        )
    sparse = [name for name, module in model.named_modules() if getattr(module, "sparse", None) is True]
    kind = type(built)
    if sparse and kind.__module__.startswith("torch.optim") and kind.__name__ not in TAKE_SPARSE:
        raise InputError(
            f"optimizer {kind.__name__} does not take the sparse gradients of layer {sparse[0]!r}: build the layer with "
            f"sparse=False, or use one of {', '.join(TAKE_SPARSE)}"
        )
    decayed = any(group.get("weight_decay") for group in built.param_groups)
    if sparse and decayed and kind.__name__ in TAKE_SPARSE:
        raise InputError(
            f"optimizer {kind.__name__} with weight_decay does not take the sparse gradients of layer {sparse[0]!r}: set "
            "weight_decay=0, or build the layer with sparse=False"
        )
    if not any(parameter.requires_grad for parameter in held.values()):
        raise InputError(
            f"the optimizer holds {len(held)} parameter(s), and none that trains: give it those of the parameters that the "
            "factory is given whose requires_grad is True"
        )
    left = [clean_name(model, n) for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if not left:
        return []
    named = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    return [f"the optimizer leaves out {len(left)} parameter(s) that could train: {named}"]


def check_finite(source: Source, sample: tuple[Any, Any]) -> None:
    """Refuse training data with NaN or infinity: all of it where it is in memory, else the first batch."""
    inputs, targets = (source.inputs, source.targets) if isinstance(source, TensorSource) else sample
    for what, data in (("inputs", inputs), ("targets", targets)):

        def check(tensor: torch.Tensor, what: str = what) -> torch.Tensor:
            if isinstance(tensor, Rows):  # pixels are finite
                return tensor
            tensor = tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor  # float8
            # A finite sum holds neither, and needs no second tensor; one that is not may also be an overflow.
            if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.sum().isfinite()):
                return tensor
            bad = (~torch.isfinite(tensor.reshape(len(tensor), -1))).any(1).nonzero()
            if len(bad):
                where = int(bad[0])
                raise InputError(f"the training {what} hold NaN or infinity, first in sample {where}: clean the data first")
            return tensor

        tree_map(check, data)


def check_batch_norm(least: int, batch_size: int) -> None:
    """Refuse a batch in which a worker would have one sample, where BatchNorm needs more."""
    if batch_size < least:
        raise InputError(
            f"batch_size={batch_size}: BatchNorm cannot train on one value per channel, so each worker needs 2 samples of a "
            f"batch, {least} in all: raise batch_size"
        )


def check_resize(model: torch.nn.Module, resize: ProgressiveResize, inputs: Any) -> None:
    """Refuse small images that the model cannot take."""
    small = resize.check(inputs)
    try:
        probe_output(model, small)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"ProgressiveResize.size={resize.size}: the model does not take images of {resize.size}x{resize.size} "
            f"({one_line(error)}): leave it out, or end the network in a mean over the image"
        ) from None


def check_targets(criterion: Criterion, output: Any, targets: Any) -> None:
    """Refuse targets that the model's outputs cannot be compared with: labels out of range, other shapes."""
    if isinstance(criterion, Elementwise) and isinstance(targets, torch.Tensor):
        if output.shape[1:].numel() != targets.shape[1:].numel():
            raise InputError(
                f"outputs of shape {tuple(output.shape[1:])} and targets of shape {tuple(targets.shape[1:])} per sample: "
                f"{criterion.name} compares element by element, so give the model as many outputs as there are targets"
            )
        if criterion.multi_label and (beyond := outside(targets)):
            raise InputError(
                f"targets of {beyond} with loss {criterion.name!r}, which needs each in [0, 1]: "
                "for real numbers pass loss='mse', for -1 and 1 (targets > 0).float()"
            )
        return
    num_classes = classes_of(criterion, output, targets)
    if num_classes is None:
        return
    assert isinstance(criterion, CrossEntropy)
    targets = criterion.seen(targets)
    bad = ((targets < 0) | (targets >= num_classes)) & (targets != criterion.ignore_index)
    if bool(bad.any()):
        at = tuple(bad.nonzero()[0].tolist())
        where = at[0] if len(at) == 1 else at
        if num_classes == 1:
            raise InputError(
                f"label {int(targets[at])} of sample {where}, and the model has one output, the score of one class: for two "
                "classes by one logit pass loss='binary_cross_entropy', or give the model an output for each class"
            )
        raise InputError(
            f"label {int(targets[at])} of sample {where} is out of range: the model has {num_classes} outputs, "
            f"so labels are 0 to {num_classes - 1}"
        )


def outside(targets: torch.Tensor) -> str:
    """The first of ``targets`` that is not in [0, 1], where a label has to be; or nothing."""
    if targets.dtype is torch.bool:
        return ""
    wrong = ~((targets >= 0) & (targets <= 1))
    return f"{float(targets[wrong][0]):g}" if bool(wrong.any()) else ""


def labels_of(criterion: Criterion, output: Any, targets: Any) -> tuple[int, int] | None:
    """How many classes the model tells apart, and the target that is ignored; None where targets are no classes."""
    num_classes = classes_of(criterion, output, targets)
    return None if num_classes is None else (num_classes, getattr(criterion, "ignore_index", -100))


def classes_of(criterion: Criterion, output: Any, targets: Any) -> int | None:
    """How many classes the model tells apart; None where targets are not the numbers of classes.

    Raises:
        InputError: outputs and targets do not go together.
    """
    if not isinstance(criterion, CrossEntropy) or not isinstance(targets, torch.Tensor):
        return None
    if not isinstance(output, torch.Tensor) or output.ndim < 2:
        raise InputError(f"cross_entropy needs outputs (N, C), one score per class; the model gave {_shape(output)}")
    if targets.is_floating_point():
        if targets.shape[1:] != output.shape[1:]:
            raise InputError(
                f"soft targets of shape {tuple(targets.shape[1:])} and outputs of shape {tuple(output.shape[1:])} per "
                "sample: cross_entropy needs one probability per class"
            )
        return None
    if targets.is_complex():
        raise InputError(f"targets of type {targets.dtype}: cross_entropy needs the numbers of classes")
    targets = criterion.seen(targets)
    dim = find_class_dim(output.shape, (len(output), *targets.shape[1:]), False, criterion.class_dim)
    return int(output.shape[dim])


def first_batch(data: Any, batch_size: int, name: str, bad: SkippedSamples | None = None) -> tuple[Any, Any]:
    """The first batch of evaluation data; refuse data without a sample. ``bad`` are samples that may be left out."""
    first = next(as_loader(data, batch_size, lambda size: slice(0, size), bad, name), None)
    if first is None:
        raise InputError(f"{name} is empty: 0 samples")
    return first


def check_evaluation(run: Run, name: str, data: Any, *, tries: bool = True) -> list[str]:
    """Refuse evaluation data that would fail after an epoch of training: empty, or with targets that do not fit, all of them
    where they are in memory, else those of the first batch; notes on types that differ from the training data's.

    Nothing is noted of samples that cannot be read: they are found again when the data are evaluated.

    Args:
        run: what is going to be evaluated.
        name: ``valid`` or ``test``.
        data: the evaluation data.
        tries: whether the model can be run here.
    """
    known, called, place = in_memory(data), "validation" if name == "valid" else name, run.place
    if not known and length(data) == 0:
        raise InputError(f"{name} is empty: 0 samples")
    if hasattr(getattr(data, "dataset", data), "__next__"):
        return []  # it may be read once only
    try:
        with preserved_loader(data) if isinstance(data, torch.utils.data.DataLoader) else nullcontext():
            bad = None if known else replace(run.bad, found={}, said=set(), say=lambda message: None)
            inputs, targets = (place.move(part) for part in first_batch(data, TRIED, called, bad))
        labels = isinstance(run.criterion, ModelLoss)
        whole = inputs_and_targets(data)[0] if known else None
        notes = place.cast.learn(run.model, inputs, targets, labels=labels, whole=whole, tries=tries)
        inputs, targets = place.inputs(inputs), place.targets(targets)
        output = loss_input(run.criterion, probe_output(run.model, inputs, targets if labels else None))
        check_targets(run.criterion, output, place.targets(inputs_and_targets(data)[1]) if known else targets)
        if not labels:
            _try_loss(run.criterion, output, targets)
    except DataError as error:
        raise error if str(error).startswith(called) else DataError(f"{called} data: {error}") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return [f"{called}: {text}" for text in notes]


def _try_loss(criterion: Criterion, output: Any, targets: Any) -> None:
    """Refuse targets with which the loss fails; a loss that is a module is left as it is."""
    from heptane.model.snapshot import preserved_model

    own = getattr(criterion, "function", None)
    try:
        with preserved_model(own) if isinstance(own, torch.nn.Module) else nullcontext(), torch.no_grad():
            criterion.mean(tree_map(torch.clone, output), tree_map(torch.clone, targets))  # clones: it may work in place
    except Exception as error:
        raise InputError(
            f"the loss fails on the first samples ({one_line(error)}), with outputs of {_shape(output)} and targets of "
            f"{_shape(targets)}: make the targets like those of the training data"
        ) from error


def _shape(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
