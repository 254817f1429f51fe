"""The criterion of a run: chosen by loss and targets, then tried on a batch of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from heptane.base.lazy import torch
from heptane.base.tree import copy_rows, first_tensor, in_memory, inputs_and_targets, select_rows
from heptane.core.checks import check_one_output, check_targets, labels_of
from heptane.core.criterion import choose_criterion, is_classification_loss, loss_input, loss_module
from heptane.core.cross_entropy import find_class_dim
from heptane.core.custom_losses import CustomLoss, ModelLoss, choose_loss_input, infer_loss_count
from heptane.core.losses import Criterion, CrossEntropy, Elementwise, can_smooth
from heptane.core.splitting import TRIED, check_splittable
from heptane.core.unoptimized_parameters import check_untrained
from heptane.data.batches import BatchTransform, Source, TensorSource, dataset_tensors
from heptane.data.loaders.loader_source import LoaderSource
from heptane.data.loaders.skipped_samples import SkippedSamples
from heptane.data.spaced_samples import spaced_samples
from heptane.model.forward import main_output
from heptane.model.probe import probe_output, probe_training, two_samples


class Smoothing(Protocol):
    """Settings of label smoothing."""

    @property
    def eps(self) -> float: ...
    @property
    def optional(self) -> bool: ...


def criterion_for(
    loss: Any,
    model: torch.nn.Module,
    source: Source,
    place: BatchTransform,
    sample: tuple[Any, Any],
    skipped: SkippedSamples,
    smoothing: Smoothing | None,
) -> tuple[Criterion, str]:
    """The criterion for ``loss``, tried on a batch, and why it was chosen; ``skipped`` learns which labels are in range.

    Raises:
        InputError: loss, outputs and targets do not go together.
    """
    output = probe_output(model, *two_samples(sample, loss))
    targets = place.cast.targets(source.targets) if isinstance(source, TensorSource) else sample[1]
    criterion, reason = _chosen(loss, output, targets, smoothing)
    criterion = infer_loss_count(criterion, output, select_rows(sample[1], slice(2)))
    if isinstance(criterion, CustomLoss) and not criterion.first:
        training = probe_training(model, sample[0])
        if main_output(training)[1] and type(training) is not type(output):
            criterion = choose_loss_input(criterion, training, output, targets)
            reason += f"; the output is {main_output(training)[1]}" if criterion.first else ""
    if not isinstance(criterion, (CustomLoss, ModelLoss)) and len(first_tensor(sample[0])) > 1:  # BatchNorm needs two
        check_one_output(output, lambda: probe_training(model, sample[0]))
    output = loss_input(criterion, output)
    own = loss_module(loss)
    parameters = [*model.parameters(), *(own.parameters() if own else ())]
    check_untrained(criterion, output, select_rows(sample[1], slice(2)), parameters)
    if not isinstance(source, LoaderSource):
        check_targets(criterion, output, targets)
    if isinstance(criterion, CrossEntropy):
        criterion = _settled(criterion, output, targets, sample, source)
    skipped.labels = labels_of(criterion, output, targets)  # of loaders, looked at batch by batch
    skipped.binary = isinstance(criterion, Elementwise) and criterion.multi_label
    skipped.distributions = loss is None and isinstance(criterion, CrossEntropy) and targets.is_floating_point()
    return criterion, reason


def _chosen(loss: Any, output: Any, targets: Any, smoothing: Smoothing | None) -> tuple[Criterion, str]:
    if smoothing and smoothing.optional and not can_smooth(choose_criterion(loss, output, targets, None)[0]):
        criterion, reason = choose_criterion(loss, output, targets, None)
        return criterion, f"{reason}; label smoothing is left out: there are no classes to smooth"
    return choose_criterion(loss, output, targets, smoothing.eps if smoothing else None)


def _settled(criterion: CrossEntropy, output: Any, targets: Any, sample: tuple[Any, Any], source: Source) -> CrossEntropy:
    """Cross-entropy with the class dimension found once, and whether every sample counts."""
    if criterion.class_dim is None and output.ndim > 2:
        shown = select_rows(sample[1], slice(2))  # once: a later batch may be as long as there are classes
        dim = find_class_dim(output.shape, shown.shape, shown.is_floating_point())
        criterion = replace(criterion, class_dim=dim)
    if isinstance(source, TensorSource) and targets.ndim == 1:
        ignored = criterion.weight is not None or criterion.log_probs or bool((targets == criterion.ignore_index).any())
        criterion = replace(criterion, all_count=not ignored)
    return criterion


def num_classes_of(source: Source, loss: Any, others: Sequence[Any]) -> int | None:
    """How many outputs a head needs, where a loss over classes and the labels say it."""
    if not isinstance(source, TensorSource) or not is_classification_loss(loss):
        return None
    labels = [source.targets, *(inputs_and_targets(data)[1] for data in map(dataset_tensors, others) if in_memory(data))]
    if not all(isinstance(part, torch.Tensor) and not part.is_floating_point() and part.ndim == 1 for part in labels):
        return None
    return max(int(part.max()) + 1 for part in labels if len(part))


def parts_notes(
    criterion: Criterion,
    model: torch.nn.Module,
    train: Any,
    source: Source,
    place: BatchTransform,
    sample: tuple[Any, Any],
    parts: int,
) -> list[str]:
    """Notes on a batch that is split into ``parts`` whose losses cannot be put together exactly.

    Raises:
        InputError: it is known that they cannot.
    """
    if not isinstance(criterion, (CustomLoss, ModelLoss)):
        return []
    targets, found = source.targets if isinstance(source, TensorSource) else sample[1], spaced_samples(train, TRIED)
    if found is not None:
        moved = place.move(found)
        sample = place.cast.inputs(moved[0]), place.cast.targets(moved[1])
    return check_splittable(criterion, model, copy_rows(sample, slice(TRIED)), targets, parts)
