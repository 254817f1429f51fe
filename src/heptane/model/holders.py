"""Mutable values that a model may keep: lists, dicts, arrays, generators, plain objects; and putting back what they held."""

from __future__ import annotations

import contextlib
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from heptane.base.lazy import np, torch

_ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
)
LARGE_BYTES = 64 << 20  # an array larger than this is data, and no state
# Whose objects are state of theirs (compilers, process groups, loggers), and no state of a model's.
FOREIGN = ("torch", "logging", "threading", "weakref", "_thread", "concurrent", "multiprocessing", "asyncio", "io", "_io")


class Holder:
    """A mutable value that is no tensor and no module, and what it held."""

    def __init__(self, value: Any, kept: Any, put: Callable[[Any, Any], None], children: Iterable[Any] = ()) -> None:
        self.value, self.kept, self._put, self._children = value, kept, put, children

    def children(self) -> Iterable[Any]:
        """What may hold something in its turn."""
        return self._children

    def restore(self) -> None:
        """Put it back, where it has changed."""
        self._put(self.value, self.kept)


def holder_of(value: Any) -> Holder | None:
    """The holder for ``value``; None for what does not change, or is not known."""
    if isinstance(value, (*_ATOMS, torch.dtype, torch.device, torch.Size)):
        return None
    if isinstance(value, dict):
        pairs = list(value.items())
        return Holder(value, pairs, _put_dict, [held for _, held in pairs])
    if isinstance(value, (list, deque)):
        items = list(value)
        return Holder(value, items, _put_list, items)
    if isinstance(value, (tuple, frozenset)):
        return Holder(value, None, lambda value, kept: None, value)
    if isinstance(value, set):
        return Holder(value, set(value), _put_set)
    if isinstance(value, bytearray):
        return Holder(value, bytes(value), lambda value, kept: value.__setitem__(slice(None), kept))
    if isinstance(value, np.ndarray):
        fits = value.nbytes <= LARGE_BYTES and value.flags.writeable and not value.dtype.hasobject
        return Holder(value, value.copy(), _put_array) if fits else None
    return _generator(value) or _plain_object(value)


def _generator(value: Any) -> Holder | None:
    if isinstance(value, torch.Generator):
        return Holder(value, value.get_state(), lambda value, kept: value.set_state(kept))
    if isinstance(value, random.Random):
        return Holder(value, value.getstate(), lambda value, kept: value.setstate(kept))
    if isinstance(value, np.random.Generator):
        return Holder(value, value.bit_generator.state, lambda value, kept: setattr(value.bit_generator, "state", kept))
    if isinstance(value, np.random.RandomState):
        return Holder(value, value.get_state(), lambda value, kept: value.set_state(kept))
    return None


def _plain_object(value: Any) -> Holder | None:
    if type(value).__module__.partition(".")[0] in FOREIGN:
        return None
    attributes = dict(getattr(value, "__dict__", None) or {})
    slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    if not attributes and not slots:
        return Holder(value, ({}, {}), _put_object) if hasattr(value, "__dict__") else None
    return Holder(value, (attributes, slots), _put_object, [*attributes.values(), *slots.values()])


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        own = base.__dict__.get("__slots__", ())
        found += [own] if isinstance(own, str) else [name for name in own if isinstance(name, str)]
    return [name for name in found if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _put_dict(value: Any, kept: list[tuple[Any, Any]]) -> None:
    now = list(value.items())
    if len(now) == len(kept) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, kept, strict=True)):
        return
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # not by methods of a class of the user's
    kind.clear(value)
    for key, held in kept:
        kind.__setitem__(value, key, held)


def _put_list(value: Any, kept: list[Any]) -> None:
    if len(value) == len(kept) and all(a is b for a, b in zip(value, kept, strict=True)):
        return
    if isinstance(value, deque):
        deque.clear(value)
        deque.extend(value, kept)
    else:
        list.__setitem__(value, slice(None), kept)


def _put_set(value: set[Any], kept: set[Any]) -> None:
    if value != kept:
        set.clear(value)
        set.update(value, kept)


def _put_array(value: Any, kept: Any) -> None:
    if value.shape == kept.shape:
        np.copyto(value, kept)


def _put_object(value: Any, kept: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, slots = kept
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        _put_dict(own, list(attributes.items()))
    for name, held in slots.items():
        if getattr(value, name, None) is not held:
            with contextlib.suppress(AttributeError):  # one that cannot be set has not changed
                object.__setattr__(value, name, held)
