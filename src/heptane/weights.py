"""Weights out of a file and into a model: read without running code, matched by name and shape, and reported."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from heptane._lazy import torch
from heptane.errors import InputError, check_range, nearest, one_line
from heptane.layers import find_head

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIX = re.compile(r"(?:module|_orig_mod|backbone|model)\.")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What :func:`load_weights` did with each tensor; names are the model's, except in ``unexpected``."""

    matched: tuple[str, ...] = ()
    """Taken over as they are (cast to the model's dtype)."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """Taken over with another number of input channels, and by which rule."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """In both, and not taken: the reason."""
    missing: tuple[str, ...] = ()
    """In the model only: these keep the values that they had."""
    unexpected: tuple[str, ...] = ()
    """In the file only."""
    prefix: str = ""
    """How names were translated, as ``file's prefix -> model's prefix``; empty when they agree."""
    share: float = 0.0
    """The part of the model's parameters outside the head that was taken over, by element count, 0 to 1."""

    def __str__(self) -> str:
        taken = len(self.matched) + len(self.resized)
        lines = [f"loaded {taken} tensors: {self.share:.1%} of the parameters outside the head"]
        lines += [f"names translated: {self.prefix}"] if self.prefix else []
        lines += [f"resized {name}: {rule}" for name, rule in self.resized.items()]
        lines += [f"left out {name}: {reason}" for name, reason in self.left_out.items()]
        lines += [f"in the model only: {_few(self.missing)}"] if self.missing else []
        lines += [f"in the file only: {_few(self.unexpected)}"] if self.unexpected else []
        return "\n".join(lines)


