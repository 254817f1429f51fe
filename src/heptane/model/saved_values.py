"""Save and restore mutable values of a model: lists, dicts, arrays, random generators and plain objects."""

from __future__ import annotations

import contextlib
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from heptane.base.lazy import np, torch

_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
)
LARGE_BYTES = 64 << 20  # a larger array is data, not state
# Objects of these packages (compilers, process groups, loggers) are not state of the model.
FOREIGN = ("torch", "logging", "threading", "weakref", "_thread", "concurrent", "multiprocessing", "asyncio", "io", "_io")


class SavedValue:
    """A mutable value (no tensor or module) with its saved content; ``children`` are values inside it."""

    def __init__(self, value: Any, saved: Any, put: Callable[[Any, Any], None], children: Iterable[Any] = ()) -> None:
        self.value, self.children, self._saved, self._put = value, children, saved, put

    def restore(self) -> None:
        """Restore the saved content, if it has changed."""
        self._put(self.value, self._saved)


def save_value(value: Any) -> SavedValue | None:
    """Save the content of ``value``; None for immutable values and unknown types."""
    if isinstance(value, (*_IMMUTABLE, torch.dtype, torch.device, torch.Size)):
        return None
    if isinstance(value, dict):
        pairs = list(value.items())
        return SavedValue(value, pairs, _put_dict, [held for _, held in pairs])
    if isinstance(value, (list, deque)):
        items = list(value)
        return SavedValue(value, items, _put_list, items)
    if isinstance(value, (tuple, frozenset)):
        return SavedValue(value, None, lambda value, kept: None, value)
    if isinstance(value, set):
        return SavedValue(value, set(value), _put_set)
    if isinstance(value, bytearray):
        return SavedValue(value, bytes(value), lambda value, kept: value.__setitem__(slice(None), kept))
    if isinstance(value, np.ndarray):
        fits = value.nbytes <= LARGE_BYTES and value.flags.writeable and not value.dtype.hasobject
        return SavedValue(value, value.copy(), _put_array) if fits else None
    return _generator(value) or _plain_object(value)


def _generator(value: Any) -> SavedValue | None:
    if isinstance(value, torch.Generator):
        return SavedValue(value, value.get_state(), lambda value, kept: value.set_state(kept))
    if isinstance(value, random.Random):
        return SavedValue(value, value.getstate(), lambda value, kept: value.setstate(kept))
    if isinstance(value, np.random.Generator):
        return SavedValue(value, value.bit_generator.state, lambda value, kept: setattr(value.bit_generator, "state", kept))
    if isinstance(value, np.random.RandomState):
        return SavedValue(value, value.get_state(), lambda value, kept: value.set_state(kept))
    return None


def _plain_object(value: Any) -> SavedValue | None:
    if type(value).__module__.partition(".")[0] in FOREIGN:
        return None
    attributes = dict(getattr(value, "__dict__", None) or {})
    slots = {name: getattr(value, name) for name in slot_names(type(value)) if hasattr(value, name)}
    if not attributes and not slots:
        return SavedValue(value, ({}, {}), _put_object) if hasattr(value, "__dict__") else None
    return SavedValue(value, (attributes, slots), _put_object, [*attributes.values(), *slots.values()])


def slot_names(kind: type) -> list[str]:
    """Names in the ``__slots__`` of a class and its bases."""
    found: list[str] = []
    for base in kind.__mro__:
        own = base.__dict__.get("__slots__", ())
        found += [own] if isinstance(own, str) else [name for name in own if isinstance(name, str)]
    return [name for name in found if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _put_dict(value: Any, kept: list[tuple[Any, Any]]) -> None:
    now = list(value.items())
    if len(now) == len(kept) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, kept, strict=True)):
        return
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # bypasses methods that a subclass overrides
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
            with contextlib.suppress(AttributeError):  # a read-only attribute has not changed
                object.__setattr__(value, name, held)
