"""Check that all workers have the same settings: under ``torchrun``, each process runs its own copy of the script."""

from __future__ import annotations

from typing import Any

from heptane.base.errors import InputError
from heptane.distributed.workers import Worker, all_gather
from heptane.session.checkpoints.describe import describe


def check_same_settings(settings: dict[str, Any], worker: Worker) -> None:
    """Refuse settings that differ between workers, which would deadlock or train on different samples.

    Args:
        settings: by name; numbers, text or dataclasses of these.
    """
    if worker.size == 1:
        return
    found = all_gather({name: describe(value) for name, value in settings.items()}, worker)
    for rank, theirs in enumerate(found):
        for name, first in found[0].items():
            if theirs.get(name) != first:
                raise InputError(
                    f"{name} is {_shown(first)} in worker 0, but {_shown(theirs.get(name))} in worker {rank}: pass the same "
                    "value in all workers"
                )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