def load_weights(
    model: torch.nn.Module, path: str | Path, *, min_match: float = 0.5, exclude: Iterable[str] = ()
) -> LoadReport:
    """Copy the weights in a file into the model wherever name and shape agree, and say what was done with the rest.

    A first convolution with another number of input channels is adapted so that a grey image gets the same response.
    The model is untouched when this raises.

    Args:
        model: the model to fill; its dtypes and devices stay.
        path: a ``.safetensors`` file, or a ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` that holds tensors and no code.
        min_match: the least share of the parameters outside the head, by element count, 0 to 1, that must be found.
        exclude: names, beginnings of names (``fc``) or patterns (``*.bias``) of the model that are not to be loaded;
            they do not count in the share.

    Returns:
        The report; ``print`` it.

    Raises:
        InputError: no such file; torn; it would run code; it holds NaN or infinity; too little of it matches.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"0.weight": torch.ones(3, 4), "1.weight": torch.ones(5, 3)}, f"{folder}/net.safetensors")
        ...     print(load_weights(net, f"{folder}/net.safetensors"))
        loaded 1 tensors: 80.0% of the parameters outside the head
        left out 1.weight: shape (5, 3) in the file, (2, 3) in the model
        in the model only: 0.bias, 1.bias

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2 (fine-tuning a pretrained model).
    """
    check_range("min_match", min_match, 0, 1)
    source = read_weights(path)
    target = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    excluded = _excluded(target, [exclude] if isinstance(exclude, str) else list(exclude))
    pairs, prefix = _pair(source, target)
    first = _first_convolution(model)
    taken: dict[str, torch.Tensor] = {}
    resized: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in (n for n in target if n in pairs):
        tensor, goal = source[pairs[name]], target[name]
        if reason := "excluded" if name in excluded else _unfit(tensor, goal, adaptable=name == first):
            left_out[name] = reason
            continue
        if tensor.shape != goal.shape:
            resized[name] = f"{tensor.shape[1]} -> {goal.shape[1]} input channels, {_rule(tensor, goal)}"
            tensor = adapt_channels(tensor.to(torch.promote_types(tensor.dtype, torch.float32)), goal.shape[1])
        taken[name] = _cast(tensor, goal, f"weights={str(path)!r}: {pairs[name]}")
    loaded = {id(target[name]) for name in taken}
    report = LoadReport(
        matched=tuple(name for name in taken if name not in resized),
        resized=resized,
        left_out=left_out,
        missing=tuple(n for n, t in target.items() if n not in pairs and n not in excluded and id(t) not in loaded),
        unexpected=tuple(name for name in source if name not in pairs.values()),
        prefix=prefix,
        share=_share(model, loaded, {id(target[name]) for name in excluded}),
    )
    if report.share < min_match:
        raise InputError(_too_little(path, report, min_match))
    model.load_state_dict(taken, strict=False)
    return report


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The named tensors in a weight file, on the CPU; nothing in the file is run.

    Args:
        path: ``.safetensors``, or a pickle (``.pth``, ``.pt``, ``.bin``, ``.ckpt``) of tensors; a state dict inside
            ``state_dict``, ``model_state_dict`` or ``model`` is unwrapped.

    Raises:
        InputError: no such file, a folder, an unknown ending, a torn file, a pickle that would run code, no tensors.

    Example:
        >>> read_weights("nowhere.pth")
        Traceback (most recent call last):
        heptane.errors.InputError: weights='nowhere.pth': no such file; give the path of a .safetensors or .pth file
    """
    file, said = Path(path).expanduser(), f"weights={str(path)!r}"
    if file.is_dir():
        inside = "model.safetensors" if (file / "model.safetensors").is_file() else "the file in it"
        raise InputError(f"{said} is a folder; give {inside}")
    if not file.is_file():
        raise InputError(f"{said}: no such file; give the path of a .safetensors or .pth file")
    if file.suffix.lower() not in (".safetensors", *PICKLES):
        raise InputError(f"{said} ends in {file.suffix!r}: expected .safetensors, {', '.join(PICKLES)}")
    found = _read_safetensors(file, said) if file.suffix.lower() == ".safetensors" else _read_pickle(file, said)
    tensors = {str(n): t for n, t in _unwrap(found).items() if isinstance(t, torch.Tensor)}
    if not tensors:
        raise InputError(f"{said} holds no named tensors; save it with torch.save(model.state_dict(), path)")
    return tensors


def adapt_channels(weight: torch.Tensor, in_channels: int) -> torch.Tensor:
    """A convolution's weight for another number of input channels, its response to a grey image unchanged.

    Channels are dealt out in turn, as cards are: to fewer channels, those dealt to the same place are summed (3 -> 1:
    the sum); to more, each is repeated and divided by its number of copies (1 -> 3: repeated, divided by 3).

    Args:
        weight: (out, in, ...).
        in_channels: the number wanted, 1 or more.

    Returns:
        (out, in_channels, ...), with the same sum over the input channels.

    Example:
        >>> adapt_channels(torch.tensor([[1.0, 2.0, 4.0]]), 1)
        tensor([[7.]])
        >>> adapt_channels(torch.tensor([[3.0]]), 3)
        tensor([[1., 1., 1.]])
    """
    check_range("in_channels", in_channels, 1, whole=True)
    held = weight.shape[1]
    dealt = torch.arange(max(held, in_channels))
    if in_channels < held:
        shape = (weight.shape[0], in_channels, *weight.shape[2:])
        return weight.new_zeros(shape).index_add(1, dealt % in_channels, weight)
    copies = torch.bincount(dealt % held)[dealt % held].to(weight.dtype)
    return weight[:, dealt % held] / copies.view(1, -1, *[1] * (weight.ndim - 2))


def _read_safetensors(file: Path, said: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{said} is torn or not a safetensors file ({one_line(error)}); fetch it again") from error


def _read_pickle(file: Path, said: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or torn file may raise anything at all
        code = re.search(r"GLOBAL (\S+)", str(error))
        cause = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # the rest advises to read the file unsafely
        what = (
            f"refused: reading it could run code ({code[1]})"
            if code
            else f"is torn, or holds more than tensors ({cause[1] if cause else one_line(error)})"
        )
        remedy = "get a .safetensors file, or save it again with torch.save(model.state_dict(), path)"
        raise InputError(f"{said} {what}; {remedy}") from error


def _unwrap(found: object) -> Mapping[Any, object]:
    while isinstance(found, Mapping):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            return found
        found = inner
    return {}


def _pair(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> tuple[dict[str, str], str]:
    """Each of the model's names with the file's: by the pair of prefixes under which most elements fit."""

    def paired(held: str, wanted: str) -> dict[str, str]:
        renamed = {n: held + n.removeprefix(wanted) for n in target if n.startswith(wanted)}
        pairs = {name: other for name, other in renamed.items() if other in source}
        used = set(pairs.values())
        return pairs | {n: n for n in target if n not in pairs and n in source and n not in used}

    def fitting(pairs: Mapping[str, str]) -> int:
        return sum(target[n].numel() for n, m in pairs.items() if _shape(source[m]) == _shape(target[n]))

    choices = sorted(product(_prefixes(source), _prefixes(target)), key=lambda two: len(two[0]) + len(two[1]))
    held, wanted = max(choices, key=lambda two: fitting(paired(*two)))
    stated = f"{held or '(none)'} -> {wanted or '(none)'}" if held != wanted else ""
    return paired(held, wanted), stated


def _prefixes(names: Iterable[str]) -> list[str]:
    """``""`` and the wrappers' prefixes that some name begins with, up to three deep."""
    found = {""}
    for name in names:
        end = 0
        for _ in range(3):
            if not (part := PREFIX.match(name, end)):
                break
            end = part.end()
            found.add(name[:end])
    return sorted(found)


