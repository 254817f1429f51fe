"""Describe user objects (losses, augmentations, tricks) and training data as JSON that is equal if they are the same."""

from __future__ import annotations

import enum
import hashlib
import math
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from heptane.base.lazy import np, torch
from heptane.base.randomness import preserved_rng, seed_all
from heptane.base.tree import in_memory, inputs_and_targets, num_bytes
from heptane.data.batches import dataset_tensors
from heptane.data.consistency import checksum
from heptane.data.spaced_samples import spaced_samples

IS, CODE = "is", "code"
ANY = "*"
"""Stands for a value that changes during a run or is unknown; it equals any value."""
DEPTH = 5  # of nested objects, which also ends cycles
SHOWN = 16  # a tensor up to this size is stored whole, a larger one as a checksum
HASHED = 1 << 20  # a tensor above this size is described by its shape only
INPUTS, TARGETS, ORDER = "training inputs", "training targets", "order of the training data"
SAMPLES = 256  # checked of data in memory
READ = 16  # checked of a data set
TARGETS_BYTES = 1 << 26  # up to this size, all targets are checked
LIBRARIES = ("torch.", "heptane.", "torchvision.", "builtins.")  # code identified by name and version


def describe(value: Any, depth: int = DEPTH) -> Any:
    """Describe ``value`` and its settings, without anything that differs between processes, such as addresses.

    Args:
        value: a number, a tensor, a function (code, defaults, closure), a ``torch.nn.Module`` (public attributes, buffers,
            shapes of parameters) or any other object (public attributes).
        depth: maximum depth of nested objects.

    Returns:
        JSON: an object is a dict with its name under "is".

    Example:
        >>> describe(hp.CropFlip(padding=4))
        {'is': 'CropFlip', 'padding': 4, 'flip': True}
    """
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, torch.device):
        return {IS: "device"}  # which device may change
    if isinstance(value, (torch.dtype, complex, os.PathLike)):
        return str(value)
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _numbers(value)
    if isinstance(value, np.generic):
        return describe(value.item(), depth)
    if isinstance(value, type):
        return {IS: _name(value)}
    if depth <= 0:
        return {IS: _name(type(value))}
    return _object(value, depth - 1)


def _object(value: Any, depth: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [describe(item, depth) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(describe(item, depth)) for item in value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth) for key, item in value.items()}
    if isinstance(value, partial):
        given = {str(at): describe(item, depth) for at, item in enumerate(value.args)}
        return _function(value.func, depth) | given | {key: describe(item, depth) for key, item in value.keywords.items()}
    if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType)):
        return _function(value, depth)
    if is_dataclass(value):
        return {IS: type(value).__name__} | {f.name: describe(getattr(value, f.name), depth) for f in fields(value)}
    found: dict[str, Any] = {IS: _name(type(value))}
    own = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    if isinstance(value, torch.nn.Module):
        own.pop("training", None)
        own |= dict(value._buffers) | dict(value._modules)
        own |= {name: None if p is None else list(p.shape) for name, p in value._parameters.items()}
    return found | {name: describe(item, depth) for name, item in own.items()}


def _numbers(value: Any) -> Any:
    """A tensor or array: its numbers if there are few, else its shape and a checksum."""
    tensor = torch.as_tensor(value) if not isinstance(value, np.ndarray) or value.dtype.kind in "biufc" else None
    if tensor is None:
        return {IS: "ndarray", "shape": list(value.shape)}
    if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() <= SHOWN:
        return describe(tensor.detach().cpu().tolist())
    found: dict[str, Any] = {IS: "tensor", "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() <= HASHED:
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        found["checksum"] = hashlib.sha256(data).hexdigest()[:12]
    return found


def _function(value: Any, depth: int) -> dict[str, Any]:
    if isinstance(value, MethodType):
        return _function(value.__func__, depth) | {"of": describe(value.__self__, depth)}
    found: dict[str, Any] = {IS: _name(value)}
    if isinstance(value, BuiltinFunctionType) or found[IS].startswith(LIBRARIES):
        return found
    if not isinstance(value, FunctionType):  # a callable object in a partial
        described = describe(value, depth)
        return described if isinstance(described, dict) else found
    code = value.__code__
    found[CODE] = "{}.{}:{}".format(*sys.version_info[:2], _code(code, value.__doc__))
    defaults = [describe(item, depth) for item in value.__defaults__ or ()]
    found |= {"defaults": defaults} if defaults else {}
    found |= {key: describe(item, depth) for key, item in (value.__kwdefaults__ or {}).items()}
    around: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        try:
            around[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    plain = (bool, int, float, str, torch.Tensor)
    around |= {n: value.__globals__[n] for n in code.co_names if isinstance(value.__globals__.get(n), plain)}
    return found | {name: describe(item, depth) for name, item in around.items()}


def _code(code: CodeType, doc: str | None) -> str:
    """A checksum of a function's code, independent of its line numbers and docstring."""
    digest = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    constants = code.co_consts[1:] if doc is not None and code.co_consts[:1] == (doc,) else code.co_consts
    for constant in constants:
        if isinstance(constant, CodeType):
            digest.update(_code(constant, None).encode())
        else:
            digest.update(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant).encode())
    return digest.hexdigest()[:12]


def _name(value: Any) -> str:
    """``module.qualname``; a script imported by workers counts as ``__main__``."""
    module = str(getattr(value, "__module__", None) or "builtins").replace("__mp_main__", "__main__")
    return f"{module}.{getattr(value, '__qualname__', type(value).__name__)}"


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
