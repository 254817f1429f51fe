"""Model state as JSON plus safetensors; reading it never runs code from the file."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import np, torch
from heptane.base.storage import replace_file
from heptane.model.names import clean_state

STATE = "heptane.state"  # metadata key in a weight file, for values that are not plain tensors
SPARSE = ("sparse_coo", "sparse_csr")
HELD = "tensors, arrays, numbers, text, lists, sets and dicts"


def save_model(model: torch.nn.Module, path: Path) -> None:
    """Write the model's parameters, buffers and extra state to a safetensors file; shared tensors are stored twice.

    Sparse buffers and extra state are stored as JSON in the file's metadata, with their tensors among the others.
    """
    tensors: dict[str, torch.Tensor] = {}
    state = clean_state(model)
    odd = {name: value for name, value in state.items() if not _plain(value)}
    tensors |= {name: value for name, value in state.items() if _plain(value)}
    metadata = {"format": "pt"}
    if odd:
        metadata[STATE] = json.dumps({name: pack(value, f"{name}~", tensors) for name, value in odd.items()})
    replace_file(path, serialised(copied(tensors), metadata))


def read_model(path: Path) -> dict[str, Any]:
    """Read the state dict that :func:`save_model` wrote, or the tensors of any other safetensors file.

    Raises:
        OSError, SafetensorError, ValueError, KeyError: the file cannot be read.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if STATE not in metadata:
        return tensors
    packed = json.loads(metadata[STATE])
    odd = {name: unpack(value, tensors) for name, value in packed.items()}
    inner = tuple(f"{name}~" for name in packed)
    return {name: value for name, value in tensors.items() if not name.startswith(inner)} | odd


def pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Convert ``value`` to JSON; its tensors are added to ``tensors``, with names that begin with ``name``.

    Raises:
        InputError: ``value`` holds an unsupported type.
    """
    if isinstance(value, torch.Tensor):
        return _pack_tensor(value, name, tensors)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        tensors[name] = torch.from_numpy(np.array(value))
        return {"array": [name, value.dtype.name]}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"number": [value.item(), value.dtype.name]}
    if isinstance(value, (OrderedDict, defaultdict, dict)):
        keyed = [[_key(key, name), pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"ordered" if isinstance(value, OrderedDict) else "dict": keyed}
    if hasattr(value, "_fields"):
        raise InputError(f"{name} is a named tuple, {type(value).__name__}: a checkpoint can hold {HELD}")
    for kind, made in (("list", list), ("tuple", tuple), ("set", (set, frozenset)), ("deque", deque)):
        if isinstance(value, made):
            items = [pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
            return {"deque": [value.maxlen, items]} if isinstance(value, deque) else {kind: items}
    if isinstance(value, (torch.dtype, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, (bytes, complex)):
        return {"bytes": value.hex()} if isinstance(value, bytes) else {"complex": [value.real, value.imag]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{name} is of type {type(value).__name__}: a checkpoint can hold {HELD}")


def unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Rebuild the value that :func:`pack` converted, with its tensors from ``tensors``."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("dict", "ordered"):
        items = [(_unkey(key), unpack(item, tensors)) for key, item in content]
        return OrderedDict(items) if kind == "ordered" else dict(items)
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](unpack(item, tensors) for item in content)
    if kind == "deque":
        return deque((unpack(item, tensors) for item in content[1]), content[0])
    return _unpack_one(kind, content, tensors)


def _unpack_one(kind: str, content: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if kind == "tensor":
        return tensors[content]
    if kind in SPARSE:
        first, second, values = (tensors[f"{content[0]}{part}"] for part in ("#0", "#1", "#2"))
        if kind == "sparse_csr":
            return torch.sparse_csr_tensor(first, second, values, content[1], check_invariants=True)
        made = torch.sparse_coo_tensor(first, values, content[1], check_invariants=True)
        return made.coalesce() if bool(second) else made
    if kind == "array":
        return tensors[content[0]].numpy().astype(content[1])
    if kind == "number":
        return np.dtype(content[1]).type(content[0])
    if kind == "dtype":
        found = getattr(torch, content)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{content} is not a dtype")
        return found
    if kind == "device":
        return torch.device(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    raise ValueError(f"{kind} is not a known kind of value")


def _plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _pack_tensor(value: torch.Tensor, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if _plain(value):
        tensors[name] = value
        return {"tensor": name}
    if value.is_quantized:
        raise InputError(f"{name} is quantized: a checkpoint can hold float and integer tensors; train the float model")
    kind = str(value.layout).removeprefix("torch.")
    if kind not in SPARSE:
        raise InputError(f"{name} has layout {kind}: a checkpoint can hold dense, COO and CSR tensors; use to_sparse_coo()")
    value = value.detach()
    if kind == "sparse_csr":
        parts = [value.crow_indices(), value.col_indices(), value.values()]
    else:
        parts = [value._indices(), torch.tensor(value.is_coalesced()), value._values()]
    tensors |= {f"{name}#{index}": part for index, part in enumerate(parts)}
    return {kind: [name, list(value.shape)]}


def _key(key: Any, name: str) -> Any:
    """A dict key as JSON."""
    if isinstance(key, tuple):
        return {"tuple": [_key(part, name) for part in key]}
    if key is None or isinstance(key, (bool, int, float, str)):
        return key
    raise InputError(
        f"{name} has a key of type {type(key).__name__}: a checkpoint can hold {HELD}, with strings or numbers as keys"
    )


def _unkey(key: Any) -> Any:
    return tuple(_unkey(part) for part in key["tuple"]) if isinstance(key, dict) else key


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy the tensors to the CPU, without shared memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def serialised(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file."""
    from safetensors.torch import save

    return save(tensors, metadata)
