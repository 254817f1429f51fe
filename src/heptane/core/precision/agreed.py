"""The precision of a run: measured once, alike on all workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.core.losses import Criterion
from heptane.core.precision.choose import choose_precision
from heptane.core.precision.step import PrecisionSettings, check_master_weights
from heptane.distributed.workers import Worker
from heptane.model.memory_format import store_channels_last


@dataclass
class Choice:
    """Type to compute in, memory format, the reason, and notes."""

    dtype: str
    channels_last: bool
    why: str
    notes: list[str] = field(default_factory=list)

    def store(self, model: torch.nn.Module) -> None:
        """Put the model into the memory format."""
        if self.channels_last:
            store_channels_last(model)


def agreed_precision(
    trick: PrecisionSettings,
    model: torch.nn.Module,
    criterion: Criterion,
    sample: tuple[Any, Any],
    *,
    planned_steps: int,
    last_rows: int,
    worker: Worker,
) -> Choice:
    """Choose as :func:`choose_precision` does; of several workers rank 0's choice counts."""
    check_master_weights(model)
    notes: list[str] = []
    with working("measuring a training step in each precision"):
        found: list[Any] = [
            choose_precision(trick, model, criterion, *sample, planned_steps=planned_steps, last_rows=last_rows, notes=notes)
        ]
    if worker.size > 1:
        torch.distributed.broadcast_object_list(found, 0)  # a measurement may come out differently on each worker
    dtype, channels_last, why = found[0]
    return Choice(dtype, channels_last, why, notes)
