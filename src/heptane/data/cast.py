"""Convert inputs of dtypes that the model does not accept, such as NumPy's float64 or uint8 images, batch by batch.

The model first runs on a few unconverted samples, and only what it rejects is converted: indices of an embedding stay
integers, and a model that scales its own images gets them unscaled. The data itself keeps its dtype in memory. The user is
told of each conversion.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.base.tree import TEXT_REMEDY, Path, is_text, tree_leaves

UNSIGNED = ("torch.uint16", "torch.uint32", "torch.uint64")  # PyTorch supports few operations on these
MAX_TRIES = 32  # combinations of conversions to try, if the inputs hold several integer tensors


class CastRule(NamedTuple):
    """The conversion of one tensor."""

    dtype: torch.dtype
    scaled: bool = False
    """whether 0 to 255 (or to 65,535) is scaled to [0, 1]"""


@dataclass
class Cast:
    """The conversions of a run, by path in the inputs and dtype, learned from the first batch of each structure."""

    rules: dict[tuple[Path, torch.dtype], CastRule] = field(default_factory=dict)
    left_out: set[Path] = field(default_factory=set)
    """text entries that are removed"""
    of_targets: torch.dtype | None = None
    """the dtype for float64 targets"""
    _seen: set[Any] = field(default_factory=set)

    def inputs(self, data: Any) -> Any:
        """Convert inputs for the model; without conversions, return the same object."""
        return self._changed(data, ()) if self.rules or self.left_out else data

    def targets(self, data: Any) -> Any:
        """Convert targets; without conversions, return the same object."""
        return _in_32_bits(data, self.of_targets) if self.of_targets is not None else data

    def learn(
        self,
        model: torch.nn.Module,
        inputs: Any,
        targets: Any,
        *,
        labels: bool = False,
        whole: Any = None,
        tries: bool = True,
    ) -> list[str]:
        """Learn the conversions for batches like this one; return messages about them.

        Args:
            model: probed on two samples, and left unchanged.
            inputs, targets: a batch, on the model's device.
            labels: whether the model also takes the targets.
            whole: all inputs, if they are in memory.
            tries: False if the model cannot be run: then only floats of another precision are converted.

        Raises:
            InputError: tensors without values, text that cannot be removed, or numbers that overflow the model's dtype.
        """
        found = list(tree_leaves(inputs))
        key = tuple((path, getattr(leaf, "dtype", type(leaf))) for path, leaf in found), _wide(targets)
        if key in self._seen:
            return []
        self._seen.add(key)
        check_real("inputs", inputs)
        check_real("targets", targets)
        own = model_dtype(model)
        messages = self._learn_targets(targets, own)
        text = [path for path, leaf in found if is_text(leaf) and path not in self.left_out]
        check_text(model, inputs, text)
        self.left_out |= set(text)
        messages += [f"inputs{_named(path)} are text, which {type(model).__name__} does not take: removed" for path in text]
        odd = {path: leaf for path, leaf in found if _is_odd(leaf, own) and (path, leaf.dtype) not in self.rules}
        all_of = dict(tree_leaves(whole)) if whole is not None else {}
        chosen = self._chosen(model, inputs, targets if labels else None, odd, all_of, own, tries, text)
        for path, rule in chosen.items():
            leaf = odd[path]
            self.rules[path, leaf.dtype] = rule
            if rule.dtype.is_floating_point and leaf.is_floating_point():
                check_fits(f"inputs{_named(path)}", all_of.get(path, leaf), rule.dtype)
            messages.append(_message(path, leaf, rule))
        return messages

    def _learn_targets(self, targets: Any, own: torch.dtype) -> list[str]:
        if not _wide(targets) or own is torch.float64 or self.of_targets is not None:
            return []
        self.of_targets = torch.float32
        for path, leaf in tree_leaves(targets):
            if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64:
                check_fits(f"targets{_named(path)}", leaf, torch.float32)
        return ["targets were converted from float64 to float32"]

    def _chosen(
        self,
        model: torch.nn.Module,
        inputs: Any,
        labels: Any,
        odd: dict[Path, torch.Tensor],
        whole: dict[Path, Any],
        own: torch.dtype,
        tries: bool,
        text: list[Path],
    ) -> dict[Path, CastRule]:
        """The first set of conversions with which the model runs; if there is none, the default one, since the model's error
        must have another cause."""
        if not odd and not text:
            return {}
        options = {path: _options(leaf, whole.get(path, leaf), own) for path, leaf in odd.items()}
        usual = {path: some[0] for path, some in options.items()}
        if not tries:
            return {path: rule for path, rule in usual.items() if rule is not None}
        combinations = [dict.fromkeys(odd), usual, *(dict(zip(odd, some, strict=True)) for some in _product(options))]
        tried, error = list[dict[Path, CastRule | None]](), None
        for combination in combinations:
            if combination in tried:
                continue
            tried.append(combination)
            rules = {path: rule for path, rule in combination.items() if rule is not None}
            error = self._error(model, inputs, labels, {(path, odd[path].dtype): rule for path, rule in rules.items()})
            if error is None:
                return rules
            if text and isinstance(error, KeyError) and (error.args and (error.args[0],) in text):
                raise InputError(f"inputs{_named(text[0])} are text, and the model reads them: {TEXT_REMEDY}") from None
        if error is not None:
            _check_complex(model, odd, error)
        return {path: rule for path, rule in usual.items() if rule is not None}

    def _error(
        self, model: torch.nn.Module, inputs: Any, labels: Any, rules: dict[tuple[Path, torch.dtype], CastRule]
    ) -> Exception | None:
        from heptane.base.tree import copy_rows
        from heptane.model.probe import probe_output

        sample = copy_rows(inputs, slice(2))
        sample_labels = None if labels is None else copy_rows(labels, slice(2))
        try:
            with torch.inference_mode(False):
                probe_output(model, Cast({**self.rules, **rules}, self.left_out).inputs(sample), self.targets(sample_labels))
        except Exception as error:  # a model may raise anything for a dtype that it does not accept
            return error
        return None

    def _changed(self, data: Any, path: Path) -> Any:
        if isinstance(data, torch.Tensor):
            rule = self.rules.get((path, data.dtype))
            if rule is None:
                return data
            return data.to(rule.dtype).div_(torch.iinfo(data.dtype).max) if rule.scaled else data.to(rule.dtype)
        if isinstance(data, MutableMapping):
            made = copy.copy(data)
            for name, value in data.items():
                if (*path, name) in self.left_out:
                    del made[name]
                else:
                    made[name] = self._changed(value, (*path, name))
            return made
        if isinstance(data, (tuple, list)) and not is_text(data):
            items = [self._changed(value, (*path, at)) for at, value in enumerate(data)]
            return type(data)._make(items) if hasattr(data, "_make") else type(data)(items)
        return data


def model_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of most of a model's floating-point numbers; PyTorch's default dtype if it has none."""
    counts: dict[torch.dtype, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            size = 1 if torch.nn.parameter.is_lazy(tensor) else tensor.numel()
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + size
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.get_default_dtype()


def check_real(what: str, data: Any) -> None:
    """Raise :class:`InputError` for tensors without values, or that cannot be split into batches by rows."""
    for path, leaf in tree_leaves(data):
        if not isinstance(leaf, torch.Tensor):
            continue
        if leaf.is_meta:
            raise InputError(f"{what}{_named(path)} are on the meta device, so they have no values: give real tensors")
        if leaf.is_quantized:
            raise InputError(f"{what}{_named(path)} are quantized, but training needs plain numbers: pass x.dequantize()")
        kind = "nested" if leaf.is_nested else str(leaf.layout).removeprefix("torch.").removesuffix("_coo")
        if leaf.is_nested or leaf.layout is not torch.strided:
            remedy = "pad it: tensor.to_padded_tensor(0)" if leaf.is_nested else "pass tensor.to_dense()"
            raise InputError(f"{what}{_named(path)} are a {kind} tensor, which cannot be split into batches: {remedy}")


def check_text(model: torch.nn.Module, inputs: Any, text: list[Path]) -> None:
    """Raise :class:`InputError` for text that cannot be removed: ``forward`` takes it by name, or it is not in a dict."""
    import inspect

    from heptane.model.forward import unwrapped

    if not text:
        return
    try:
        names = set(inspect.signature(unwrapped(model).forward).parameters)
    except (TypeError, ValueError):
        names = set()
    for path in text:
        if not path or not isinstance(path[-1], str) or path[-1] in names:
            takes = f", and {type(model).__name__} takes it" if path and path[-1] in names else ""
            raise InputError(f"inputs{_named(path)} are text{takes}; training needs tensors: {TEXT_REMEDY}")


def check_fits(what: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise :class:`InputError` if finite numbers would overflow ``dtype``."""
    if tensor.dtype.itemsize <= dtype.itemsize or not tensor.numel():
        return
    low, high = (float(value) for value in torch.aminmax(tensor.detach()))
    most, largest = torch.finfo(dtype).max, max(abs(low), abs(high))
    if most < largest < float("inf"):
        raise InputError(
            f"{what} contain {largest:.3g}, which overflows {_short(dtype)} (at most {most:.3g}): scale them, or call "
            "model.double()"
        )


def to_tensors(data: Any) -> Any:
    """Convert NumPy arrays, also in dicts, tuples and lists, to tensors that share their memory.

    Returns the same object if there are none; arrays of text become lists.

    Raises:
        InputError: arrays of objects or dates, or masked arrays.
    """
    if type(data) is torch.Tensor:
        return data.to(torch.int64) if str(data.dtype) in UNSIGNED and data.ndim < 3 else data
    if isinstance(data, np.ndarray):
        return _tensor(data)
    if isinstance(data, dict):
        made: dict[Any, Any] = {name: to_tensors(value) for name, value in data.items()}
        if all(made[name] is value for name, value in data.items()):
            return data
        changed = copy.copy(data)
        changed.update(made)
        return changed
    if isinstance(data, (tuple, list)) and not is_text(data):
        items = [to_tensors(value) for value in data]
        if all(one is other for one, other in zip(items, data, strict=True)):
            return data
        return type(data)._make(items) if hasattr(data, "_make") else type(data)(items)
    return data


def _tensor(array: Any) -> Any:
    import warnings

    if isinstance(array, np.ma.MaskedArray):
        raise InputError("a masked array: training would use the masked values as numbers; fill them with array.filled(...)")
    if array.dtype.kind in "US":
        return array.tolist()  # treated like other text
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16 or array.dtype == np.longdouble:
        raise InputError(
            f"a NumPy array of dtype {array.dtype}: expected numbers; convert it, for example with array.astype('float32')"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > (2 if array.ndim > 2 else 1):  # PyTorch supports few operations
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():  # PyTorch warns of read-only arrays, but nothing writes to them
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _options(leaf: torch.Tensor, whole: Any, own: torch.dtype) -> list[CastRule | None]:
    """Possible conversions of a tensor, the most likely first; None is no conversion."""
    if leaf.is_floating_point():
        return [CastRule(own)]
    if leaf.is_complex():
        return [None, CastRule(own.to_complex())]
    as_numbers: list[CastRule | None] = [] if leaf.dtype is torch.int64 else [CastRule(torch.int64)]
    if leaf.dtype in (torch.uint8, torch.uint16) and leaf.ndim > 2 and _beyond_one(whole):
        return [CastRule(own, scaled=True), None, *as_numbers]
    return [None, CastRule(own), *as_numbers]


def _product(options: dict[Path, list[CastRule | None]]) -> Iterator[tuple[CastRule | None, ...]]:
    return itertools.islice(itertools.product(*options.values()), MAX_TRIES)


def _is_odd(leaf: Any, own: torch.dtype) -> bool:
    """Whether a model of dtype ``own`` may reject it."""
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.dtype is not own


def _beyond_one(whole: torch.Tensor) -> bool:
    if whole.dtype is torch.uint8:
        return bool((whole > 1).any())
    signed = whole.view(torch.int16)  # uint16 has no comparisons
    return bool(((signed < 0) | (signed > 1)).any())


def _check_complex(model: torch.nn.Module, odd: dict[Path, torch.Tensor], error: Exception) -> None:
    """Raise :class:`InputError` for complex inputs that the model rejects in every conversion."""
    for path, leaf in odd.items():
        if leaf.is_complex():
            raise InputError(
                f"inputs{_named(path)} are {_short(leaf.dtype)}, which {type(model).__name__} does not accept "
                f"({one_line(error)}): pass torch.view_as_real(x) or x.abs(), or build the model's layers with "
                "dtype=torch.complex64"
            ) from None


def _wide(targets: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64 for _, leaf in tree_leaves(targets))


def _in_32_bits(data: Any, dtype: torch.dtype) -> Any:
    from heptane.base.tree import tree_map

    return tree_map(lambda t: t.to(dtype) if t.dtype is torch.float64 else t, data)


def _named(path: Path) -> str:
    return "".join(f"[{key!r}]" for key in path)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _message(path: Path, leaf: torch.Tensor, rule: CastRule) -> str:
    where = f" (inputs{_named(path)})" if path else ""
    if rule.scaled:
        return f"{_short(leaf.dtype)} images were scaled to [0, 1]{where}"
    return f"inputs{_named(path)} were converted from {_short(leaf.dtype)} to {_short(rule.dtype)}"