def _shape(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of an ordinary tensor; None for a nested or sparse one, or one without data."""
    if tensor.is_nested or tensor.is_sparse or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    return None if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _first_convolution(model: torch.nn.Module) -> str:
    """The name of the weight of the first convolution, or an empty string."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
            return f"{name}.weight".lstrip(".")
    return ""


def _unfit(tensor: torch.Tensor, goal: torch.Tensor, *, adaptable: bool) -> str:
    """Why a tensor cannot be taken over, or an empty string; ``adaptable``: its number of input channels may differ."""
    if _shape(goal) is None or goal.is_meta:
        return "the model's tensor has no values yet; run one batch through the model first, or move it off meta"
    if _shape(tensor) is None or tensor.is_meta:
        return "not an ordinary dense tensor in the file"
    if (tensor.is_floating_point(), tensor.is_complex()) != (goal.is_floating_point(), goal.is_complex()):
        return f"{tensor.dtype} in the file, {goal.dtype} in the model"
    if tensor.shape == goal.shape or (adaptable and _differs_in_channels(tensor, goal)):
        return ""
    return f"shape {tuple(tensor.shape)} in the file, {tuple(goal.shape)} in the model"


def _cast(tensor: torch.Tensor, goal: torch.Tensor, said: str) -> torch.Tensor:
    cast = tensor.detach().to(goal.dtype)
    if cast.is_floating_point() or cast.is_complex():
        # A mask of attention is meant to hold -inf: what the model itself holds in the same place is no damage.
        sound = cast.isfinite() | (cast == goal.detach().to(cast.device))
        if not bool(sound.all()):
            as_what = "" if tensor.dtype == goal.dtype else f" as {goal.dtype}"
            raise InputError(f"{said} holds NaN or infinity{as_what}; get a sound copy of the weights, or exclude it")
    return cast


def _differs_in_channels(tensor: torch.Tensor, goal: torch.Tensor) -> bool:
    alike = tensor.ndim == goal.ndim > 2 and tensor.shape[0] == goal.shape[0] and tensor.shape[2:] == goal.shape[2:]
    return alike and min(tensor.shape[1], goal.shape[1]) > 0


def _rule(tensor: torch.Tensor, goal: torch.Tensor) -> str:
    if goal.shape[1] < tensor.shape[1]:
        return "summed" if goal.shape[1] == 1 else "dealt out in turn and summed"
    return "repeated in turn and divided by the number of copies"


def _excluded(target: Mapping[str, object], patterns: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {n for n in target if n == pattern or n.startswith(pattern + ".") or fnmatchcase(n, pattern)}
        if not hits:
            raise InputError(f"exclude={pattern!r} matches none of the model's names{nearest(pattern, target)}")
        found |= hits
    return found


def _share(model: torch.nn.Module, loaded: set[int], excluded: set[int]) -> float:
    sizes = {id(p): p.numel() for p in model.parameters() if _shape(p) is not None and id(p) not in excluded}
    head = find_head(model)
    apart = {id(p) for p in head[1].parameters()} if head else set()
    body = {key: size for key, size in sizes.items() if key not in apart} or sizes
    return sum(size for key, size in body.items() if key in loaded) / max(sum(body.values()), 1)


def _too_little(path: str | Path, report: LoadReport, min_match: float) -> str:
    sides = [
        f"in the model only: {_few(report.missing)}" if report.missing else "",
        f"in the file only: {_few(report.unexpected)}" if report.unexpected else "",
        f"left out: {_few([f'{n} ({why})' for n, why in report.left_out.items()])}" if report.left_out else "",
    ]
    return (
        f"weights={str(path)!r} match {report.share:.1%} of the model's parameters outside the head, below "
        f"min_match={min_match:g}; {'; '.join(filter(None, sides))}; "
        "build the model that the file was saved from, or lower min_match"
    )


def _few(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
