"""Load weights into a model: matched by name and shape, adapted where a rule allows other sizes, and reported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from heptane.base.errors import InputError, check_range, did_you_mean
from heptane.base.lazy import torch
from heptane.model.names import clean_names
from heptane.pretrained.layers import find_head
from heptane.pretrained.weights.files import find_file, read_named, read_weights
from heptane.pretrained.weights.names import abbreviate, pair_names, printable
from heptane.pretrained.weights.shapes import adapt, adaptable, can_adapt, shape_of


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What :func:`load_weights` did with each tensor; names are the model's, except in ``unexpected``."""

    source: str = ""
    """Where the weights come from."""
    taken: str = ""
    """The key of a training checkpoint that was used, and which others there were; empty if the file holds nothing else."""
    matched: tuple[str, ...] = ()
    """Loaded unchanged (cast to the model's dtype)."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """Loaded with another number of input channels or positions, and the rule."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """In both but not loaded, and the reason."""
    missing: tuple[str, ...] = ()
    """Only in the model: these keep their values."""
    unexpected: tuple[str, ...] = ()
    """Only in the source."""
    prefix: str = ""
    """How names were translated, as ``source's prefix -> model's prefix``; empty if they agree."""
    share: float = 0.0
    """Fraction of the model's parameters outside the head that was loaded, by element count, in [0, 1]."""

    def __str__(self) -> str:
        taken = len(self.matched) + len(self.resized)
        lines = [f"source: {self.source}"] if self.source else []
        lines += [f"taken: {self.taken}"] if self.taken else []
        lines += [f"loaded {taken} tensors: {self.share:.1%} of the parameters outside the head"]
        lines += [f"names translated: {self.prefix}"] if self.prefix else []
        lines += [f"resized {name}: {rule}" for name, rule in self.resized.items()]
        lines += [f"left out {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([*lines, *self.on_one_side()])

    def on_one_side(self) -> list[str]:
        """The names that only the model or only the file has, in words."""
        sides = {"in the model only": self.missing, "in the file only": self.unexpected}
        return [f"{where}: {abbreviate(names)}" for where, names in sides.items() if names]


def load_weights(
    model: torch.nn.Module, source: str | Path, *, min_match: float = 0.5, exclude: Iterable[str] = ()
) -> LoadReport:
    """Copy weights into the model wherever name and shape agree, and report on the rest.

    Names may differ by a prefix. A first convolution with another number of input channels is adapted to give the same
    response to a grey image; position embeddings are resampled. The model is unchanged if this raises.

    Args:
        model: the model to fill; its dtypes and devices stay.
        source: a ``.safetensors`` file, or a ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` with tensors and no code; the folder
            of a heptane run or a Hugging Face model; ``efficientnet-lite0`` (ImageNet weights from the extra
            ``pretrained``); ``minilm``; ``timm:NAME``; ``hf:NAME[@REVISION]`` or ``hf:FOLDER``.
        min_match: smallest fraction of the parameters outside the head, by element count, that must be found, in [0, 1].
        exclude: names, prefixes of names (``fc``) or patterns (``*.bias``) of the model that are not loaded; they do not
            count in the fraction.

    Returns:
        The report; ``print`` it.

    Raises:
        InputError: the source is missing, damaged, would run code or holds NaN or infinity; or too little of it matches.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"0.weight": torch.ones(3, 4), "1.weight": torch.ones(5, 3)}, f"{folder}/net.safetensors")
        ...     report = load_weights(net, f"{folder}/net.safetensors")
        >>> print(*str(report).splitlines()[1:], sep="\\n")
        loaded 1 tensors: 80.0% of the parameters outside the head
        left out 1.weight: shape (5, 3) in the file, (2, 3) in the model
        in the model only: 0.bias, 1.bias

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2 (fine-tuning a pretrained model).
    """
    check_range("min_match", min_match, 0, 1)
    held, where, key = read_source(source, model)
    clean = clean_names(model, outer=False)
    target = {clean[n]: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    excluded = _excluded(target, [exclude] if isinstance(exclude, str) else list(exclude))
    pairs, translation = _pair(held, target)
    kinds = {clean.get(name, name): kind for name, kind in adaptable(model).items()}
    taken: dict[str, torch.Tensor] = {}
    resized: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in (n for n in target if n in pairs):
        tensor, goal = held[pairs[name]], target[name]
        if reason := "excluded" if name in excluded else _unfit(tensor, goal, kinds.get(name, "")):
            left_out[name] = reason
            continue
        if tensor.shape != goal.shape:
            tensor, resized[name] = adapt(tensor, tuple(goal.shape), kinds[name])
        taken[name] = _cast(tensor, goal, f"weights={str(source)!r}: {printable(pairs[name])}")
    loaded = {id(target[name]) for name in taken}
    used = set(pairs.values())
    report = LoadReport(
        source=where,
        taken=key,
        matched=tuple(name for name in taken if name not in resized),
        resized=resized,
        left_out=left_out,
        missing=tuple(n for n, t in target.items() if n not in pairs and n not in excluded and id(t) not in loaded),
        unexpected=tuple(name for name in held if name not in used),
        prefix=translation,
        share=_share(model, loaded, {id(target[name]) for name in excluded}),
    )
    if report.share < min_match:
        raise InputError(_too_little(source, report, min_match))
    own = {short: name for name, short in clean.items()}
    model.load_state_dict({own[name]: tensor for name, tensor in taken.items()}, strict=False)
    return report


def read_source(source: str | Path, model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], str, str]:
    """The named tensors of a source, where they come from, and the key of the file that holds them, in words.

    Args:
        source: as for :func:`load_weights`.
        model: the model to fill; names for a transformers model are translated by its library.
    """
    spec, label = str(source), f"weights={str(source)!r}"
    if spec.startswith("timm:"):
        from heptane.pretrained.hubs import timm_hub

        return *timm_hub.read(spec), ""
    if spec == "efficientnet-lite0":
        from heptane.pretrained.hubs import efficientnet_hub

        return read_weights(Path(efficientnet_hub.weight_file()), label), "ImageNet weights of efficientnet-lite0", ""
    if spec == "minilm":
        from heptane.pretrained.hubs import minilm_hub

        source = minilm_hub.folder()
    path = Path(os.path.expanduser(source))
    if spec.startswith("hf:"):
        from heptane.pretrained.hubs import hf_hub

        path = hf_hub.find(spec, label, hf_hub.SAFE, hf_hub.PICKLES)
    file = find_file(path, label) if os.path.isdir(path) else path
    tensors, key = read_named(file, label)
    if os.path.isfile(file.parent / "config.json"):
        from heptane.pretrained.hubs import transformers_hub

        tensors = transformers_hub.translate(model, tensors, file.parent, label)
    return tensors, spec if file == path else f"{spec}: {file.name}", key


def _pair(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> tuple[dict[str, str], str]:
    """The model's names with the source's, and how names were translated, in words."""
    shapes = {name: shape_of(tensor) for name, tensor in source.items()}
    wanted = {name: (shape_of(tensor), tensor) for name, tensor in target.items()}

    def fitting(name: str, other: str) -> int:
        shape, tensor = wanted[name]
        return tensor.numel() if shape == shapes[other] and shape is not None else 0

    pairs, (one, two) = pair_names(source, target, fitting)
    return pairs, f"{printable(one) or '(none)'} -> {two or '(none)'}" if one != two else ""


def _unfit(tensor: torch.Tensor, goal: torch.Tensor, kind: str) -> str:
    """Why a tensor cannot be loaded, or ""; ``kind`` is the rule by which it may be resized."""
    wanted, held = shape_of(goal), shape_of(tensor)
    if wanted is None or goal.is_meta:
        return "the model's tensor is not initialized; run one batch through the model first, or move it off meta"
    if held is None or tensor.is_meta:
        return "not an ordinary dense tensor in the file"
    if (tensor.is_floating_point(), tensor.is_complex()) != (goal.is_floating_point(), goal.is_complex()):
        return f"{tensor.dtype} in the file, {goal.dtype} in the model"
    if held == wanted:
        return ""
    stored = tensor.untyped_storage().nbytes() >= tensor.nbytes  # a file cannot hold an expanded tensor
    return "" if stored and can_adapt(held, wanted, kind) else f"shape {held} in the file, {wanted} in the model"


def _cast(tensor: torch.Tensor, goal: torch.Tensor, label: str) -> torch.Tensor:
    cast = tensor.detach().to(goal.dtype)
    if cast.is_floating_point() or cast.is_complex():
        # Attention masks contain -inf by design: a non-finite value is valid where the model has the same one.
        valid = cast.isfinite() | (cast == goal.detach().to(cast.device))
        if not bool(valid.all()):
            as_what = "" if tensor.dtype == goal.dtype else f" as {goal.dtype}"
            raise InputError(f"{label} holds NaN or infinity{as_what}; get an intact copy of the weights, or exclude it")
    return cast


def _excluded(target: Mapping[str, object], patterns: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {n for n in target if n == pattern or n.startswith(pattern + ".") or fnmatchcase(n, pattern)}
        if not hits:
            raise InputError(f"exclude={pattern!r} matches none of the model's names{did_you_mean(pattern, target)}")
        found |= hits
    return found


def _share(model: torch.nn.Module, loaded: set[int], excluded: set[int]) -> float:
    sizes = {id(p): p.numel() for p in model.parameters() if shape_of(p) is not None and id(p) not in excluded}
    head = find_head(model)
    apart = {id(p) for p in head[1].parameters()} if head else set()
    body = {key: size for key, size in sizes.items() if key not in apart} or sizes
    return sum(size for key, size in body.items() if key in loaded) / max(sum(body.values()), 1)


def _too_little(source: str | Path, report: LoadReport, min_match: float) -> str:
    left_out = [f"{name} ({why})" for name, why in report.left_out.items()]
    sides = [*report.on_one_side(), *([f"left out: {abbreviate(left_out)}"] if left_out else [])]
    return (
        f"weights={str(source)!r} match {report.share:.1%} of the model's parameters outside the head, below "
        f"min_match={min_match:g}; {'; '.join(sides)}; build the model that was saved, or lower min_match"
    )
