"""Resize tensors by a named rule: first convolutions to other input channels, position embeddings to other lengths."""

from __future__ import annotations

import re
from math import isqrt

from heptane.base.errors import check_range
from heptane.base.lazy import torch

POSITION = re.compile(r"(?:^|_)(?:pos|positions?|positional|posemb|wpe)(?:_|$)")
RELATIVE = re.compile(r"rel|bias|index|ids")
PREFIX_TOKENS = (0, 1, 2)  # tokens before an image's grid: none, a class token, and a distillation token


def shape_of(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The shape of an ordinary dense tensor; None for a nested, sparse, quantized or lazy one."""
    if tensor.is_nested or tensor.is_sparse or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    return None if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def adaptable(model: torch.nn.Module) -> dict[str, str]:
    """The tensors of a model that may be resized, by name, and the rule: ``"channels"`` or ``"positions"``.

    Channels: the first convolution. Positions: parameters whose own or module's name says absolute positions, except in
    linear layers and convolutions.
    """
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
                if any(map(_says_position, name.split(".")[-2:])) and parameter.is_floating_point():
                    found[name] = "positions"
    first = next((name for name, module in model.named_modules() if isinstance(module, convolutions)), None)
    if first is not None:
        found[f"{first}.weight".lstrip(".")] = "channels"
    return found


def can_adapt(held: tuple[int, ...], wanted: tuple[int, ...], kind: str) -> bool:
    """Whether a rule of :func:`adaptable` turns one shape into the other: they differ in one size only."""
    if len(held) != len(wanted) or min(*held, *wanted, 1) < 1:
        return False
    differs = [axis for axis, (one, other) in enumerate(zip(held, wanted, strict=True)) if one != other]
    if kind == "channels":
        return len(held) > 2 and differs == [1]
    return kind == "positions" and differs == [len(held) - 2] and (len(held) == 2 or (len(held) == 3 and held[0] == 1))


def adapt(weight: torch.Tensor, wanted: tuple[int, ...], kind: str) -> tuple[torch.Tensor, str]:
    """A tensor resized to another shape, computed in at least 32 bits, and the rule in words."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if kind == "positions":
        return adapt_positions(wide, wanted[-2])
    change, how = f"{weight.shape[1]} -> {wanted[1]}", "repeated in turn and divided by the number of copies"
    if wanted[1] < weight.shape[1]:
        how = "summed" if wanted[1] == 1 else "summed in turn"
    return adapt_channels(wide, wanted[1]), f"{change} input channels, {how}"


def adapt_channels(weight: torch.Tensor, in_channels: int) -> torch.Tensor:
    """A convolution's weight for another number of input channels, with the same response to a grey image.

    Channels are assigned in turn. For fewer channels, those assigned to the same one are summed (3 -> 1: the sum). For more,
    each is repeated and divided by its number of copies (1 -> 3: repeated, divided by 3).

    Args:
        weight: (out, in, ...).
        in_channels: wanted number, 1 or more.

    Returns:
        (out, in_channels, ...), with the same sum over input channels.

    Example:
        >>> adapt_channels(torch.tensor([[1.0, 2.0, 4.0]]), 1)
        tensor([[7.]])
        >>> adapt_channels(torch.tensor([[3.0]]), 3)
        tensor([[1., 1., 1.]])
    """
    check_range("in_channels", in_channels, 1, whole=True)
    held = weight.shape[1]
    assigned = torch.arange(max(held, in_channels))
    if in_channels < held:
        shape = (weight.shape[0], in_channels, *weight.shape[2:])
        return weight.new_zeros(shape).index_add(1, assigned % in_channels, weight)
    copies = torch.bincount(assigned % held)[assigned % held].to(weight.dtype)
    return weight[:, assigned % held] / copies.view(1, -1, *[1] * (weight.ndim - 2))


def adapt_positions(weight: torch.Tensor, num_positions: int) -> tuple[torch.Tensor, str]:
    """Position embeddings for another number of positions.

    If the shape is (1, positions, size) and the positions are a square grid before and after, behind the same 0, 1 or 2
    prefix tokens, the grid is resampled like an image (bicubic, antialiased) and the prefix tokens are kept. Otherwise
    positions are a sequence: a shorter one takes the first positions, a longer one is interpolated linearly with both ends
    kept.

    Args:
        weight: (positions, size) or (1, positions, size), of 32 or 64 bits.
        num_positions: wanted number, 1 or more.

    Returns:
        The embeddings, and the rule in words.

    Example:
        >>> adapt_positions(torch.tensor([[0.0], [2.0], [4.0]]), 5)[0].flatten()
        tensor([0., 1., 2., 3., 4.])
        >>> adapt_positions(torch.zeros(1, 197, 8), 65)[1]
        '197 -> 65 positions: grid 14x14 -> 8x8, bicubic; 1 prefix token kept'

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2 (the grid, in two dimensions).
    """
    check_range("num_positions", num_positions, 1, whole=True)
    held = weight.shape[-2]
    change = f"{held} -> {num_positions} positions"
    square = [n for n in PREFIX_TOKENS if _side(held - n) and _side(num_positions - n)]
    if weight.ndim == 3 and square:
        prefix, side, wanted = square[0], _side(held - square[0]), _side(num_positions - square[0])
        kept = f"; {prefix} prefix token{'s' * (prefix > 1)} kept" if prefix else ""
        rule = f"{change}: grid {side}x{side} -> {wanted}x{wanted}, bicubic{kept}"
        grid = weight[:, prefix:].reshape(1, side, side, -1).movedim(-1, 1)
        grid = torch.nn.functional.interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=True)
        return torch.cat([weight[:, :prefix], grid.movedim(1, -1).flatten(1, 2)], dim=1), rule
    if num_positions < held:
        return weight[..., :num_positions, :], f"{change}: the first {num_positions} taken"
    line = weight.reshape(1, held, -1).movedim(1, 2)
    line = torch.nn.functional.interpolate(line, size=num_positions, mode="linear", align_corners=True)
    return line.movedim(1, 2).reshape(*weight.shape[:-2], num_positions, -1), f"{change}: linear along the sequence"


def _says_position(part: str) -> bool:
    return bool(POSITION.search(part.lower())) and not RELATIVE.search(part.lower())


def _side(positions: int) -> int:
    """The side of a square grid with this many positions; 0 if there is none."""
    side = isqrt(max(positions, 0))
    return side if side * side == positions else 0
