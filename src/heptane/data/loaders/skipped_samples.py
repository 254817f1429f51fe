"""Unreadable and invalid samples: skipped up to a limit, and named by index and file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from heptane.base.errors import DataError
from heptane.base.lazy import torch
from heptane.base.tree import in_memory, inputs_and_targets
from heptane.data.loaders.safe_loader import Collated, Index

MAX_NAMED = 5
WORKER_REMEDY = "out of memory? lower num_workers or the batch size"


@dataclass
class SkippedSamples:
    """The samples skipped in a run so far, at most ``limit``."""

    limit: int = 0
    labels: tuple[int, int] | None = None
    """for class targets: the number of classes, and the ignored label"""
    binary: bool = False
    """whether targets are multi-label: each in [0, 1]"""
    distributions: bool = False
    """whether each row of targets must be a distribution over the classes, as in the first batch"""
    found: dict[str, str] = field(default_factory=dict)
    """name, such as ``training sample 7``, to reason"""
    say: Callable[[str], None] = lambda message: None
    """receives messages for the user"""
    said: set[str] = field(default_factory=set)

    def say_once(self, part: str, message: str) -> None:
        """Send a message about a part of the data, unless there was one before."""
        if part not in self.said:
            self.said.add(part)
            self.say(f"{part} data: {message}")

    def invalid_labels(self, batch: Any) -> list[tuple[Index, str]]:
        """Return the samples of a batch whose label is not a class, by index, with the reason.

        Raises:
            DataError: such a sample's index is unknown, or targets are not as in the first batch.
        """
        data = batch.data if isinstance(batch, Collated) else batch
        if not in_memory(data) or (isinstance(data, (tuple, list)) and len(data) != 2):
            return []
        if self.binary:
            check_binary(inputs_and_targets(data)[1])
        if self.distributions:
            check_distributions(inputs_and_targets(data)[1])
        if self.labels is None:
            return []
        num_classes, ignored = self.labels
        found = []
        for row, label in labels_beyond(inputs_and_targets(data)[1], num_classes, ignored):
            reason = f"label {label} is out of range: labels are 0 to {num_classes - 1}"
            if not isinstance(batch, Collated) or batch.indices is None:
                raise DataError(f"{reason}; it is in row {row} of a batch whose samples have no index: correct the label")
            found.append((batch.indices[row], reason))
        return found

    def add(self, part: str, bad: list[tuple[Index, str]]) -> None:
        """Record more skipped samples.

        Raises:
            DataError: there are more than ``limit``.
        """
        for index, reason in bad:
            self._note(f"{part} sample {index}", reason)

    def _note(self, name: str, reason: str) -> None:
        if name in self.found:
            return
        if len(self.found) >= self.limit:
            remedy = "repair or remove it, or skip such samples with skip_bad"
            if self.limit:
                named = ", ".join(list(self.found)[:MAX_NAMED])
                remedy = f"it is one more than skip_bad={self.limit} allows, after {named}"
            raise DataError(f"{name} cannot be used ({reason}): {remedy}")
        self.found[name] = reason
        self.say(skip_message(name, reason))

    def merge(self, found: list[dict[str, str]]) -> None:
        """Record what each worker found in its share of an evaluation.

        Raises:
            DataError: together there are more than ``limit``.
        """
        for entries in found:
            for name, reason in entries.items():
                self._note(name, reason)


def check_binary(targets: Any) -> None:
    """Check multi-label targets: the first batch had labels in [0, 1], which determined the loss.

    Raises:
        DataError: a target is not in [0, 1].
    """
    if not isinstance(targets, torch.Tensor) or targets.dtype is torch.bool or not targets.numel():
        return
    low, high = (float(value) for value in torch.aminmax(targets))
    if not (low >= 0 and high <= 1):
        value = high if high > 1 else low
        raise DataError(
            f"a target is {value:g}, but in the first batch all were labels in [0, 1]: for real numbers pass loss='mse'; "
            "for labels -1 and 1 pass (targets > 0).float()"
        )


def check_distributions(targets: Any) -> None:
    """Check distributions over classes: the rows of the first batch summed to 1, which determined the loss.

    Raises:
        DataError: a row does not sum to 1.
    """
    if not isinstance(targets, torch.Tensor) or not targets.is_floating_point() or targets.ndim < 2:
        return
    sums = targets.sum(1).double()
    wrong = (sums - 1).abs() > 1e-3
    if bool(wrong.any()):
        raise DataError(
            f"a row of targets sums to {float(sums[wrong].flatten()[0]):g}, but in the first batch each row was a "
            "distribution over the classes: pass loss='binary_cross_entropy' for multi-label targets, or loss='mse' for "
            "real numbers"
        )


def skip_message(name: str, reason: str) -> str:
    """The message about a skipped sample."""
    return f"{name} was skipped: {reason}"


def labels_beyond(targets: Any, num_classes: int, ignore_index: int) -> list[tuple[int, int]]:
    """Rows of integer targets that are not a class, with their values."""
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or not targets.numel():
        return []
    low, high = (int(value) for value in torch.aminmax(targets))
    if low >= 0 and high < num_classes:
        return []
    wrong = ((targets < 0) | (targets >= num_classes)) & (targets != ignore_index)
    where = wrong.reshape(len(targets), -1).any(1).nonzero().flatten().tolist()
    return [(row, int(targets[row][wrong[row]].flatten()[0])) for row in where]
