"""Inputs of other types than the model takes, such as NumPy's float64 or uint8 images: converted batch by batch, and said.

The model is tried on a few samples as they are first, and only what it does not take is converted: integers that an
embedding looks up stay integers, and a model that scales its images itself is given them as they are. Nothing is kept twice:
uint8 stays uint8 in memory, and uint16 of images uint16.
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

UNSIGNED = ("torch.uint16", "torch.uint32", "torch.uint64")  # PyTorch computes little with them
MAX_TRIES = 32  # combinations of conversions, of inputs that hold several tensors of integers


class CastRule(NamedTuple):
    """What a tensor becomes."""

    dtype: torch.dtype
    scaled: bool = False
    """0 to 255, or 65,535, becomes 0 to 1"""


@dataclass
class Cast:
    """The conversions of a run: by place in the inputs and type, learned from the first batch of each kind."""

    rules: dict[tuple[Path, torch.dtype], CastRule] = field(default_factory=dict)
    left_out: set[Path] = field(default_factory=set)
    """columns of text"""
    of_targets: torch.dtype | None = None
    """what float64 targets become"""
    _seen: set[Any] = field(default_factory=set)

    def inputs(self, data: Any) -> Any:
        """The inputs as the model takes them; the very same object where nothing is to be converted."""
        return self._changed(data, ()) if self.rules or self.left_out else data

    def targets(self, data: Any) -> Any:
        """The targets likewise."""
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
        """Find what is to be converted in batches like this one; what is to be said of it.

        Args:
            model: it is tried on two samples, and left as it is.
            inputs, targets: a batch, on the model's device.
            labels: whether the model is given the targets too.
            whole: all inputs, where they are in memory.
            tries: False where the model cannot be run: then numbers of another precision are converted, and no integers.

        Raises:
            InputError: tensors without values, text that cannot be left out, numbers that the model's type cannot hold.
        """
        found = list(tree_leaves(inputs))
        key = tuple((path, getattr(leaf, "dtype", type(leaf))) for path, leaf in found), _wide(targets)
        if key in self._seen:
            return []
        self._seen.add(key)
        check_real("inputs", inputs)
        check_real("targets", targets)
        own = model_dtype(model)
        said = self._learn_targets(targets, own)
        text = [path for path, leaf in found if is_text(leaf) and path not in self.left_out]
        check_text(model, inputs, text)
        self.left_out |= set(text)
        said += [f"inputs{_named(path)} are text, which {type(model).__name__} does not take: left out" for path in text]
        odd = {path: leaf for path, leaf in found if _is_odd(leaf, own) and (path, leaf.dtype) not in self.rules}
        all_of = dict(tree_leaves(whole)) if whole is not None else {}
        chosen = self._chosen(model, inputs, targets if labels else None, odd, all_of, own, tries, text)
        for path, rule in chosen.items():
            leaf = odd[path]
            self.rules[path, leaf.dtype] = rule
            if rule.dtype.is_floating_point and leaf.is_floating_point():
                check_fits(f"inputs{_named(path)}", all_of.get(path, leaf), rule.dtype)
            said.append(_said(path, leaf, rule))
        return said

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
        """The first set of conversions with which the model runs; where there is none, the usual one: then what the model
        raises is about something else."""
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

        few = copy_rows(inputs, slice(2))
        few_labels = None if labels is None else copy_rows(labels, slice(2))
        try:
            with torch.inference_mode(False):
                probe_output(model, Cast({**self.rules, **rules}, self.left_out).inputs(few), self.targets(few_labels))
        except Exception as error:  # whatever a model raises for a type that it does not take
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
    """The type of most of a model's real numbers; PyTorch's default where it has none."""
    counts: dict[torch.dtype, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            size = 1 if torch.nn.parameter.is_lazy(tensor) else tensor.numel()
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + size
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.get_default_dtype()


def check_real(what: str, data: Any) -> None:
    """Refuse tensors that hold no values, or that cannot be cut into batches by rows."""
    for path, leaf in tree_leaves(data):
        if not isinstance(leaf, torch.Tensor):
            continue
        if leaf.is_meta:
            raise InputError(f"{what}{_named(path)} are on the meta device, where tensors hold no values: give real ones")
        if leaf.is_quantized:
            raise InputError(f"{what}{_named(path)} are quantized, and training computes with numbers: pass x.dequantize()")
        kind = "nested" if leaf.is_nested else str(leaf.layout).removeprefix("torch.").removesuffix("_coo")
        if leaf.is_nested or leaf.layout is not torch.strided:
            remedy = "pad it: tensor.to_padded_tensor(0)" if leaf.is_nested else "pass tensor.to_dense()"
            raise InputError(f"{what}{_named(path)} are a {kind} tensor, which is not cut into batches by rows: {remedy}")


def check_text(model: torch.nn.Module, inputs: Any, text: list[Path]) -> None:
    """Refuse text that the model's ``forward`` takes by name, or that is no entry of a dict: it cannot be left out.

    Raises:
        InputError: it names the column.
    """
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
            raise InputError(f"inputs{_named(path)} are text{takes}; training takes tensors: {TEXT_REMEDY}")


def check_fits(what: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse finite numbers that would be infinite in ``dtype``."""
    if tensor.dtype.itemsize <= dtype.itemsize or not tensor.numel():
        return
    low, high = (float(value) for value in torch.aminmax(tensor.detach()))
    most, largest = torch.finfo(dtype).max, max(abs(low), abs(high))
    if most < largest < float("inf"):
        raise InputError(
            f"{what} hold {largest:.3g}, which {_short(dtype)} cannot hold (at most {most:.3g}): scale them, or call "
            "model.double()"
        )


