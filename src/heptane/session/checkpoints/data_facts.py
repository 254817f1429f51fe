"""Fingerprint the training data of a run: checksums of some samples and of the targets, and the kind of order."""

from __future__ import annotations

import zlib
from typing import Any

from heptane.base.lazy import np, torch
from heptane.base.randomness import preserved_rng, seed_all
from heptane.base.tree import in_memory, inputs_and_targets, num_bytes
from heptane.data.batches import dataset_tensors
from heptane.data.consistency import checksum
from heptane.data.spaced_samples import spaced_samples
from heptane.session.checkpoints.describe import ANY

INPUTS, TARGETS, ORDER = "training inputs", "training targets", "order of the training data"
SAMPLES = 256  # checked of data in memory
READ = 16  # checked of a data set
TARGETS_BYTES = 1 << 26  # up to this size, all targets are checked


def data_facts(data: Any) -> dict[str, Any]:
    """Checksums of ``data`` and the kind of its order, for the settings of a run.

    ``ANY`` stands for what cannot be compared: data without an index, and samples that differ each time they are read, even
    with the same random states.
    """
    data = dataset_tensors(data)
    if in_memory(data):
        targets = inputs_and_targets(data)[1]
        inputs, few = spaced_samples(data, SAMPLES) or (None, None)
        whole = num_bytes(targets) <= TARGETS_BYTES
        return {INPUTS: _shown(inputs), TARGETS: _shown(targets if whole else few), ORDER: _order(None)}
    first, second = (tuple(map(_shown, _read(data))) for _ in range(2))
    inputs, targets = (a if a == b else ANY for a, b in zip(first, second, strict=True))
    return {INPUTS: inputs, TARGETS: targets, ORDER: _order(data if isinstance(data, torch.utils.data.DataLoader) else None)}


def _read(data: Any) -> tuple[Any, Any]:
    """Read a few samples, with the same random numbers each time."""
    own = [value for value in vars(getattr(data, "dataset", data)).values() if isinstance(value, torch.Generator)]
    states = [generator.get_state() for generator in own]
    with preserved_rng():
        seed_all(0)
        found = spaced_samples(data, READ) or (None, None)
    for generator, state in zip(own, states, strict=True):
        generator.set_state(state)
    return found


def _shown(data: Any) -> str:
    return ANY if data is None else f"of checksum {checksum(data):08x}"


def _order(loader: Any) -> str:
    """The sampler of a loader, with its flags and indices."""
    if loader is None:
        return "shuffled by heptane"
    utils = torch.utils.data
    plain = loader.batch_sampler is None or type(loader.batch_sampler) is utils.BatchSampler
    sampler = loader.sampler if plain else loader.batch_sampler
    held = {name: value for name, value in getattr(sampler, "__dict__", {}).items() if not name.startswith("_")}
    flags = [f"{name}={value}" for name, value in held.items() if isinstance(value, bool)]
    for name, value in held.items():
        if isinstance(value, (list, tuple, range, torch.Tensor, np.ndarray)) and name != "data_source":
            numbers = value.tolist() if isinstance(value, (torch.Tensor, np.ndarray)) else list(value)
            flags.append(f"{name} of checksum {zlib.crc32(repr(numbers).encode()):08x}")
    return f"{type(sampler).__name__}({', '.join(flags)})"