def to_tensors(data: Any) -> Any:
    """``data`` with NumPy arrays, in dicts, tuples and lists too, as tensors in the same memory; the same object if there is
    none.

    Raises:
        InputError: arrays of objects, dates or texts, or masked ones.
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
        raise InputError(
            "a masked array: the masked values would be trained on as numbers; fill them with array.filled(...)"
        )
    if array.dtype.kind in "US":
        return array.tolist()  # text: named, or left out, as other text is
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16 or array.dtype == np.longdouble:
        raise InputError(
            f"a NumPy array of dtype {array.dtype}: expected numbers; convert it, such as array.astype('float32')"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > (2 if array.ndim > 2 else 1):  # PyTorch computes little with them
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():  # an array that may only be read, such as a file's: nothing writes to it
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _options(leaf: torch.Tensor, whole: Any, own: torch.dtype) -> list[CastRule | None]:
    """What a tensor can be given to a model as, the most usual first; None is as it is."""
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
    """Whether a model whose numbers are ``own`` may not take it as it is."""
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.dtype is not own


def _beyond_one(whole: torch.Tensor) -> bool:
    if whole.dtype is torch.uint8:
        return bool((whole > 1).any())
    signed = whole.view(torch.int16)  # uint16 has no comparisons
    return bool(((signed < 0) | (signed > 1)).any())


def _check_complex(model: torch.nn.Module, odd: dict[Path, torch.Tensor], error: Exception) -> None:
    """Say that inputs are complex, where the model runs with none of the conversions."""
    for path, leaf in odd.items():
        if leaf.is_complex():
            raise InputError(
                f"inputs{_named(path)} are {_short(leaf.dtype)}, and {type(model).__name__} does not take them "
                f"({one_line(error)}): pass torch.view_as_real(x), two real numbers for each, or x.abs(); or build the "
                "model's layers with dtype=torch.complex64"
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


def _said(path: Path, leaf: torch.Tensor, rule: CastRule) -> str:
    where = f" (inputs{_named(path)})" if path else ""
    if rule.scaled:
        return f"{_short(leaf.dtype)} images were scaled to [0, 1]{where}"
    return f"inputs{_named(path)} were converted from {_short(leaf.dtype)} to {_short(rule.dtype)}"
